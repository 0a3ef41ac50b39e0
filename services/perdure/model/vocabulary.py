"""The built-in event types and the data each of them carries.

Any other type is welcome, with any data. Further fields beside the ones named here are kept.
"""

from typing import Final

import msgspec

from perdure.errors import InvalidData
from perdure.model.event import JSON


class MessageAdded(msgspec.Struct):
    """A chat message in the OpenAI format, further fields as they come."""

    role: str


class PlanGenerated(msgspec.Struct):
    """A plan of any shape; the state holds the newest."""


class DecisionMade(msgspec.Struct):
    """A decision of any shape, for example `{"choice": …, "why": …}`."""


class ToolCalled(msgspec.Struct):
    """A call of a tool; `id` is answered by `tool.executed` or `tool.failed`."""

    name: str
    id: str | None = None
    arguments: JSON = None


class ToolExecuted(msgspec.Struct):
    """The result of a tool."""

    id: str | None = None
    name: str | None = None
    result: JSON = None


class ToolFailed(msgspec.Struct):
    """The failure of a tool."""

    id: str | None = None
    name: str | None = None
    error: JSON = None


class TaskChanged(msgspec.Struct):
    """A task that starts, finishes or fails; events of a task carry its id as `correlationid`."""

    task: str
    title: str | None = None
    next_step: JSON = None
    systems: list[str] = []


class StepChanged(msgspec.Struct):
    """A durable step that starts, completes or fails."""

    step: str


class MemoryStored(msgspec.Struct):
    """A text to remember; the event's id is the memory's."""

    text: str
    source: str | None = None
    context: dict[str, JSON] = {}
    metadata: dict[str, JSON] = {}


class MemoryForgotten(msgspec.Struct):
    """The id of the memory that is no longer recalled."""

    id: str


class CheckpointSaved(msgspec.Struct):
    """An object checkpoint: its content's SHA-256, its bytes before and after compression."""

    name: str
    digest: str
    size: int
    stored: int


class RecordPut(msgspec.Struct):
    """A record's new value."""

    key: str
    value: JSON


class RecordDeleted(msgspec.Struct):
    """The key of the record that is gone."""

    key: str


class AgentForked(msgspec.Struct):
    """The first own event of a fork: whose history it shares, and up to where."""

    parent: str
    at: int


class AgentReverted(msgspec.Struct):
    """Undo: from here on, what counts is the timeline at `to`, then what comes after."""

    to: int


class Lifecycle(msgspec.Struct):
    """An agent that is opened or closed; noted by who wants it in the history."""


BUILT_IN: Final[dict[str, type[msgspec.Struct]]] = {
    "agent.opened": Lifecycle,
    "agent.forked": AgentForked,
    "agent.reverted": AgentReverted,
    "agent.closed": Lifecycle,
    "plan.generated": PlanGenerated,
    "decision.made": DecisionMade,
    "message.added": MessageAdded,
    "tool.called": ToolCalled,
    "tool.executed": ToolExecuted,
    "tool.failed": ToolFailed,
    "task.started": TaskChanged,
    "task.finished": TaskChanged,
    "task.failed": TaskChanged,
    "step.started": StepChanged,
    "step.completed": StepChanged,
    "step.failed": StepChanged,
    "memory.stored": MemoryStored,
    "memory.forgotten": MemoryForgotten,
    "checkpoint.saved": CheckpointSaved,
    "record.put": RecordPut,
    "record.deleted": RecordDeleted,
}

RESERVED: Final = {
    "agent.forked": "agent.fork(at, name=…)",
    "agent.reverted": "agent.revert(to=…)",
    "checkpoint.saved": "agent.checkpoint(name, value)",
}
"""Types that promise more than their data, and the call that keeps the promise."""

_ANY_SHAPE = frozenset({"plan.generated", "decision.made", "agent.opened", "agent.closed"})


def check(event_type: str, data: JSON) -> None:
    """Check the data of a built-in type; other types may carry anything.

    Raises:
        InvalidData: a field is missing or of the wrong type.

    >>> check("message.added", {"role": "user", "content": "hello"})
    >>> check("message.added", "hello")
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: data of message.added: Expected `object`, got `str` (...)
    """
    shape = BUILT_IN.get(event_type)
    if shape is None or event_type in _ANY_SHAPE:
        return
    try:
        msgspec.convert(data, shape)
    except msgspec.ValidationError as error:
        raise InvalidData(
            f"data of {event_type}: {error}", hint="its schema is in schemas/events.schema.json"
        ) from error
