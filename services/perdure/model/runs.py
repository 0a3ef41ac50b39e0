"""Recorded runs of agents: JSON lines of chat messages in the OpenAI format, to events.

Invariants:
- A line is read completely or not at all: what `parse_run` gives back can be recorded as it is.
- The `message.added` events of a run carry its messages, unchanged and in order.
- The same line gives the same events, so that importing it again can add nothing.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import msgspec

from perdure.errors import EventTooLarge, InvalidData, InvalidName
from perdure.model import names
from perdure.model.event import EVENT_BYTES_MAX, JSON, NewEvent, json_copy

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One recorded run.

    Attributes:
        task: the `task_id` as text; None where the line has none.
        trial: the `trial` as text; None where the line has none.
        name: of the agent, without its namespace.
        messages: what was said, in order, in the OpenAI chat format.
        attributes: everything else of the line, such as `reward` and `instruction`.
    """

    task: str | None
    trial: str | None
    name: str
    messages: Sequence[dict[str, JSON]]
    attributes: Mapping[str, JSON]


def parse_run(line: bytes, number: int) -> Run:
    """Read a line of a file of recorded runs; `number` is its line number, from 1 on.

    A line is a JSON object with `messages` (a list of objects, each with a `role`) and, if it
    likes, `task_id` and `trial` (each a whole number or text) and anything else. The agent's name
    is `<task_id>.<trial>`; where one of the two is missing or null it is `<number>` alone: a name
    with no full stop, which no named run of the same file has.

    Raises:
        InvalidData: the line is not such an object, holds what an event can't (NaN, a lone
            surrogate, a message over the limit of an event), or names an agent that is not
            allowed; the message starts with the line's number.

    >>> run = parse_run(b'{"task_id": 7, "trial": 0, "messages": [{"role": "user"}]}', 1)
    >>> run.name, list(run.messages)
    ('7.0', [{'role': 'user'}])
    >>> parse_run(b'{"messages": []}', 12).name
    '12'
    >>> parse_run(b'{"messages": "hello"}', 3)
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: line 3: messages is a str, not a list (put the chat messages there)
    """
    where = f"line {number}"
    value = _decoded(line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line, where)
    if not isinstance(value, dict):
        raise InvalidData(
            f"{where}: it is {_kind(value)}, not an object",
            hint='a run is {"messages": [...]}',
        )
    task = _identifier(value.get("task_id"), "task_id", where)
    trial = _identifier(value.get("trial"), "trial", where)
    name = str(number) if task is None or trial is None else f"{task}.{trial}"
    try:
        names.agent_name(f"runs/{name}")  # any namespace: the run's own part is what is checked
    except InvalidName as error:
        raise InvalidData(f"{where}: {error.message}", hint=error.hint) from error
    run = Run(
        task=task,
        trial=trial,
        name=name,
        messages=_messages(value, where),
        attributes={key: item for key, item in value.items() if key != "messages"},
    )
    # No event can be over the limit when the whole line is not; a long line is rare.
    if len(line) > EVENT_BYTES_MAX:
        _check_sizes(run, where)
    return run


def run_events(run: Run) -> list[NewEvent]:
    """The events of a run, in the order in which they happened.

    Each message is a `message.added` whose data is the message. Each tool call of an assistant
    follows its message as `tool.called` (`arguments` parsed where they are a JSON object, as they
    came otherwise), each answer of a tool as `tool.executed` (`name` from the call where the
    answer has none). A call that names no function is in its message alone. All events of a run
    with a task id carry it as `correlationid`.

    >>> run = parse_run(b'{"messages": [{"role": "user", "content": "Hi"}]}', 1)
    >>> [event.type for event in run_events(run)]
    ['message.added']
    """
    events: list[NewEvent] = []

    def happened(event_type: str, data: JSON) -> None:
        events.append(NewEvent(type=event_type, data=data, correlation_id=run.task))

    called: dict[str, str] = {}  # tool call id -> name; a repeated id means its newest call
    for message in run.messages:
        happened("message.added", message)
        for call in _calls(message):
            happened("tool.called", call)
            if isinstance(identifier := call["id"], str):
                called[identifier] = str(call["name"])
        if message["role"] == "tool":
            happened("tool.executed", _answer(message, called))
    return events


