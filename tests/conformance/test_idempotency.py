"""The same write given again is one event, and has the same answer."""

import asyncio
import random

import pytest

import perdure
from perdure import NewEvent

BY_ID = {"id": "order-7"}
BY_WRITER = {"writer": "tool", "writer_sequence": 7}
KEYS = pytest.mark.parametrize("key", [BY_ID, BY_WRITER], ids=["id", "writer sequence"])


@KEYS
async def test_a_write_given_again_is_one_event(store, key):
    """The second answer is the recorded event, whatever data the second call had."""
    agent = await store.agent("airline/mia")
    first = await agent.emit("note", {"n": 1}, **key)
    assert await agent.emit("note", {"n": 2}, **key) == first
    assert await store.emit("airline/mia", "other", **key) == first
    assert await agent.sequence() == 1
    assert agent.state.sequence == 1


@KEYS
@pytest.mark.parametrize("between", [0, 1, 40, 300])
async def test_it_is_known_for_ever(place, key, between):
    """However much was recorded since, and in another connection too, a write is known again."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    await agent.emit("note", 0)
    first = await agent.emit("note", {"n": 1}, **key)
    for _ in range(min(between, 40)):
        await agent.emit("note", "between")
    await agent.emit_many([("note", "x" * 100)] * max(0, between - 40))
    assert await agent.emit("note", {"n": 2}, **key) == first
    await agent.close()
    assert await agent.emit("note", {"n": 2}, **key) == first
    await store.close()
    again = await (await place.connect()).agent("airline/mia")
    assert await again.emit("note", {"n": 3}, **key) == first
    assert await again.sequence() == 2 + between


@KEYS
async def test_concurrent_duplicates_are_one_event(place, key):
    """The same write from many callers and two connections at once is recorded once."""
    one, two = await place.connect(), await place.connect()
    answers = await asyncio.gather(
        *[store.emit("airline/mia", "note", i, **key) for i in range(10) for store in (one, two)]
    )
    assert len({event.id for event in answers}) == 1
    assert await one.view("airline/mia").sequence() == 1


@KEYS
async def test_a_batch_given_again_is_known_event_by_event(store, key):
    """A batch of known and new events records the new ones and answers each in its place."""
    agent = await store.agent("airline/mia")
    known = await agent.emit("note", "known", **key)
    draft = NewEvent(type="note", data="again", **key)
    answers = await agent.emit_many([("note", "a"), draft, ("note", "b")])
    assert [event.sequence for event in answers] == [2, 1, 3]
    assert answers[1] == known
    assert agent.state.sequence == 3


@KEYS
async def test_a_known_event_at_the_end_of_a_batch_hides_nothing(store, key):
    """The state has taken in the new events of a batch wherever in it the known ones stand."""
    agent = await store.agent("airline/mia")
    await agent.emit("note", "known", **key)
    draft = NewEvent(type="note", data="again", **key)
    answers = await agent.emit_many([("decision.made", {"choice": 1}), draft])
    assert [event.sequence for event in answers] == [2, 1]
    assert agent.state.sequence == 2
    assert list(agent.state.decisions) == [{"choice": 1}]


@KEYS
async def test_a_duplicate_within_a_batch_is_one_event(store, key):
    """The same write twice in one emit_many is recorded once and answered twice."""
    agent = await store.agent("airline/mia")
    draft = NewEvent(type="decision.made", data={"choice": 1}, **key)
    answers = await agent.emit_many([draft, ("note", 2), draft])
    assert [event.sequence for event in answers] == [1, 2, 1]
    assert await agent.sequence() == 2
    assert agent.state == await agent.state_at()
    assert len(agent.state.decisions) == 1


@KEYS
async def test_what_is_recorded_is_answered_before_anything_is_asked(place, key):
    """A retried write is answered even if its expectation or its epoch no longer holds."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    first = await agent.emit("note", 1, expected_sequence=0, **key)
    await agent.emit("note", 2)
    assert await agent.emit("note", 1, expected_sequence=0, **key) == first
    await (await place.connect()).agent("airline/mia")
    assert await agent.emit("note", 1, expected_sequence=0, **key) == first
    with pytest.raises(perdure.WriterFenced):
        await agent.emit("note", 3)


