"""Chat messages as they are stored, read into turns in which every tool call has its answer.

What is common to all providers: who is speaking, which calls there are, which answer belongs to
which call, and under which ids. How a turn is written for one provider is in `views`.

Invariants:
- A turn with calls has exactly one answer for each of them, recorded or interrupted.
- Call ids are valid for the provider and unique where it wants them to be.
- Nothing is left out or changed without a `Repair` that says so, and the input is never changed.
- Ids of earlier turns don't depend on later ones: a view of a longer conversation starts like the
  view of a shorter one, and a provider's prompt cache goes on to hold.
"""

import dataclasses
import re
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from perdure.model.event import JSON

Provider: TypeAlias = Literal["openai", "anthropic"]

RepairKind: TypeAlias = Literal[
    "interrupted",
    "set-aside",
    "moved",
    "dropped",
    "inserted",
    "id",
    "name",
    "arguments",
    "content",
    "field",
    "legacy",
]

ID_CHARS_MAX: Final[dict[Provider, int]] = {"openai": 40, "anthropic": 64}
"""The longest tool call id. OpenAI refuses longer ones ("string too long. Expected a string with
maximum length 40", on some endpoints 64); Anthropic names a pattern only, 64 stays clear of it."""

NAME_CHARS_MAX: Final = 64
"""The longest name of a function or of a participant (OpenAI; Anthropic takes 128)."""

