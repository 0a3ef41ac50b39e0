"""Saved states in Cassandra: the nearest is found, few are kept, damaged ones are passed over."""

import asyncio
import random

import pytest
from tests.stack.cassandra_tables import place_of

from perdure.cassandra import state_table
from perdure.cassandra.state_table import PIECE_BYTES, CassandraStateTable
from perdure.model.timeline import Span
from perdure.ports import SavedState

AGENT = "airline/mia"


@pytest.fixture
async def place(shared_cluster, store):
    """A store nobody has written to."""
    async with place_of(shared_cluster, store) as place:
        yield place


@pytest.fixture
def table(place):
    """Its saved states."""
    return CassandraStateTable(place.session, place.store, place.generations)


def state(sequence, data=b"{}", *, agent=AGENT, projection="default", key="k"):
    """A state to save."""
    return SavedState(agent, sequence, projection, key, data)


def span(first, last, agent=AGENT):
    """A span of one agent."""
    return Span(agent, first, last)


async def test_the_nearest_is_found(table):
    """Of the saved states that lie in the spans, the latest is given, of this code alone."""
    assert await table.nearest("default", "k", [span(1, 100)]) is None
    for sequence in (10, 20, 30):
        await table.save(state(sequence, b"at %d" % sequence))
    await table.save(state(25, b"of a fork", agent="airline/twin"))
    await table.save(state(28, b"other", projection="other"))
    assert await table.nearest("default", "k", [span(1, 100)]) == state(30, b"at 30")
    assert await table.nearest("default", "k", [span(1, 29)]) == state(20, b"at 20")
    assert await table.nearest("default", "k", [span(11, 19)]) is None
    assert await table.nearest("default", "other", [span(1, 100)]) is None
    spans = [span(1, 15), span(16, 100, "airline/twin")]
    assert await table.nearest("default", "k", spans) == state(
        25, b"of a fork", agent="airline/twin"
    )
    assert await table.nearest("default", "k", [*spans[:1], span(26, 99, "airline/twin")]) == state(
        10, b"at 10"
    )


async def test_large_states_come_back_whole(table):
    """States of any size are what was saved, in rows of bounded size."""
    for size in (0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 17, 20_000_000):
        data = random.Random(size).randbytes(size)
        await table.save(state(size + 1, data))
        assert await table.nearest("default", "k", [span(size + 1, size + 1)]) == state(
            size + 1, data
        )


async def test_few_are_kept(place, table):
    """After many saves there are as many as the logarithm of the history, and the newest two."""
    for sequence in range(10, 2001, 10):
        await table.save(state(sequence, b"%d" % sequence))
    kept = await table._slots(place.tables, AGENT, "default")
    assert len(kept) <= 2 + (2000).bit_length()
    sequences = {slot.sequence for slot in kept}
    assert {1990, 2000, 10} <= sequences
    for sequence in sequences:
        found = await table.nearest("default", "k", [span(sequence, sequence)])
        assert found == state(sequence, b"%d" % sequence)
    assert await table.check(AGENT) == []


async def test_there_are_never_more_than_the_slots(place, table, monkeypatch):
    """States that are saved in any order take the slots there are, and no more."""
    monkeypatch.setattr(state_table, "SLOTS", 4)
    chance = random.Random(9)
    for _ in range(60):
        await table.save(state(chance.randint(1, 10**6)))
    assert len(await table._slots(place.tables, AGENT, "default")) <= 4


async def test_states_of_other_code_make_room(place, table):
    """When the code changes, the slots of its old states are written over first."""
    for sequence in (10, 20, 30):
        await table.save(state(sequence))
    for sequence in (40, 50, 60):
        await table.save(state(sequence, key="new"))
    kept = await table._slots(place.tables, AGENT, "default")
    assert {(slot.key, slot.sequence) for slot in kept} == {("new", 40), ("new", 50), ("new", 60)}


async def test_saving_again_is_harmless(place, table):
    """The same state twice takes one slot; a smaller one over a larger one is read right."""
    for data in (b"x" * 3_000_000, b"x" * 3_000_000, random.Random(1).randbytes(2_000_000), b"y"):
        await table.save(state(10, data))
        assert await table.nearest("default", "k", [span(1, 10)]) == state(10, data)
    assert len(await table._slots(place.tables, AGENT, "default")) == 1


async def damaged(place, sequence):
    """Damage the pieces of the saved state at a sequence."""
    table = CassandraStateTable(place.session, place.store, place.generations)
    slots = await table._slots(place.tables, AGENT, "default")
    [slot] = [slot for slot in slots if slot.sequence == sequence]
    await place.session.execute(
        place.tables.insert_piece, (place.store, AGENT, "default", slot.number, 0, b"damaged")
    )


async def test_a_damaged_one_is_passed_over_and_told(place, table):
    """The nearest sound state is given instead, and `check` names the damaged one."""
    for sequence in (10, 20, 30):
        await table.save(state(sequence, b"at %d" % sequence))
    await damaged(place, 30)
    assert await table.nearest("default", "k", [span(1, 100)]) == state(20, b"at 20")
    [finding] = await table.check(AGENT)
    assert finding.subject == f"{AGENT}@30"
    assert "default" in finding.problem
    await table.save(state(30, b"at 30"))
    assert await table.check(AGENT) == []


async def test_an_unfinished_save_is_no_state(place, table, monkeypatch):
    """A process that stops while it writes a state over leaves the others, and no finding."""
    for sequence in (10, 20, 30):
        await table.save(state(sequence, b"at %d" % sequence))
    monkeypatch.setattr(state_table, "slot_for", lambda *_: 2)
    monkeypatch.setattr(place.session, "execute_many", None)
    with pytest.raises(TypeError):
        await table.save(state(40, b"new"))
    monkeypatch.undo()
    assert await table.nearest("default", "k", [span(1, 100)]) == state(20, b"at 20")
    assert await table.check(AGENT) == []


async def test_many_at_once(table):
    """States of many agents that are saved at once are all found."""
    agents = [f"airline/a{number}" for number in range(40)]
    await asyncio.gather(*(table.save(state(5, name.encode(), agent=name)) for name in agents))
    for name in agents:
        found = await table.nearest("default", "k", [span(1, 9, name)])
        assert found == state(5, name.encode(), agent=name)
