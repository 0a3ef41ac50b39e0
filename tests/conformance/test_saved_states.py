"""Automatic state checkpoints: opening reads one and a short tail at any length of history."""

import asyncio
import dataclasses
import math
import random

from tests.conformance import reference
from tests.conformance.places import backend

import perdure
from perdure.model.projection import DEFAULT, Projections
from perdure.model.timeline import Span
from perdure.ports import SavedState


class CountingEvents:
    """An event table that counts what is read of it."""

    def __init__(self, inner):
        self._inner = inner
        self.bytes = 0
        self.events = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def read(self, span):
        """The batches of a span, counted."""
        async for batch in self._inner.read(span):
            self.bytes += batch.size
            self.events += len(batch.events)
            yield batch


def counted(store):
    """The same store with a counter around its table of events."""
    inner = backend(store)
    events = CountingEvents(inner.events)
    counting = dataclasses.replace(inner, events=events)
    session = dataclasses.replace(store._session, backend=counting)
    return perdure.Store(session), events


async def saved_sequences(store, agent, last):
    """The sequences of all saved states of an agent, newest first."""
    found = []
    while last > 0:
        span = Span(agent, 1, last)
        saved = await backend(store).states.nearest(DEFAULT.name, DEFAULT.key, [span])
        if saved is None:
            break
        found.append(saved.sequence)
        last = saved.sequence - 1
    return found


async def grow(store, name, events, kind, make):
    """Have an agent emit so many events, fifty at a time."""
    agent = await store.agent(name)
    for start in range(0, events, 50):
        await agent.emit_many([(kind, make(i)) for i in range(start, start + 50)])
    await agent.close()


def record(i):
    """A change of one of ten records: the state stays small, the history grows."""
    return {"key": f"r{i % 10}", "value": f"{i} " + "x" * 200}


async def test_opening_reads_a_short_tail_at_any_length(place):
    """Ten times the history is not more to read when an agent is opened."""
    read = {}
    for events in (2_000, 20_000):
        store = await place.connect()
        await grow(store, f"airline/a{events}", events, "record.put", record)
        await store.close()
        await place.at_rest(f"airline/a{events}")
        fresh, counter = counted(await place.connect())
        agent = await fresh.agent(f"airline/a{events}")
        assert agent.state.sequence == events
        assert dict(agent.state.records) == {
            record(i)["key"]: record(i)["value"] for i in range(events - 10, events)
        }
        read[events] = counter.events
    assert max(read.values()) < 1_000


async def test_few_states_are_kept(place):
    """The number of saved states grows with the logarithm of the history."""
    store = await place.connect()
    await grow(store, "airline/mia", 20_000, "record.put", record)
    kept = await saved_sequences(store, "airline/mia", 20_000)
    assert 1 <= len(kept) <= 2 + math.ceil(math.log2(20_000))


async def test_past_states_of_a_long_history(place):
    """Any past state of a long history equals the plain fold, wherever it starts from."""
    store = await place.connect()
    await grow(store, "airline/mia", 3_000, "record.put", record)
    view = store.view("airline/mia")
    kept = await saved_sequences(store, "airline/mia", 3_000)
    assert kept
    points = {0, 1, 3_000, *kept, *(at + 1 for at in kept if at < 3_000), *(at - 1 for at in kept)}
    for at in sorted(points):
        state = await view.state_at(at)
        assert state.sequence == at
        assert dict(state.records) == {
            record(i)["key"]: record(i)["value"] for i in range(max(0, at - 10), at)
        }


async def test_states_saved_at_every_step_agree_with_the_fold(place, monkeypatch):
    """With a checkpoint after every event, through undo and forks, states equal the plain fold."""
    monkeypatch.setattr("perdure.checkpointer.policy.due", lambda tail, state, at_rest=False: True)
    store = await place.connect()
    agent = await store.agent("airline/mia")
    for number in range(10):
        await agent.emit("decision.made", number)
    await agent.revert(to=4)
    await agent.emit("decision.made", "other")
    twin = await agent.fork(at=8, name="airline/twin")
    await agent.revert(to=9)
    await agent.emit("decision.made", "back")
    await twin.emit("decision.made", "twin")
    await twin.revert(to=3)
    await twin.emit("decision.made", "again")
    for handle in (agent, twin):
        await handle.close()
        expected = reference.states(handle.name, [event async for event in handle.events()])
        for at in range(1, len(expected)):
            assert reference.plain(await handle.state_at(at)) == expected[at]
        assert reference.plain((await store.agent(handle.name)).state) == expected[-1]
        assert (await handle.verify()).sound


async def test_a_projection_of_the_users_is_saved_as_well(place):
    """Asked again, a long history's own projection is read from a checkpoint and a short tail."""
    projections = Projections()

    @projections.projection("put", initial=lambda: 0)
    def put(count, event):
        return count + (event.type == "record.put")

    store = await place.connect(projections=projections)
    await grow(store, "airline/mia", 3_000, "record.put", record)
    assert await store.view("airline/mia").project("put") == 3_000
    await store.close()
    fresh, counter = counted(await place.connect(projections=projections))
    assert await fresh.view("airline/mia").project("put") == 3_000
    assert counter.events < 300


async def test_states_that_are_saved_at_once_are_each_what_was_saved(store):
    """States of many agents, compressed at the same time, don't get into each other."""
    names = [f"saved/at-once-{number}" for number in range(16)]
    await asyncio.gather(*[store.emit(name, "note", 1) for name in names])
    states = backend(store).states
    data = {name: random.Random(number).randbytes(200_000) * 5 for number, name in enumerate(names)}
    await asyncio.gather(
        *[states.save(SavedState(name, 1, "text", "1", data[name])) for name in names]
    )
    for name in names:
        saved = await states.nearest("text", "1", [Span(name, 1, 1)])
        assert saved is not None
        assert saved.data == data[name]


async def test_what_a_caller_does_to_values_it_got_is_never_saved(place):
    """A changed event or message changes no saved state: the next opening reads what happened."""
    agent = await (await place.connect()).agent("airline/mia")
    events = [await agent.emit("decision.made", {"n": 0})]
    for n in range(100):
        message = {"role": "user", "content": "seat " * 200, "n": n}
        events.append(await agent.emit("message.added", message))
        events[n].data["n"] = agent.state.messages[n]["n"] = "changed"
    await agent.close()
    again = await (await place.connect()).agent("airline/mia")
    assert [message["n"] for message in again.state.messages] == list(range(100))
    assert list(again.state.decisions) == [{"n": 0}]
    assert (await again.verify()).sound