_ID = {
    "openai": re.compile(f".{{1,{ID_CHARS_MAX['openai']}}}", re.DOTALL),
    "anthropic": re.compile(f"[a-zA-Z0-9_-]{{1,{ID_CHARS_MAX['anthropic']}}}"),
}
_NAME = re.compile(f"[a-zA-Z0-9_-]{{1,{NAME_CHARS_MAX}}}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclasses.dataclass(frozen=True, slots=True)
class Repair:
    """One thing that a view shows otherwise than it was recorded.

    Attributes:
        kind: what was done: `interrupted` (a call without an answer got one that says so),
            `set-aside` (left out: nothing it belongs to), `moved`, `dropped` (left out: empty),
            `inserted`, or what was rewritten: `id`, `name`, `arguments`, `content`, `field`,
            `legacy` (an old form written in the new one).
        index: of the message in what was given, from 0 on.
        detail: a sentence for people.

    >>> str(Repair("moved", 4, "the answer of call 'c1' now follows its call"))
    "message 4: the answer of call 'c1' now follows its call"
    """

    kind: RepairKind
    index: int
    detail: str

    def __str__(self) -> str:
        return f"message {self.index}: {self.detail}"


@dataclasses.dataclass(slots=True)
class Call:
    """A tool call. `arguments` is the JSON text of an object; of a custom tool, its input.

    `given` is the id that was recorded, None where there is none; `id` the one the view uses.
    """

    given: str | None
    name: str
    arguments: str
    custom: bool = False
    id: str = ""


@dataclasses.dataclass(slots=True)
class Turn:
    """One message, and with it the answers of its calls, in the order they are sent.

    An answer is its call with the turn that recorded it, or None where it was interrupted.
    """

    index: int
    role: str
    message: dict[str, JSON]
    calls: list[Call] = dataclasses.field(default_factory=list)
    answers: "list[tuple[Call, Turn | None]]" = dataclasses.field(default_factory=list)


def read_turns(messages: Sequence[JSON], provider: Provider, repairs: list[Repair]) -> list[Turn]:
    """The turns of a conversation; what had to be repaired is added to `repairs`.

    >>> turns = read_turns([{"role": "tool", "tool_call_id": "c", "content": "lost"}], "openai", [])
    >>> turns
    []
    """
    said = _read(messages, repairs)
    turns = _paired(said, repairs)
    _give_ids(turns, provider, repairs)
    return turns


def valid_name(name: str) -> str:
    """A name as providers take it: letters, digits, `_` and `-`, 1 to 64 of them.

    >>> valid_name("search.flights")
    'search_flights'
    """
    return _NOT_IN_NAMES.sub("_", name)[:NAME_CHARS_MAX]


def json_text(value: JSON) -> str:
    """The compact JSON of a value.

    >>> json_text({"a": [1]})
    '{"a":[1]}'
    """
    return msgspec.json.encode(value).decode()


def shown(value: object) -> str:
    """A value in a sentence: its repr, cut short.

    >>> shown("x" * 100)[-6:]
    'xxx...'
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- Who speaks, and which calls there are -------------------------------------------------------


def _read(messages: Sequence[JSON], repairs: list[Repair]) -> list[Turn]:
    said = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            repairs.append(
                Repair("set-aside", index, f"it is {shown(message)}, not a message: left out")
            )
            continue
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            repairs.append(
                Repair("set-aside", index, f"no provider knows the role {shown(role)}: left out")
            )
            continue
        turn = Turn(index, "tool" if role == "function" else role, message)
        if role == "function":
            repairs.append(Repair("legacy", index, "role function is written as role tool"))
        if role == "assistant":
            turn.calls = _calls(message, index, repairs)
        said.append(turn)
    return said


def _calls(message: dict[str, JSON], index: int, repairs: list[Repair]) -> list[Call]:
    items = message.get("tool_calls")
    calls = []
    if isinstance(items, list):
        for position, item in enumerate(items):
            call = _call(item, index, repairs)
            if call is None:
                repairs.append(
                    Repair("set-aside", index, f"tool call {position} names no function: left out")
                )
            else:
                calls.append(call)
    elif items is not None:
        repairs.append(Repair("field", index, f"tool_calls is {shown(items)}, no list: left out"))
    legacy = message.get("function_call")
    if legacy is None:
        return calls
    if calls:
        repairs.append(Repair("legacy", index, "function_call beside tool_calls is left out"))
        return calls
    call = _call({"function": legacy, "type": "function"}, index, repairs)
    if call is None:
        repairs.append(Repair("set-aside", index, "function_call names no function: left out"))
        return calls
    repairs.append(Repair("legacy", index, "function_call is written as a tool call"))
    return [call]


def _call(item: JSON, index: int, repairs: list[Repair]) -> Call | None:
    if not isinstance(item, dict):
        return None
    custom = item.get("type") == "custom"
    body = item.get("custom" if custom else "function")
    if not isinstance(body, dict):
        return None
    name = body.get("name")
    if not isinstance(name, str) or not name:
        return None
    if _NAME.fullmatch(name) is None:
        repairs.append(
            Repair("name", index, f"the tool {shown(name)} is called {valid_name(name)!r}")
        )
    if not custom and item.get("type") != "function":
        repairs.append(
            Repair("field", index, f"a tool call of type {shown(item.get('type'))} is a function")
        )
    extra = sorted({*item} - {"id", "type", "custom" if custom else "function"}) + sorted(
        {*body} - {"name", "input" if custom else "arguments"}
    )
    if extra:
        repairs.append(
            Repair("field", index, f"left out of a tool call: {shown(', '.join(extra))}")
        )
    given = item.get("id")
    return Call(
        given=given if isinstance(given, str) and given else None,
        name=valid_name(name),
        arguments=_input(body.get("input"), index, repairs)
        if custom
        else _arguments(body.get("arguments"), index, repairs),
        custom=custom,
    )


def _input(value: JSON, index: int, repairs: list[Repair]) -> str:
    if isinstance(value, str):
        return value
    repairs.append(Repair("arguments", index, "the input of a custom tool is written as text"))
    return "" if value is None else json_text(value)


def _arguments(value: JSON, index: int, repairs: list[Repair]) -> str:
    """The JSON text of an object: as it came if it is one, otherwise with what came inside."""
    if isinstance(value, str):
        try:
            parsed: JSON = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return value
    if value is None or (isinstance(value, str) and not value.strip()):
        repairs.append(Repair("arguments", index, "a tool call without arguments gets {}"))
        return "{}"
    if isinstance(value, dict):
        repairs.append(Repair("arguments", index, "arguments given as an object are JSON text"))
        return json_text(value)
    repairs.append(
        Repair(
            "arguments",
            index,
            f"the arguments {shown(value)} are no JSON object: they are put into one",
        )
    )
    return json_text({"arguments": value})


# --- Which answer belongs to which call ----------------------------------------------------------


def _paired(said: list[Turn], repairs: list[Repair]) -> list[Turn]:
    """Give every call its answer, and leave out answers that no call waits for.

    An id may come again in a later turn (real agents do that), so an answer belongs to the newest
    call before it. Of two answers the first counts: it is the one that the model went on from.
    """
    found: dict[int, tuple[Turn, Call]] = {}  # position of an answer -> whose it is
    answered: set[int] = set()  # id() of calls; all of them live in `said`
    repeated: set[int] = set()
    waiting: dict[int, dict[str, deque[Call]]] = {}  # position of a turn -> id -> open calls
    newest: dict[str, int] = {}  # call id -> position of the newest turn that has it
    stray: list[tuple[int, int | None]] = []  # answer, the turn with calls before it
    before: int | None = None
    for position, turn in enumerate(said):
        if turn.calls:
            before = position
            queues: dict[str, deque[Call]] = {}
            for call in turn.calls:
                if call.given is not None:
                    queues.setdefault(call.given, deque()).append(call)
                    newest[call.given] = position
            waiting[position] = queues
        elif turn.role == "tool":
            identifier = _answer_id(turn)
            if identifier is None or identifier not in newest:
                stray.append((position, before))
                continue
            owner = newest[identifier]
            if waiting[owner][identifier]:
                call = waiting[owner][identifier].popleft()
                found[position] = (said[owner], call)
                answered.add(id(call))
            else:
                repeated.add(position)
    _adopt(said, stray, found, answered)
    for position, turn in enumerate(said):
        if turn.role == "tool" and position not in found:
            why = (
                "is answered already, the first answer counts"
                if position in repeated
                else "is not there"
            )
            repairs.append(
                Repair(
                    "set-aside",
                    turn.index,
                    f"the call {shown(_answer_id(turn))} of this answer {why}: left out",
                )
            )
    return _joined(said, found, repairs)


def _adopt(
    said: list[Turn],
    stray: list[tuple[int, int | None]],
    found: dict[int, tuple[Turn, Call]],
    answered: set[int],
) -> None:
    """Find calls for answers whose id no earlier call has: a later call, or one without an id."""
    later: dict[str, deque[tuple[int, Call]]] = {}
    for position, turn in enumerate(said):
        for call in turn.calls:
            if call.given is not None and id(call) not in answered:
                later.setdefault(call.given, deque()).append((position, call))
    for position, before in stray:
        turn = said[position]
        identifier = _answer_id(turn)
        candidates = later.get(identifier) if identifier is not None else None
        # Sorted by position, and answers come in order: what lies before this one is of no use
        # to the next either.
        while candidates and candidates[0][0] < position:
            candidates.popleft()
        if candidates:
            owner, call = candidates.popleft()
        elif before is not None and (open_call := _open_call(said[before], turn, answered)):
            owner, call = before, open_call
        else:
            continue
        found[position] = (said[owner], call)
        answered.add(id(call))


def _open_call(owner: Turn, answer: Turn, answered: set[int]) -> Call | None:
    """The first open call that an answer fits where one of the two has no id; same names first."""
    identifier, name = _answer_id(answer), answer.message.get("name")
    open_calls = [
        call
        for call in owner.calls
        if id(call) not in answered and (identifier is None or call.given is None)
    ]
    for call in open_calls:
        if isinstance(name, str) and call.name == valid_name(name):
            return call
    return open_calls[0] if open_calls and not (isinstance(name, str) and name) else None


def _joined(
    said: list[Turn], found: dict[int, tuple[Turn, Call]], repairs: list[Repair]
) -> list[Turn]:
    turns: list[Turn] = []
    answers: dict[int, list[tuple[Call, Turn | None]]] = {}  # index of a turn -> its answers
    last: Turn | None = None  # the turn that answers may follow without being moved
    for position, turn in enumerate(said):
        if turn.role != "tool":
            turns.append(turn)
            last = turn
            continue
        if position not in found:
            continue
        owner, call = found[position]
        answers.setdefault(owner.index, []).append((call, turn))
        if owner is not last:
            repairs.append(
                Repair(
                    "moved",
                    turn.index,
                    f"the answer of call {shown(call.given)} now follows its call in message "
                    f"{owner.index}",
                )
            )
    for turn in turns:
        turn.answers = answers.get(turn.index, [])
        recorded = {id(call) for call, _ in turn.answers}
        for call in turn.calls:
            if id(call) not in recorded:
                turn.answers.append((call, None))
                repairs.append(
                    Repair(
                        "interrupted",
                        turn.index,
                        f"the call of {call.name} has no answer: answered as interrupted",
                    )
                )
    return turns


def _answer_id(turn: Turn) -> str | None:
    value = turn.message.get("tool_call_id")
    return value if isinstance(value, str) and value else None


# --- Under which ids -----------------------------------------------------------------------------


def _give_ids(turns: list[Turn], provider: Provider, repairs: list[Repair]) -> None:
    used: set[str] = set()
    following: dict[str, int] = {}
    for turn in turns:
        if provider == "openai":
            # OpenAI wants ids unique within one message, and its own models repeat them in later
            # ones; Anthropic refuses that ("`tool_use` ids must be unique").
            used, following = set(), {}
        for position, call in enumerate(turn.calls):
            given = call.given
            if given is not None and given not in used and _ID[provider].fullmatch(given):
                call.id = given
            else:
                fallback = f"call_{turn.index}_{position}"
                call.id = _free_id(fallback if given is None else given, used, following)
                why = (
                    "a call without an id"
                    if given is None
                    else f"the call id {shown(given)}, which "
                    + ("came before" if given in used else "the provider does not take")
                )
                repairs.append(Repair("id", turn.index, f"{why}: the id is now {call.id!r}"))
            used.add(call.id)
        for call, answer in turn.answers:
            if answer is not None and call.id == call.given and _answer_id(answer) != call.id:
                repairs.append(
                    Repair("id", answer.index, f"an answer without its call's id gets {call.id!r}")
                )


def _free_id(wanted: str, used: set[str], following: dict[str, int]) -> str:
    # 28 leaves room for a counter, and for what else a provider may put around it.
    base = _NOT_IN_NAMES.sub("_", wanted)[:28]
    if base not in used:
        return base
    number = following.get(base, 2)
    while f"{base}_{number}" in used:
        number += 1
    following[base] = number + 1
    return f"{base}_{number}"