def _decoded(line: bytes, where: str) -> JSON:
    if not line.strip():
        raise InvalidData(f"{where}: it is empty", hint="a run is one line of JSON")
    try:
        value: JSON = msgspec.json.decode(line)
    except RecursionError as error:
        raise InvalidData(f"{where}: it is nested too deeply", hint="flatten it") from error
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"{where}: it is not UTF-8 ({error.reason} at byte {error.start})",
            hint="save the file as UTF-8",
        ) from error
    except msgspec.MsgspecError as error:
        _explain(line, where)
        raise InvalidData(f"{where}: it is not JSON: {error}", hint="one object a line") from error
    return value


def _explain(line: bytes, where: str) -> None:
    """Raise InvalidData that names the place, if only NaN, an infinity or a surrogate is wrong.

    msgspec refuses them with a reason that does not say what they are; Python's own reader takes
    them, and what it read is only looked at.
    """
    try:
        lenient = json.loads(line)
    except (ValueError, RecursionError):
        return
    json_copy(f"{where}: run", lenient, bytes_max=len(line) * 2)


def _messages(value: dict[str, JSON], where: str) -> tuple[dict[str, JSON], ...]:
    if "messages" not in value:
        raise InvalidData(f"{where}: it has no messages", hint="put the chat messages there")
    items = value["messages"]
    if not isinstance(items, list):
        raise InvalidData(
            f"{where}: messages is {_kind(items)}, not a list", hint="put the chat messages there"
        )
    messages = []
    for index, message in enumerate(items):
        if not isinstance(message, dict):
            raise InvalidData(
                f"{where}: messages[{index}] is {_kind(message)}, not an object",
                hint='a message is {"role": ..., "content": ...}',
            )
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidData(
                f"{where}: messages[{index}] has no role",
                hint="one of system, developer, user, assistant, tool",
            )
        messages.append(message)
    return tuple(messages)


def _identifier(value: JSON, key: str, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InvalidData(
            f"{where}: {key} is {_kind(value)}, neither a whole number nor text",
            hint="leave it out to name the agent by the line number",
        )
    if value == "":
        raise InvalidData(
            f"{where}: {key} is empty", hint="leave it out to name the agent by the line number"
        )
    return str(value)


def _check_sizes(run: Run, where: str) -> None:
    for event in run_events(run):
        try:
            json_copy(f"the data of a {event.type}", event.data)
        except EventTooLarge as error:
            raise InvalidData(f"{where}: {error.message}", hint="shorten it") from error


def _calls(message: Mapping[str, JSON]) -> list[dict[str, JSON]]:
    """The data of `tool.called` of each call of an assistant's message."""
    items = message.get("tool_calls")
    if message["role"] != "assistant" or not isinstance(items, list):
        return []
    calls: list[dict[str, JSON]] = []
    for item in items:
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(function, dict):
            continue
        name = function.get("name")
        if not isinstance(name, str):
            continue
        calls.append(
            {
                "id": _text(item.get("id")),
                "name": name,
                "arguments": _arguments(function.get("arguments")),
            }
        )
    return calls


def _arguments(value: JSON) -> JSON:
    if not isinstance(value, str):
        return value
    try:
        parsed: JSON = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value


def _answer(message: Mapping[str, JSON], called: Mapping[str, str]) -> dict[str, JSON]:
    identifier = _text(message.get("tool_call_id"))
    name = _text(message.get("name"))
    if name is None and identifier is not None:
        name = called.get(identifier)
    return {"id": identifier, "name": name, "result": message.get("content")}


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None


def _kind(value: object) -> str:
    name = type(value).__name__
    return "null" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
