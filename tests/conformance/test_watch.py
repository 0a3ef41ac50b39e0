"""Consuming a projection as it moves."""

import asyncio
import sys

import pytest

import perdure
from perdure.model.projection import Projections


async def taken(changes, count):
    """The next so many changes; a minute is more than any store needs for them."""
    async with asyncio.timeout(60):
        return [await anext(changes) for _ in range(count)]


async def test_watching_from_a_sequence(store):
    """A watch after a sequence gives each later event, with the state after it."""
    agent = await store.agent("airline/mia")
    for number in range(1, 5):
        await agent.emit("decision.made", number)
    changes = agent.watch(after=2)
    first, second = await taken(changes, 2)
    assert [first.sequence, second.sequence] == [3, 4]
    assert first.state == await agent.state_at(3)
    assert second.state == await agent.state_at(4)
    assert first.event.data == 3
    await changes.aclose()


async def test_watching_what_comes(store):
    """Without a sequence, a watch begins with the first event that is recorded from then on."""
    agent = await store.agent("airline/mia")
    await agent.emit("decision.made", "before")
    changes = agent.watch()
    coming = asyncio.ensure_future(taken(changes, 1))
    while not coming.done():
        # The watch says nothing of when it has begun: emit until it has seen something.
        await agent.emit("decision.made", "after")
        await asyncio.sleep(0.01)
    [change] = await coming
    assert change.event.data == "after"
    assert change.state == await agent.state_at(change.sequence)
    await changes.aclose()


async def test_every_change_comes_once_and_in_order(place):
    """However fast others write, a watch gives each event once, in order, with its own state."""
    store, other = await place.connect(), await place.connect()
    await store.emit("airline/mia", "decision.made", 0)
    changes = store.view("airline/mia").watch(after=0)

    async def write():
        for i in range(1, 40):
            await other.emit("airline/mia", "decision.made", i)

    writing = asyncio.ensure_future(write())
    seen = await taken(changes, 40)
    await writing
    assert [change.sequence for change in seen] == list(range(1, 41))
    for count, change in enumerate(seen, 1):
        assert list(change.state.decisions) == list(range(count))
    await changes.aclose()


OTHER = """
import asyncio, sys
import perdure

async def main():
    async with perdure.connect(sys.argv[1]) as store:
        for i in range(5):
            await store.emit("airline/mia", "decision.made", i)

asyncio.run(main())
"""


async def test_watching_another_process(place):
    """A watch sees what another process records."""
    store = await place.connect()
    await store.emit("airline/mia", "note")
    changes = store.view("airline/mia").watch(after=1)
    coming = asyncio.ensure_future(taken(changes, 5))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", OTHER, place.url)
    assert await process.wait() == 0
    assert [change.event.data for change in await coming] == list(range(5))
    await changes.aclose()


async def test_an_undo_while_watching(store):
    """The state of a watch goes back with an undo, and on from there."""
    agent = await store.agent("airline/mia")
    for number in range(1, 4):
        await agent.emit("decision.made", number)
    changes = agent.watch(after=2)
    await taken(changes, 1)
    await agent.revert(to=1)
    await agent.emit("decision.made", "other")
    await agent.revert(to=3)
    undone, other, back = await taken(changes, 3)
    assert undone.event.type == "agent.reverted"
    assert list(undone.state.decisions) == [1]
    assert list(other.state.decisions) == [1, "other"]
    assert list(back.state.decisions) == [1, 2, 3]
    await changes.aclose()


async def test_watching_a_fork(store):
    """A watch of a fork goes through its parent's part and its own, and no further."""
    agent = await store.agent("airline/mia")
    for number in (1, 2, 3):
        await agent.emit("decision.made", number)
    twin = await agent.fork(at=2, name="airline/twin")
    await agent.emit("decision.made", "parent")
    await twin.emit("decision.made", "twin")
    changes = twin.watch(after=1)
    seen = await taken(changes, 3)
    assert [change.event.type for change in seen] == [
        "decision.made", "agent.forked", "decision.made",
    ]  # fmt: skip
    assert list(seen[-1].state.decisions) == [1, 2, "twin"]
    await changes.aclose()


async def test_watching_a_projection_of_ones_own(place):
    """A watch folds any registered projection, and its states stay as they were given."""
    projections = Projections()

    @projections.projection("kinds")
    def kinds(state, event):
        state[event.type] = state.get(event.type, 0) + 1
        return state

    store = await place.connect(projections=projections)
    agent = await store.agent("airline/mia")
    for kind in ("a", "b", "a"):
        await agent.emit(kind)
    changes = agent.watch(after=0, projection="kinds")
    seen = await taken(changes, 3)
    assert [change.state for change in seen] == [{"a": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]
    await changes.aclose()


async def test_watching_what_is_not_there(store):
    """A watch of no agent, of no projection, or from a sequence to come is an error."""
    agent = await store.agent("airline/mia")
    await agent.emit("note")
    for changes in (
        store.view("airline/nobody").watch(),
        agent.watch(after=2),
        agent.watch(projection="none"),
    ):
        with pytest.raises(perdure.NotFound):
            await taken(changes, 1)
