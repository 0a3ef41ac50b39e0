"""Connecting, closing, dropping, cancelling, and many agents at once."""

import asyncio
import datetime as dt

import pytest

import perdure


async def test_what_was_recorded_is_there_after_closing(place):
    """Agents, states and events outlive the connection that made them."""
    async with await place.connect() as store:
        agent = await store.agent("airline/mia")
        written = [await agent.emit("decision.made", i) for i in range(5)]
        state = agent.state
    async with await place.connect() as store:
        again = await store.agent("airline/mia")
        assert again.state == state
        assert [event async for event in again.events()] == written


async def test_a_dropped_connection_loses_nothing(place):
    """What was acknowledged is there for the next, though the one before never closed."""
    dropped = await place.connect()
    agent = await dropped.agent("airline/mia")
    for i in range(20):
        await agent.emit("decision.made", i)
    again = await (await place.connect()).agent("airline/mia")
    assert list(again.state.decisions) == list(range(20))


async def test_a_closed_store_says_so(place):
    """Every use after closing raises StoreClosed; closing twice is harmless."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    await agent.emit("note")
    await agent.checkpoint("policy", 1)
    await store.close()
    await store.close()

    async def listed():
        return [summary async for summary in store.agents()]

    async def read():
        return [event async for event in agent.events()]

    for use in (
        lambda: agent.emit("note"),
        lambda: store.emit("airline/mia", "note"),
        lambda: store.agent("airline/mia"),
        lambda: store.fork("airline/mia", name="airline/twin"),
        agent.state_at,
        agent.verify,
        lambda: agent.recall("x"),
        lambda: agent.restore("policy"),
        lambda: agent.checkpoint("policy", 2),
        lambda: anext(agent.watch()),
        listed,
        read,
    ):
        with pytest.raises(perdure.StoreClosed):
            await use()
    await agent.close()
    assert agent.state.sequence == 2


async def test_closing_finishes_what_is_under_way(place):
    """Writes that were called before closing are recorded; every one of them is answered."""
    store = await place.connect()
    writes = [asyncio.ensure_future(store.emit("airline/mia", "note", i)) for i in range(50)]
    await asyncio.sleep(0)
    await store.close()
    answers = await asyncio.gather(*writes)
    assert [event.sequence for event in answers] == list(range(1, 51))
    view = (await place.connect()).view("airline/mia")
    assert [event.data async for event in view.events()] == list(range(50))


async def test_a_closed_agent_can_be_opened_by_anybody(place):
    """Closing an agent leaves it as it stands: any connection opens it where it stopped."""
    store = await place.connect()
    async with await store.agent("airline/mia") as agent:
        for i in range(10):
            await agent.emit("decision.made", i)
    again = await (await place.connect()).agent("airline/mia")
    assert list(again.state.decisions) == list(range(10))


async def test_a_cancelled_emit_is_recorded_whole_or_not_at_all(store):
    """An emit that is cancelled while it waits leaves the agent usable and its state true."""
    agent = await store.agent("airline/mia")
    for round_ in range(20):
        task = asyncio.ensure_future(
            agent.emit_many([("decision.made", [round_, 0]), ("decision.made", [round_, 1])])
        )
        for _ in range(round_ % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await agent.emit("decision.made", [round_, "after"])
    recorded = [event.data async for event in agent.events()]
    assert list(agent.state.decisions) == recorded
    for round_ in range(20):
        own = [part for given, part in recorded if given == round_]
        assert own in (["after"], [0, 1, "after"])


async def test_a_timeout_of_an_emit_cannot_double_it(store):
    """An emit given up on and retried with its id is recorded once."""
    agent = await store.agent("airline/mia")
    for i in range(10):
        task = asyncio.ensure_future(agent.emit("note", i, id=f"n{i}"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await agent.emit("note", i, id=f"n{i}")
    assert [event.data async for event in agent.events()] == list(range(10))


async def test_ten_thousand_agents(store):
    """10,000 agents are listed by name, by prefix, and each can be read and opened."""
    names = [f"crew-{number % 10}/a{number:04}" for number in range(10_000)]
    for start in range(0, len(names), 500):
        await asyncio.gather(
            *[store.emit(name, "note", name) for name in names[start : start + 500]]
        )
    listed = [summary async for summary in store.agents()]
    assert [summary.agent for summary in listed] == sorted(names)
    assert {summary.sequence for summary in listed} == {1}
    some = [summary.agent async for summary in store.agents("crew-3/")]
    assert some == sorted(name for name in names if name.startswith("crew-3/"))
    for name in names[::1000]:
        agent = await store.agent(name)
        assert (await agent.emit("note", 2)).sequence == 2
        assert [event.data async for event in agent.events()] == [name, 2]


async def test_the_list_of_agents_says_where_each_stands(store):
    """A line of the list has sequence, epoch, time and descent of its agent."""
    time = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
    agent = await store.agent("airline/mia")
    await agent.emit("note", time=time)
    await store.agent("airline/idle")
    await agent.fork(at=1, name="airline/twin")
    idle, mia, twin = [summary async for summary in store.agents("airline/")]
    assert (idle.sequence, idle.time, idle.parent) == (0, None, None)
    assert (mia.sequence, mia.epoch) == (1, agent.epoch)
    assert dt.datetime.fromisoformat(mia.time) == time
    assert (twin.sequence, twin.parent, twin.forked_at) == (2, "airline/mia", 1)
    assert [summary async for summary in store.agents("air%")] == []
    assert [summary async for summary in store.agents("airline/m_a")] == []


@pytest.mark.parametrize(
    "name",
    ["", "mia", "/mia", "airline/", "../x", "a/..", "a/b/c", "a/\x00", "a/😀", "a/" + "x" * 10_000,
     "a b/c", None, 5, "a/-b", "A/B "],
    ids=lambda name: ascii(name)[:20],
)  # fmt: skip
async def test_hostile_names_are_refused_everywhere(store, name):
    """A name that is not namespace/name in safe characters is refused by every call."""
    await store.emit("airline/mia", "note")
    for use in (
        lambda: store.agent(name),
        lambda: store.emit(name, "note"),
        lambda: store.fork("airline/mia", name=name),
        lambda: store.fork(name, name="airline/twin"),
    ):
        with pytest.raises(perdure.InvalidName):
            await use()
    with pytest.raises(perdure.InvalidName):
        store.view(name)
    assert [summary.agent async for summary in store.agents()] == ["airline/mia"]
