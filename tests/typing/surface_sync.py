"""What users write without `await`: it has to pass mypy --strict as it stands, with these types."""

import datetime as dt
from typing import assert_type

import perdure
from perdure.model.event import JSON


def agents(store: perdure.SyncStore) -> None:
    """Opening, viewing and listing agents."""
    assert_type(store.url, str)
    assert_type(store.agent("airline/mia"), perdure.SyncAgent)
    assert_type(store.view("airline/mia"), perdure.SyncAgentView)
    assert_type(store.emit("airline/mia", "note", "a text"), perdure.Event)
    assert_type(store.fork("airline/mia", 3, name="airline/twin"), perdure.SyncAgent)
    for summary in store.agents("airline/"):
        assert_type(summary, perdure.AgentSummary)
    with store.agent("airline/mia") as agent:
        assert_type(agent, perdure.SyncAgent)


def writing(agent: perdure.SyncAgent) -> None:
    """Events, memories, records and checkpoints."""
    event = agent.emit(
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
    several = agent.emit_many(
        [perdure.NewEvent(type="note", data=1), ("note", {"any": ["thing", None]})]
    )
    assert_type(several, list[perdure.Event])
    assert_type(agent.remember("prefers aisle", source="chat", mood=1), perdure.Memory)
    assert_type(agent.checkpoint("policy", object()), perdure.SavedObject)
    assert_type(agent.records.put("profile", {"tier": "gold"}), perdure.Event)
    assert_type(agent.records.get("profile"), JSON)
    assert_type(agent.records.version("profile"), int)
    assert_type(agent.records.find(tier="gold"), dict[str, JSON])
    assert_type(agent.epoch, int)
    assert_type(agent.revert(to=3).effects, list[perdure.Event])


def reading(view: perdure.SyncAgentView) -> None:
    """A view reads everything, and an agent is a view."""
    assert_type(view.sequence(), int)
    assert_type(view.state_at(3), perdure.State)
    assert_type(view.state_at(time="2026-11-01T10:00Z"), perdure.State)
    assert_type(view.project("spent"), object)
    assert_type(view.project("spent", type=int), int)
    assert_type(view.restore("policy"), object)
    assert_type(view.restore("policy", type=bytes), bytes)
    assert_type(view.diff(1, "2026-11-01T10:00Z"), list[perdure.Difference])
    assert_type(view.recall("which seat?", k=3, where={"mood": 1}), list[perdure.Hit])
    assert_type(view.checkpoints(), dict[str, perdure.SavedObject])
    assert_type(view.conversation("openai"), perdure.Conversation)
    assert_type(view.fork(3, name="airline/twin"), perdure.SyncAgent)
    assert_type(view.verify(progress=lambda events: None).sound, bool)
    for event in view.events(2, types=["tool.*"]):
        assert_type(event, perdure.Event)
    for change in view.watch():
        assert_type(change.state, perdure.State)
    for other in view.watch(after=3, projection="spent"):
        assert_type(other, perdure.Change[object])


def state(agent: perdure.SyncAgent) -> None:
    """The state is typed down to its elements."""
    assert_type(agent.state, perdure.State)
    assert_type(agent.state.sequence, int)
    assert_type(agent.state.messages, perdure.Series[dict[str, JSON]])
    assert_type(agent.state.messages[0], dict[str, JSON])
    assert_type(agent.state.records, perdure.Map[JSON])
    assert_type(agent.messages("anthropic"), perdure.Conversation)
    assert_type(agent.messages("anthropic").messages, list[dict[str, JSON]])


def connections() -> None:
    """A connection is entered, or closed later."""
    with perdure.connect_sync() as store:
        assert_type(store, perdure.SyncStore)
    assert_type(perdure.connect_sync("crew.store", create=False), perdure.SyncStore)


def mistakes(agent: perdure.SyncAgent) -> None:
    """What a type checker tells before the program runs: these comments would be unused."""
    agent.emit(7)  # type: ignore[arg-type]
    agent.emit("note", tim="now")  # type: ignore[call-arg]
    agent.emit("note", time="now")  # type: ignore[arg-type]
    agent.fork(3)  # type: ignore[call-arg]
    agent.messages("elsewhere")  # type: ignore[arg-type]
