"""When the states of agents that others write are saved, and that what is saved is right."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure.checkpointer import policy
from perdure.checkpointer.states import StateCheckpoints, Tables
from perdure.checkpointer.tails import Key, Tails
from perdure.errors import ProjectionFailed, Unreachable
from perdure.model.projection import DEFAULT
from perdure.model.timeline import Span
from perdure.model.upcast import Upcasters

MIA = Key("default", "airline/mia", 3)
KIB = 1024


def test_a_new_agent_is_counted_from_its_first_event():
    """Due when it is busy from the policy's bytes on, and told once."""
    tails = Tails()
    step = policy.BUSY_BYTES_MIN // 4
    told = [tails.add(MIA, sequence=n, size=step, events=1, now=float(n)) for n in range(1, 6)]
    assert told == [False, False, False, True, False]
    tails.looked_at(MIA, tail_bytes=0, state_bytes=10 * step)
    # Its state is larger now: what it wrote since has to be worth it.
    told = [tails.add(MIA, sequence=n, size=step, events=1, now=float(n)) for n in range(6, 30)]
    assert told.index(True) == 18


def test_events_that_are_told_again_count_once():
    """A journal that is read again from an older position changes nothing."""
    tails = Tails()
    for _ in range(9):
        assert not tails.add(MIA, sequence=4, size=200 * KIB, events=4, now=1.0)
    assert tails.at_rest(2.0) == [MIA]


def test_agents_at_rest():
    """Told after their last event, if it is worth it, once for each time that they come to rest."""
    tails = Tails()
    small, large = Key("s", "a/small", 0), Key("s", "a/large", 1)
    tails.add(small, sequence=1, size=KIB, events=1, now=1.0)
    tails.add(large, sequence=1, size=policy.REST_BYTES_MIN, events=1, now=2.0)
    assert tails.at_rest(2.0) == []
    assert tails.at_rest(3.0) == [large]
    assert tails.at_rest(9.0) == []
    tails.looked_at(large, tail_bytes=0, state_bytes=KIB)
    tails.add(large, sequence=2, size=KIB, events=1, now=10.0)
    assert tails.at_rest(20.0) == []
    tails.add(large, sequence=3, size=policy.REST_BYTES_MIN, events=1, now=30.0)
    assert tails.at_rest(40.0) == [large]


def test_an_agent_that_nothing_is_known_of():
    """Is looked at when its events, all of the size of those that were seen, would be worth it."""
    tails = Tails()
    tails.add(MIA, sequence=20, size=KIB, events=1, now=1.0)
    assert tails.at_rest(2.0) == []
    tails.add(MIA, sequence=200, size=KIB, events=1, now=3.0)
    assert tails.at_rest(4.0) == [MIA]
    tails.looked_at(MIA, tail_bytes=5 * KIB, state_bytes=99 * KIB)
    tails.add(MIA, sequence=201, size=KIB, events=1, now=5.0)
    assert tails.at_rest(6.0) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 90 * KIB)), max_size=200))
def test_memory_is_bounded(events):
    """However many agents there are, so many are counted; who is forgotten is told as at rest."""
    tails, sequences = Tails(agents_max=10), {}
    due = set()
    for now, (number, size) in enumerate(events):
        key = Key("s", f"a/{number}", 0)
        sequences[key] = sequences.get(key, 0) + 1
        if size >= policy.REST_BYTES_MIN:
            due.add(key)
        tails.add(key, sequence=sequences[key], size=size, events=1, now=float(now))
        assert len(tails) <= 10
    assert due <= set(tails.at_rest(float("inf")))
    tails.forget(0)
    assert len(tails) == 0


async def patiently(what, call):
    """Tries again until it can."""
    while True:
        with contextlib.suppress(Unreachable):
            return await call()


@contextlib.asynccontextmanager
async def checkpoints(tables, upcasters=None):
    """Checkpoints of one store, at work; and what they looked at."""
    tails, looks = Tails(), []
    made = StateCheckpoints(
        tails,
        lambda key: tables,
        upcasters or Upcasters(),
        patiently=patiently,
        looked=looks.append,
    )
    task = asyncio.create_task(made.work())
    yield made, tails, looks
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_saved_state_is_the_folded_one(tmp_path):
    """What is saved equals the fold of all events, and is found by whoever restores."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("airline/mia")
        for number in range(100):
            await agent.emit("message.added", {"role": "user", "content": f"{number} " * 500})
        backend = store._session.backend
        tables = Tables(backend.events, backend.states)
        async with checkpoints(tables) as (made, tails, looks):
            tails.add(MIA, sequence=100, size=1, events=1, now=0.0)
            await made.look(MIA, at_rest=True)
            await made.all_done()
        assert [look.key for look in looks] == [MIA]
        assert looks[0].saved > 0
        saved = await tables.states.nearest(DEFAULT.name, DEFAULT.key, [Span(MIA.agent, 1, 100)])
        assert (saved.sequence, len(saved.data)) == (100, looks[0].saved)
        assert DEFAULT.decode(saved.data) == agent.state
        # Nothing was written since: a second look saves nothing.
        async with checkpoints(tables) as (made, _, looks):
            await made.look(MIA, at_rest=True)
            await made.all_done()
        assert [look.saved for look in looks] == [0]


async def test_an_agent_that_is_not_there(tmp_path):
    """Looking at it is harmless, and holds up no other."""
    async with perdure.connect(tmp_path) as store:
        backend = store._session.backend
        async with checkpoints(Tables(backend.events, backend.states)) as (made, _, looks):
            await made.look(MIA, at_rest=True)
            await made.all_done()
        assert [(look.saved, look.error) for look in looks] == [(0, None)]


@pytest.mark.parametrize("fails", [Unreachable, ProjectionFailed])
async def test_trouble_with_the_tables(tmp_path, fails):
    """What helps later is tried again; what doesn't is told once, and holds up no other."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("airline/mia")
        await agent.emit("note", {"text": "x" * policy.REST_BYTES_MIN})
        backend = store._session.backend
        failures = [fails("away"), fails("away")]

        class Away:
            def __getattr__(self, name):
                if failures:
                    raise failures.pop()
                return getattr(backend.events, name)

        async with checkpoints(Tables(Away(), backend.states)) as (made, _, looks):
            await made.look(MIA, at_rest=True)
            await made.all_done()
            if fails is ProjectionFailed:
                assert isinstance(looks.pop().error, ProjectionFailed)
                failures.clear()
                await made.look(MIA, at_rest=True)
                await made.all_done()
        assert looks[-1].saved > 0