async def test_a_long_history_given_again_in_any_order_is_answered_event_by_event(place):
    """Each repeated write gets its own event, whichever was repeated before it."""
    order = random.Random(7)
    store = await place.connect()
    agent = await store.agent("airline/mia")
    writes = [
        {"data": {"n": n, "pad": order.randbytes(150).hex()}, "writer": f"w{n % 3}"}
        for n in range(600)
    ]
    for n, write in enumerate(writes):
        write |= {"writer_sequence": n + 1, "id": f"own-{n}" if n % 2 else None}
    first = await agent.emit_many([NewEvent(type="note", **write) for write in writes])
    for again in (writes, order.sample(writes, 200), writes[::-3]):
        for write in again:
            answer = await agent.emit("note", **write)
            assert answer == first[write["writer_sequence"] - 1]
            answer.data["n"] = "changed by who got it"
    assert await agent.sequence() == 600


async def test_a_writer_counts_up(store):
    """A writer's sequence may leave numbers out; going back to one that was left out is refused."""
    agent = await store.agent("airline/mia")
    for number in (1, 2, 9):
        await agent.emit("note", number, writer="w", writer_sequence=number)
    with pytest.raises(perdure.SequenceConflict, match="w"):
        await agent.emit("note", 5, writer="w", writer_sequence=5)
    event = await agent.emit("note", 10, writer="w")
    assert event.writer_sequence == 10
    assert [event.data async for event in agent.events()] == [1, 2, 9, 10]


async def test_writers_and_agents_do_not_mix(store):
    """The same id or number means another event for another agent, and for another writer."""
    a = await store.emit("airline/mia", "note", 1, id="same", writer="v", writer_sequence=1)
    b = await store.emit("airline/bob", "note", 2, id="same", writer="v", writer_sequence=1)
    c = await store.emit("airline/mia", "note", 3, writer="w", writer_sequence=1)
    assert [(event.subject, event.sequence, event.data) for event in (a, b, c)] == [
        ("airline/mia", 1, 1),
        ("airline/bob", 1, 2),
        ("airline/mia", 2, 3),
    ]


async def test_an_id_that_looks_like_another_is_another(store):
    """Ids are compared as they were written: case and dashes count."""
    written = [
        "01936f5e-0000-7000-8000-00000000000a",
        "01936F5E-0000-7000-8000-00000000000A",
        "01936f5e000070008000-00000000000a",
        "{01936f5e-0000-7000-8000-00000000000a",
    ]
    for index, name in enumerate(written, 1):
        assert (await store.emit("airline/mia", "note", id=name)).sequence == index
    for index, name in enumerate(written, 1):
        assert (await store.emit("airline/mia", "note", id=name)).sequence == index


async def test_a_writer_sequence_needs_its_writer(store):
    """A number without the name of who counts is refused: it identifies nothing."""
    with pytest.raises(perdure.InvalidData, match="writer"):
        await store.emit("airline/mia", "note", writer_sequence=3)


async def test_what_was_done_before_a_fork_is_not_done_again_in_it(store):
    """An id of the shared history is answered with its event; one from after the fork is new."""
    async with await store.agent("airline/mia") as agent:
        before = await agent.emit("tool.executed", {"id": "c1", "result": 1}, id="booking-1")
        later = await agent.emit("tool.executed", {"id": "c2", "result": 2}, id="booking-2")
        async with await agent.fork(at=before.sequence, name="airline/twin") as twin:
            assert before == await twin.emit("tool.executed", {"id": "c1"}, id="booking-1")
            own = await twin.emit("tool.executed", {"id": "c2", "result": 3}, id="booking-2")
            assert own != later
            async with await twin.fork(name="airline/triplet") as triplet:
                assert before == await triplet.emit("tool.executed", {"id": "c1"}, id="booking-1")
                assert own == await triplet.emit("tool.executed", {"id": "c2"}, id="booking-2")
