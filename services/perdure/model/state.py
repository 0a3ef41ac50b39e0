"""The default state of an agent, and the fold that makes it from events.

Invariants:
- A `State` never changes: a fold makes a new one, sharing what stayed the same.
- Folding is total: an event whose data is not what its type promises (it may come from a foreign
  producer) changes `agent` and `sequence` alone.
- The cost of an event does not depend on how many came before.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from perdure.model.event import JSON, Event
from perdure.model.series import Map, Series


class _Fields(msgspec.Struct, frozen=True):
    """A value that reads as attributes and as keys: `state.plan` is `state["plan"]`."""

    def __getitem__(self, name: str) -> object:
        if name in self.__struct_fields__:
            return getattr(self, name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.__struct_fields__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__struct_fields__)

    def keys(self) -> tuple[str, ...]:
        """The names of the fields."""
        return self.__struct_fields__


class Tools(_Fields, frozen=True):
    """What tools were asked and answered: the data of `tool.called`, `.executed` and `.failed`."""

    calls: Series[JSON] = msgspec.field(default_factory=Series)
    results: Series[JSON] = msgspec.field(default_factory=Series)
    failures: Series[JSON] = msgspec.field(default_factory=Series)


class Action(_Fields, frozen=True):
    """What an agent did last for a task: the event's type, sequence and, of a tool, its name."""

    type: str
    sequence: int
    name: str | None = None


class Task(_Fields, frozen=True):
    """An ongoing or ended task. `started` and `ended` are sequences.

    `last_action` is the newest event that carries the task's id as `correlationid`; `systems` are
    the external systems that were touched, in the order they were.
    """

    status: str
    started: int
    ended: int | None = None
    title: str | None = None
    last_action: Action | None = None
    next_step: JSON = None
    systems: tuple[str, ...] = ()
    data: Map[JSON] = msgspec.field(default_factory=Map)


class Memories(_Fields, frozen=True):
    """Which memories there are: `ids` maps each to the sequence that stored it."""

    ids: Map[int] = msgspec.field(default_factory=Map)
    count: int = 0


class SavedObject(_Fields, frozen=True):
    """An object checkpoint: the SHA-256 of its content, bytes before and after compression."""

    digest: str
    size: int
    stored: int
    sequence: int


class State(_Fields, frozen=True):
    """What an agent is at one sequence. Every field is also a key: `state["messages"]`.

    Attributes:
        agent: the agent's name.
        sequence: of the last event in this state; 0 before the first.
        messages: the conversation, each the data of a `message.added`.
        plan: the data of the newest `plan.generated`.
        decisions: the data of each `decision.made`.
        tools: calls, results and failures.
        tasks: by task id.
        records: the structured records, by key.
        record_versions: the sequence that last put each record.
        memories: ids and count of what can be recalled.
        checkpoints: the newest object checkpoint of each name.

    >>> State(agent="airline/mia").messages
    Series([])
    """

    agent: str
    sequence: int = 0
    messages: Series[dict[str, JSON]] = msgspec.field(default_factory=Series)
    plan: JSON = None
    decisions: Series[JSON] = msgspec.field(default_factory=Series)
    tools: Tools = msgspec.field(default_factory=Tools)
    tasks: Map[Task] = msgspec.field(default_factory=Map)
    records: Map[JSON] = msgspec.field(default_factory=Map)
    record_versions: Map[int] = msgspec.field(default_factory=Map)
    memories: Memories = msgspec.field(default_factory=Memories)
    checkpoints: Map[SavedObject] = msgspec.field(default_factory=Map)


_set = msgspec.structs.force_setattr
_replace = msgspec.structs.replace


def fold(state: State, events: Iterable[Event]) -> State:
    """The state after `events`, which follow on `state` in its timeline.

    >>> import datetime as dt
    >>> said = Event(id="1", type="message.added", subject="airline/mia", source="/", sequence=1,
    ...              time=dt.datetime.now(dt.UTC), writer="w", writer_sequence=1,
    ...              data={"role": "user", "content": "hello"})
    >>> fold(State(agent="airline/mia"), [said]).messages
    Series([{'role': 'user', 'content': 'hello'}])
    """
    # One private copy is changed in place by all events of a batch, then handed out for good.
    new = copy.copy(state)
    added: dict[str, list[JSON]] = {event_type: [] for event_type in _GROWING}
    kept: list[Event] = []
    event = None
    for event in events:
        items = added.get(event.type)
        if items is not None:
            items.append(event.data)
        elif event.type in _KEEPING:
            kept.append(event)
        elif (handler := _HANDLERS.get(event.type)) is not None:
            handler(new, event)
        if event.correlation_id is not None and event.correlation_id in new.tasks:
            _touch(new, event)
    if event is not None:
        _grow(new, added)
        if kept:
            _keep(new, kept)
        _set(new, "sequence", event.sequence)
        _set(new, "agent", event.subject)
    return new


# Nothing else reads what these two kinds change, so a batch changes it in one go.
_GROWING: Final = (
    "message.added",
    "decision.made",
    "tool.called",
    "tool.executed",
    "tool.failed",
)
_KEEPING: Final = frozenset({"record.put", "record.deleted"})


def _grow(state: State, added: dict[str, list[JSON]]) -> None:
    messages, decisions, calls, results, failures = (added[name] for name in _GROWING)
    if messages:
        said = [message for message in messages if type(message) is dict]
        _set(state, "messages", state.messages.extend(said))
    if decisions:
        _set(state, "decisions", state.decisions.extend(decisions))
    if calls or results or failures:
        tools = state.tools
        tools = Tools(
            tools.calls.extend(calls) if calls else tools.calls,
            tools.results.extend(results) if results else tools.results,
            tools.failures.extend(failures) if failures else tools.failures,
        )
        _set(state, "tools", tools)


