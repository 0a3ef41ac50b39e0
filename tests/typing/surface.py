"""What users write with `await`: it has to pass mypy --strict as it stands, with these types."""

import datetime as dt
from typing import assert_type

import perdure
from perdure.model.event import JSON


async def agents(store: perdure.Store) -> None:
    """Opening, viewing and listing agents."""
    assert_type(store.url, str)
    assert_type(await store.agent("airline/mia"), perdure.Agent)
    assert_type(store.view("airline/mia"), perdure.AgentView)
    assert_type(await store.emit("airline/mia", "note", "a text"), perdure.Event)
    assert_type(await store.fork("airline/mia", 3, name="airline/twin"), perdure.Agent)
    async for summary in store.agents("airline/"):
        assert_type(summary, perdure.AgentSummary)
    async with await store.agent("airline/mia") as agent:
        assert_type(agent, perdure.Agent)


async def writing(agent: perdure.Agent) -> None:
    """Events, memories, records and checkpoints."""
    event = await agent.emit(
        "decision.made",
        {"choice": "refund"},
        id="d-1",
        time=dt.datetime.now(dt.UTC),
        expected_sequence=0,
        correlation_id="task-7",
    )
    assert_type(event, perdure.Event)
    assert_type(event.sequence, int)
    assert_type(event.position, str)
    assert_type(event.time, dt.datetime)
    several = await agent.emit_many(
        [perdure.NewEvent(type="note", data=1), ("note", {"any": ["thing", None]})]
    )
    assert_type(several, list[perdure.Event])
    assert_type(await agent.remember("prefers aisle", source="chat", mood=1), perdure.Memory)
    assert_type(await agent.checkpoint("policy", object()), perdure.SavedObject)
    assert_type(await agent.records.put("profile", {"tier": "gold"}), perdure.Event)
    assert_type(await agent.records.get("profile"), JSON)
    assert_type(await agent.records.version("profile"), int)
    assert_type(await agent.records.find(tier="gold"), dict[str, JSON])
    assert_type(agent.epoch, int)
    assert_type((await agent.revert(to=3)).effects, list[perdure.Event])


async def reading(view: perdure.AgentView) -> None:
    """A view reads everything, and an agent is a view."""
    assert_type(await view.sequence(), int)
    assert_type(await view.state_at(3), perdure.State)
    assert_type(await view.state_at(time="2026-11-01T10:00Z"), perdure.State)
    assert_type(await view.project("spent"), object)
    assert_type(await view.project("spent", type=int), int)
    assert_type(await view.restore("policy"), object)
    assert_type(await view.restore("policy", type=bytes), bytes)
    assert_type(await view.diff(1, "2026-11-01T10:00Z"), list[perdure.Difference])
    assert_type(await view.recall("which seat?", k=3, where={"mood": 1}), list[perdure.Hit])
    assert_type(await view.checkpoints(), dict[str, perdure.SavedObject])
    assert_type(await view.conversation("openai"), perdure.Conversation)
    assert_type(await view.fork(3, name="airline/twin"), perdure.Agent)
    assert_type((await view.verify(progress=lambda events: None)).sound, bool)
    async for event in view.events(2, types=["tool.*"]):
        assert_type(event, perdure.Event)
    async for change in view.watch():
        assert_type(change.state, perdure.State)
    async for other in view.watch(after=3, projection="spent"):
        assert_type(other, perdure.Change[object])


def state(agent: perdure.Agent) -> None:
    """The state is typed down to its elements."""
    assert_type(agent.state, perdure.State)
    assert_type(agent.state.sequence, int)
    assert_type(agent.state.messages, perdure.Series[dict[str, JSON]])
    assert_type(agent.state.messages[0], dict[str, JSON])
    assert_type(agent.state.records, perdure.Map[JSON])
    assert_type(agent.messages("anthropic"), perdure.Conversation)
    assert_type(agent.messages("anthropic").messages, list[dict[str, JSON]])


async def connections() -> None:
    """A connection is entered or awaited."""
    async with perdure.connect() as store:
        assert_type(store, perdure.Store)
    assert_type(await perdure.connect("crew.store", create=False), perdure.Store)


async def mistakes(agent: perdure.Agent) -> None:
    """What a type checker tells before the program runs: these comments would be unused."""
    await agent.emit(7)  # type: ignore[arg-type]
    await agent.emit("note", tim="now")  # type: ignore[call-arg]
    await agent.emit("note", time="now")  # type: ignore[arg-type]
    await agent.fork(3)  # type: ignore[call-arg]
    agent.messages("elsewhere")  # type: ignore[arg-type]
