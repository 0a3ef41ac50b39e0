"""Time travel: what an agent was earlier, what changed since, and every past state looked up."""

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

import perdure
from perdure.cli.demo.judge import Streams
from perdure.cli.demo.results import Past
from perdure.cli.demo.script import WORKSPACE, agent_of
from perdure.cli.output import shortened
from perdure.model import state
from perdure.model.runs import Run

EVENTS_BETWEEN: Final = 4
"""How many events lie between the two states whose difference is shown."""


async def look_back(
    store: perdure.Store, runs: Sequence[Run], events: Streams, progress: Callable[[int], None]
) -> Past:
    """One agent halfway through its run beside its end, and all past states of all agents.

    A past state is right when its messages are the recording's first ones: as many of them as
    there are `message.added` up to there.
    """
    agent = agent_of(runs[0])
    view = store.view(agent)
    now = await view.sequence()
    then = now // 2
    until = min(now, then + EVENTS_BETWEEN)
    earlier, latest = await view.state_at(then), await view.state_at()
    changes = [str(change) for change in await view.diff(then, until)]
    states = equal = snapshot_bytes = 0
    seconds = 0.0
    for run in runs:
        view = store.view(agent_of(run))
        said = 0
        for event in events[view.name]:
            said += event.type == "message.added"
            began = time.perf_counter()
            found = await view.state_at(event.sequence)
            seconds += time.perf_counter() - began
            states += 1
            equal += found.sequence == event.sequence and found.messages.to_list() == list(
                run.messages[:said]
            )
            snapshot_bytes += len(state.encode(found))
            progress(states)
    return Past(
        agent=agent,
        then=then,
        now=now,
        fields=_fields(earlier, latest),
        until=until,
        changes=[shortened(change, 300) for change in changes],
        states=states,
        states_equal=equal,
        milliseconds=seconds * 1000 / max(1, states),
        snapshot_bytes=snapshot_bytes,
    )


def _fields(earlier: perdure.State, latest: perdure.State) -> list[tuple[str, str, str]]:
    """The states side by side: a field, what it was, what it is."""
    shown: dict[str, Callable[[perdure.State], str]] = {
        "messages": lambda state: str(len(state.messages)),
        "the last of them": _last_message,
        "tool calls": lambda state: str(len(state.tools.calls)),
        "record 'case'": lambda state: _record(state, "case"),
        "memories": lambda state: str(state.memories.count),
        "last checkpoint": _checkpointed,
    }
    return [(name, show(earlier), show(latest)) for name, show in shown.items()]


def _last_message(state: perdure.State) -> str:
    if not len(state.messages):
        return "none"
    message = state.messages[-1]
    calls = message.get("tool_calls")
    if not message.get("content") and isinstance(calls, list) and calls:
        return f"{message.get('role')} calls a tool"
    return shortened(f"{message.get('role')}: {message.get('content')}", 60)


def _record(state: perdure.State, key: str) -> str:
    return msgspec.json.encode(state.records.get(key)).decode()


def _checkpointed(state: perdure.State) -> str:
    saved = state.checkpoints.get(WORKSPACE)
    return "none" if saved is None else f"at sequence {saved.sequence}"
