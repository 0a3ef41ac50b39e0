"""A fork: the same agent, shortly before it changed something, decides otherwise."""

from collections.abc import Sequence
from typing import Final

import perdure
from perdure.cli.demo.results import Fork, Step
from perdure.cli.demo.script import agent_of
from perdure.cli.output import shortened
from perdure.model.event import Event
from perdure.model.runs import Run

CHANGING: Final = ("book_", "cancel_", "update_", "send_", "transfer_")
"""What the names of tools start with that change something outside."""

STEPS_SHARED: Final = 2
STEPS_SHOWN: Final = 5


def fork_name(run: Run) -> str:
    """The name of the agent that goes another way."""
    return f"{agent_of(run)}-otherwise"


async def go_another_way(store: perdure.Store, run: Run) -> Fork:
    """Fork a run's agent before its first change outside, and have the fork ask first."""
    view = store.view(agent_of(run))
    before = await view.state_at()
    events = [event async for event in view.events()]
    at, tool = _decision(events)
    async with await store.fork(view.name, at, name=fork_name(run)) as fork:
        reason = "the customer should confirm the total price first"
        await fork.emit("decision.made", {"choice": "ask first", "instead_of": tool, "why": reason})
        await fork.emit(
            "message.added",
            {
                "role": "assistant",
                "content": f"Before I go on with {tool}: may I read the total price to you?",
            },
        )
        await fork.emit("message.added", {"role": "user", "content": "Yes, please."})
        own = [event async for event in fork.events(at + 1)]
        shared = await fork.state_at(at)
    return Fork(
        agent=view.name,
        fork=fork.name,
        at=at,
        tool=tool,
        shared=[_step(event) for event in events[max(0, at - STEPS_SHARED) : at]],
        original=[_step(event) for event in events[at : at + STEPS_SHOWN]],
        other=[_step(event) for event in own[:STEPS_SHOWN]],
        original_unchanged=await view.state_at() == before,
        shared_equal=shared.messages == (await view.state_at(at)).messages,
    )


def _decision(events: Sequence[Event]) -> tuple[int, str]:
    """The sequence before the message that leads to the first change outside, and the tool."""
    at, chosen = 0, (0, "the next step")
    for event in events:
        if event.type == "message.added":
            at = event.sequence - 1
        elif event.type == "tool.called" and isinstance(event.data, dict):
            name = str(event.data.get("name"))
            chosen = (at, name)
            if name.startswith(CHANGING):
                return chosen
    return chosen if chosen[0] else (max(0, at), "the last answer")


def _step(event: Event) -> Step:
    data = event.data if isinstance(event.data, dict) else {}
    match event.type:
        case "message.added":
            text = f"{data.get('role')}: {data.get('content') or '(calls a tool)'}"
        case "tool.called":
            text = f"{data.get('name')}(…)"
        case "tool.executed":
            text = f"{data.get('name')} → {data.get('result')}"
        case "memory.stored":
            text = str(data.get("text"))
        case "decision.made":
            text = f"{data.get('choice')}, instead of {data.get('instead_of')}"
        case "record.put":
            text = str(data.get("key"))
        case "agent.forked":
            text = f"from {data.get('parent')} at {data.get('at')}"
        case "checkpoint.saved":
            text = f"{data.get('name')}, {data.get('stored')} bytes"
        case "task.finished" | "task.started":
            text = f"task {data.get('task')}"
        case _:
            text = ""
    return Step(event.sequence, event.type, shortened(" ".join(text.split()), 90))