def _plan(state: State, event: Event) -> None:
    _set(state, "plan", event.data)


def _task(state: State, event: Event) -> None:
    data = event.data
    if type(data) is not dict or not isinstance(data.get("task"), str):
        return
    key = str(data["task"])
    status = {"task.started": "running", "task.finished": "finished"}.get(event.type, "failed")
    before = state.tasks.get(key)
    task = before or Task(status=status, started=event.sequence)
    title, systems = data.get("title"), data.get("systems")
    facts = task.data
    for name, value in data.items():
        if name not in {"task", "title", "systems", "next_step"}:
            facts = facts.set(name, value)
    task = _replace(
        task,
        status=status,
        ended=None if status == "running" else event.sequence,
        title=title if isinstance(title, str) else task.title,
        next_step=data.get("next_step", task.next_step if status == "running" else None),
        systems=_united(task.systems, systems),
        data=facts,
    )
    _set(state, "tasks", state.tasks.set(key, task))


def _touch(state: State, event: Event) -> None:
    if event.type.startswith("task.") or event.correlation_id is None:
        return
    task = state.tasks[event.correlation_id]
    data = event.data if type(event.data) is dict else {}
    name = data.get("name", data.get("step"))
    action = Action(event.type, event.sequence, name if isinstance(name, str) else None)
    task = _replace(
        task,
        last_action=action,
        next_step=data.get("next_step", task.next_step),
        systems=_united(task.systems, data.get("systems")),
    )
    _set(state, "tasks", state.tasks.set(event.correlation_id, task))


def _united(known: tuple[str, ...], more: object) -> tuple[str, ...]:
    if not isinstance(more, list):
        return known
    return known + tuple(
        dict.fromkeys(name for name in more if isinstance(name, str) and name not in known)
    )


def _keep(state: State, events: Iterable[Event]) -> None:
    """Put and delete records."""
    values: dict[str, JSON] = {}
    versions: dict[str, int] = {}
    gone: set[str] = set()
    for event in events:
        data = event.data
        if type(data) is not dict or not isinstance(key := data.get("key"), str):
            continue
        if event.type == "record.deleted":
            values.pop(key, None)
            versions.pop(key, None)
            gone.add(key)
        elif "value" in data:
            values[key], versions[key] = data["value"], event.sequence
            gone.discard(key)
    _set(state, "records", state.records.updated(values, without=gone))
    _set(state, "record_versions", state.record_versions.updated(versions, without=gone))


def _memory_stored(state: State, event: Event) -> None:
    if type(event.data) is dict and isinstance(event.data.get("text"), str):
        ids = state.memories.ids.set(event.id, event.sequence)
        _set(state, "memories", Memories(ids, len(ids)))


def _memory_forgotten(state: State, event: Event) -> None:
    if type(event.data) is dict and isinstance(event.data.get("id"), str):
        ids = state.memories.ids.without(str(event.data["id"]))
        _set(state, "memories", Memories(ids, len(ids)))


def _checkpoint(state: State, event: Event) -> None:
    data = event.data
    if type(data) is not dict:
        return
    name, digest = data.get("name"), data.get("digest")
    size, stored = data.get("size"), data.get("stored")
    if (
        isinstance(name, str)
        and isinstance(digest, str)
        and isinstance(size, int)
        and isinstance(stored, int)
    ):
        saved = SavedObject(digest, size, stored, event.sequence)
        _set(state, "checkpoints", state.checkpoints.set(name, saved))


_HANDLERS: Final[dict[str, Callable[[State, Event], None]]] = {
    "plan.generated": _plan,
    "task.started": _task,
    "task.finished": _task,
    "task.failed": _task,
    "memory.stored": _memory_stored,
    "memory.forgotten": _memory_forgotten,
    "checkpoint.saved": _checkpoint,
}


def builtins(value: object) -> object:
    """The JSON form of one of perdure's containers, for msgspec's encoders."""
    if isinstance(value, Series):
        return value.to_list()
    if isinstance(value, Map):
        return value.to_dict()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _container(kind: Any, value: Any) -> object:  # noqa: ANN401 - a dec_hook of msgspec
    origin = getattr(kind, "__origin__", kind)
    if origin is Series and isinstance(value, list):
        return Series.adopt(value)
    if origin is Map and isinstance(value, dict):
        item = _ITEM_TYPES.get(getattr(kind, "__args__", (None,))[0])
        if item is not None:
            value = msgspec.convert(value, item, dec_hook=_container)
        return Map(value)
    raise TypeError(f"{kind} is no container of a state")


_ITEM_TYPES: Final[dict[object, object]] = {
    Task: dict[str, Task],
    SavedObject: dict[str, SavedObject],
    int: dict[str, int],
}

_encoder = msgspec.json.Encoder(enc_hook=builtins)
_decoder = msgspec.json.Decoder(State, dec_hook=_container)


def encode(state: State) -> bytes:
    """The JSON of a state; equal states give equal bytes, as long as messages came in one order."""
    return _encoder.encode(state)


def decode(data: bytes) -> State:
    """A state from its JSON.

    Raises:
        msgspec.DecodeError: the bytes are no state.

    >>> decode(encode(State(agent="airline/mia", plan=["look"]))).plan
    ['look']
    """
    return _decoder.decode(data)
