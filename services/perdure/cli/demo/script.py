"""What the agent of the demo does with a recorded run, message by message.

Invariants:
- The same run gives the same turns, on any machine and in any process: after a kill, the agent
  knows from its state alone what is next.
- Every event has an id that follows from its place in the run. Recording it again, because a kill
  came before the answer, gives back the event that is there already.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from perdure.model.event import JSON, NewEvent
from perdure.model.runs import Run, parse_run, run_events

NAMESPACE: Final = "demo"
WORKSPACE: Final = "workspace"
"""Name of the checkpoint that holds the agent's working object."""

CHECKPOINT_EVERY: Final = 8
"""Messages between two checkpoints of the working object; there is one more at the end."""

WORDS: Final = 512
"""Length of the vector of words that the agent learns."""

FADING: Final = np.float32(0.97)
"""What a message leaves of the weight of earlier words."""

REMEMBERED_CHARS_MIN: Final = 25
"""Shorter remarks of a customer ("Yes, please.") say nothing that is worth remembering."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message and what goes with it: events in order, then perhaps a checkpoint."""

    message: dict[str, JSON]
    events: tuple[NewEvent, ...]
    checkpoint: bool


class Workspace(TypedDict):
    """The agent's working object: what it has learned so far, too complex for events.

    `words` are weights of the words used lately (float32, hashed to `WORDS` places), `tools` how
    often each was called, `identifiers` what looks like the number of a flight or reservation.
    """

    messages_done: int
    words: NDArray[np.float32]
    tools: dict[str, int]
    identifiers: set[str]


def shipped_runs(count: int) -> list[Run]:
    """The first `count` of the recorded runs that come with perdure.

    >>> [run.name for run in shipped_runs(2)]
    ['0.0', '6.0']
    """
    file = resources.files("perdure.cli").joinpath("data", "airline-runs.jsonl")
    lines = file.read_bytes().splitlines()
    return [parse_run(line, number) for number, line in enumerate(lines[:count], start=1)]


def agent_of(run: Run) -> str:
    """The name of the agent that works on a run."""
    return f"{NAMESPACE}/{run.name}"


def turns(run: Run) -> list[Turn]:
    """A run as the turns of an agent, one for each message.

    Beside what the recording says, the agent takes the run as a task, remembers what its customer
    tells it and the profile that it looks up, and keeps the profile and the status of its case as
    records.

    >>> first, *_ = turns(shipped_runs(1)[0])
    >>> [event.type for event in first.events], first.events[0].id
    (['task.started', 'record.put', 'message.added'], '0.0/0.0')
    """
    grouped: list[list[NewEvent]] = [[]]
    task: dict[str, JSON] = {"task": run.task}
    started = NewEvent(
        type="task.started", data={**task, "title": run.attributes.get("instruction")}
    )
    finished = NewEvent(type="task.finished", data={**task, "reward": run.attributes.get("reward")})
    for event in [started, *run_events(run), finished]:
        if event.type == "message.added" and any(
            other.type == "message.added" for other in grouped[-1]
        ):
            grouped.append([])
        grouped[-1].append(event)
        grouped[-1] += _notes(run, event, len(grouped) - 1)
    return [
        Turn(
            message,
            tuple(
                msgspec.structs.replace(
                    event, id=f"{run.name}/{index}.{part}", correlation_id=run.task
                )
                for part, event in enumerate(events)
            ),
            checkpoint=(index + 1) % CHECKPOINT_EVERY == 0 or index + 1 == len(run.messages),
        )
        for index, (message, events) in enumerate(zip(run.messages, grouped, strict=True))
    ]


def planned(run: Run) -> int:
    """How many events a run gives, its checkpoints included."""
    return sum(len(turn.events) + turn.checkpoint for turn in turns(run))


def new_workspace() -> Workspace:
    """The working object before the first message."""
    return Workspace(
        messages_done=0, words=np.zeros(WORDS, np.float32), tools={}, identifiers=set()
    )


def learn(workspace: Workspace, message: Mapping[str, JSON]) -> None:
    """Take one more message into the working object.

    >>> workspace = new_workspace()
    >>> learn(workspace, {"role": "user", "content": "I take HAT136 then"})
    >>> workspace["messages_done"], workspace["identifiers"]
    (1, {'HAT136'})
    """
    text = message.get("content")
    words = text.replace('"', " ").replace(",", " ").split() if isinstance(text, str) else []
    workspace["words"] *= FADING
    for word in words:
        workspace["words"][zlib.crc32(word.lower().encode()) % WORDS] += 1
        stripped = word.strip(".:;!?'()[]{}")
        if len(stripped) == 6 and stripped.isalnum() and stripped.isupper():
            workspace["identifiers"].add(stripped)
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            workspace["tools"][name] = workspace["tools"].get(name, 0) + 1
    workspace["messages_done"] += 1


def plain_json_size(workspace: Workspace) -> int:
    """Bytes of the working object as JSON, the array and the set as lists."""
    plain = {
        **workspace,
        "words": workspace["words"].tolist(),
        "identifiers": sorted(workspace["identifiers"]),
    }
    return len(msgspec.json.encode(plain))


def _notes(run: Run, event: NewEvent, index: int) -> list[NewEvent]:
    """What the agent notes beside an event of the recording."""
    data = event.data
    if not isinstance(data, dict):
        return []
    context: dict[str, JSON] = {"case": run.name, "message": index}
    if event.type == "task.started":
        return [_record("case", {"status": "open"})]
    if event.type == "task.finished":
        return [_record("case", {"status": "closed", "messages": len(run.messages)})]
    if event.type == "message.added" and data.get("role") == "user":
        text = str(data.get("content") or "").replace("###STOP###", "").strip()
        if len(text) >= REMEMBERED_CHARS_MIN:
            return [_memory(text, "customer", context)]
    if event.type == "tool.executed" and data.get("name") == "get_user_details":
        profile = _profile(data.get("result"))
        if profile is not None:
            return [_record("customer", profile), _memory(_told(profile), "profile", context)]
    return []


def _record(key: str, value: JSON) -> NewEvent:
    return NewEvent(type="record.put", data={"key": key, "value": value})


def _memory(text: str, source: str, context: dict[str, JSON]) -> NewEvent:
    return NewEvent(type="memory.stored", data={"text": text, "source": source, "context": context})


def _profile(result: JSON) -> dict[str, JSON] | None:
    try:
        profile: JSON = msgspec.json.decode(result) if isinstance(result, str) else None
    except msgspec.DecodeError:
        return None  # the look-up answered with an error message
    return profile if isinstance(profile, dict) else None


def _told(profile: Mapping[str, JSON]) -> str:
    """The profile of a customer in a sentence."""
    name, address, payments = (
        value if isinstance(value := profile.get(key), dict) else {}
        for key in ("name", "address", "payment_methods")
    )
    kinds = dict.fromkeys(
        str(method.get("source", "")).replace("_", " ")
        for method in payments.values()
        if isinstance(method, dict)
    )
    return (
        f"{name.get('first_name')} {name.get('last_name')} from {address.get('city')} is a "
        f"{profile.get('membership')} member and can pay with {', '.join(kinds) or 'nothing yet'}."
    )
