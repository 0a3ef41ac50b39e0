"""What must hold of healing views, judged by the providers' documented rules.

`openai_problems` and `anthropic_problems` are written from the API references of the two providers
and from the refusals their APIs are known for. They share nothing with perdure: a view is right
when they find nothing, whatever perdure thinks of it.
"""

import base64
import binascii
import copy
import json
import re
from collections.abc import Sequence
from importlib.resources import files

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure.errors import InvalidData
from perdure.model.conversation import PROVIDERS, Conversation, Provider, Repair, heal
from perdure.model.event import JSON

Message = dict[str, JSON]

RUNS: list[list[Message]] = [
    json.loads(line)["messages"]
    for line in files("perdure").joinpath("cli/data/airline-runs.jsonl").read_text().splitlines()
]


# --- The providers' rules ------------------------------------------------------------------------

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
OPENAI_FIELDS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "refusal", "audio", "tool_calls", "function_call"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
OPENAI_PARTS = {
    "system": {"text"},
    "developer": {"text"},
    "user": {"text", "image_url", "input_audio", "file"},
    "assistant": {"text", "refusal"},
    "tool": {"text"},
}


def openai_problems(messages: Sequence[object]) -> list[str]:
    """Why Chat Completions would refuse these messages."""
    problems: list[str] = []
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in OPENAI_FIELDS:
            problems.append(f"{index}: no message with a known role")
            continue
        problems += [f"{index}: {problem}" for problem in _openai_message_problems(message)]
        if message["role"] == "tool":
            if message.get("tool_call_id") in waiting:
                waiting.remove(message["tool_call_id"])
            else:
                problems.append(f"{index}: tool message answers no call right before it")
            continue
        if waiting:
            problems.append(f"{index}: tool_call_ids without a response: {waiting}")
        waiting = [call["id"] for call in message.get("tool_calls", [])]
        if len(set(waiting)) < len(waiting):
            problems.append(f"{index}: an id twice in {waiting}")
    if waiting:
        problems.append(f"end: tool_call_ids without a response: {waiting}")
    return problems


def _openai_message_problems(message: dict[str, object]) -> list[str]:
    role, content = message["role"], message.get("content")
    problems = [f"unknown parameter {key}" for key in set(message) - OPENAI_FIELDS[role]]
    name = message.get("name", "none")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append("name does not match the pattern")
    calls = message.get("tool_calls", [])
    if "tool_calls" in message and not calls:
        problems.append("tool_calls is null or too short")
    for call in calls or []:
        problems += _openai_call_problems(call)
    if isinstance(content, list):
        problems += _openai_part_problems(content, role)
    elif not isinstance(content, str) and not (content is None and calls):
        problems.append(f"content is {content!r}")
    if role == "assistant" and not content and not calls:
        problems.append("the assistant says and calls nothing")
    if not isinstance(message.get("refusal"), str | None):
        problems.append("refusal is no text")
    if message.get("function_call") is not None:
        problems.append("function_call is deprecated")
    if message.get("audio") is not None:
        problems.append("an audio that may have expired")
    return problems


def _openai_part_problems(parts: list[object], role: str) -> list[str]:
    problems = [] if parts else ["content is an empty list"]
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    if "refusal" in kinds and len(kinds) > 1:
        problems.append("a refusal beside other parts")
    for part, kind in zip(parts, kinds, strict=True):
        if not isinstance(part, dict) or kind not in OPENAI_PARTS[role]:
            problems.append(f"part of type {kind!r} in a message of role {role}")
        elif set(part) != {"type", kind}:
            problems.append(f"unknown parameter in part {part}")
        elif kind in {"text", "refusal"}:
            if not isinstance(part[kind], str):
                problems.append(f"{kind} is no text")
        elif kind == "image_url":
            if not part[kind].get("url") or part[kind].get("detail", "auto") not in (
                "auto",
                "low",
                "high",
            ):
                problems.append("no url, or an unknown detail")
        elif kind == "input_audio" and part[kind].get("format") not in ("wav", "mp3"):
            problems.append("unknown audio format")
        elif not all(isinstance(value, str) for value in part[kind].values()):
            problems.append("a field that is no text")
    return problems


def _openai_call_problems(call: object) -> list[str]:
    if not isinstance(call, dict) or call.get("type") not in ("function", "custom"):
        return ["a tool call without a known type"]
    kind = call["type"]
    problems = []
    if set(call) != {"id", "type", kind}:
        problems.append(f"fields {set(call)}")
    if not isinstance(call.get("id"), str) or not 1 <= len(call["id"]) <= 40:
        problems.append(f"id {call.get('id')!r}")
    body = call.get(kind)
    text = "arguments" if kind == "function" else "input"
    if not isinstance(body, dict) or set(body) != {"name", text}:
        return [*problems, f"{kind} is {body!r}"]
    if not isinstance(body["name"], str) or not NAME.fullmatch(body["name"]):
        problems.append(f"name {body['name']!r}")
    if not isinstance(body[text], str):
        problems.append(f"{text} is no text")
    elif kind == "function":
        try:
            arguments = json.loads(body[text], parse_constant=_refuse)
        except ValueError:
            problems.append("arguments are not JSON")
        else:
            if not isinstance(arguments, dict):
                problems.append("arguments are no object")
    return problems


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def anthropic_problems(messages: Sequence[object], system: object) -> list[str]:
    """Why the Messages API would refuse these messages."""
    problems: list[str] = [] if isinstance(system, str) else ["system is no text"]
    asked: list[str] = []
    every: list[str] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            problems.append(f"{index}: fields other than role and content")
            continue
        role, blocks = message["role"], message["content"]
        if role != ("user", "assistant")[index % 2]:
            problems.append(f"{index}: role {role}: the user begins, then roles alternate")
        found = _anthropic_block_problems(role, blocks)
        problems += [f"{index}: {problem}" for problem in found]
        if found:
            continue
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if sorted(answered) != sorted(asked):
            problems.append(f"{index}: tool_use {asked} answered by tool_result {answered}")
        asked = [block["id"] for block in blocks if block["type"] == "tool_use"]
        every += asked
    if asked:
        problems.append(f"end: tool_use without tool_result: {asked}")
    if len(set(every)) < len(every):
        problems.append(f"tool_use ids must be unique: {every}")
    if messages and not problems and messages[-1]["role"] == "assistant":
        text = messages[-1]["content"][-1].get("text", "")
        if text != text.rstrip():
            problems.append("final assistant content ends with white space")
    return problems


def _anthropic_block_problems(role: str, blocks: object) -> list[str]:
    if not isinstance(blocks, list) or not blocks:
        return ["no content"]
    kinds = [block.get("type") if isinstance(block, dict) else None for block in blocks]
    allowed = {"text", "tool_use"} if role == "assistant" else {"text", "image", "tool_result"}
    if set(kinds) - allowed:
        return [f"blocks {set(kinds) - allowed} in role {role}"]
    if kinds != sorted(kinds, key=lambda kind: kind != "tool_result"):
        return ["tool_result after other content"]
    return [problem for block in blocks for problem in _block_problems(block)]


def _block_problems(block: dict[str, object]) -> list[str]:
    kind = block.get("type")
    good = False
    if kind == "text":
        text = block.get("text")
        good = isinstance(text, str) and bool(text.strip()) and set(block) == {"type", "text"}
    elif kind == "image":
        return _image_problems(block)
    elif kind == "tool_use":
        good = (
            set(block) == {"type", "id", "name", "input"}
            and re.fullmatch(r"[a-zA-Z0-9_-]+", str(block["id"])) is not None
            and re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", str(block["name"])) is not None
            and isinstance(block["input"], dict)
        )
    elif kind == "tool_result" and not set(block) - {"type", "tool_use_id", "content", "is_error"}:
        content = block.get("content", "nothing")
        if isinstance(content, list) and content:
            return [problem for inner in content for problem in _block_problems(inner)]
        good = isinstance(content, str) and bool(content.strip())
    return [] if good else [f"block {block}"]


def _image_problems(block: dict[str, object]) -> list[str]:
    source = block.get("source")
    if not isinstance(source, dict):
        return ["image without source"]
    if source.get("type") == "url":
        return [] if str(source.get("url")).startswith("https://") else ["image url"]
    try:
        base64.b64decode(source["data"], validate=True)
    except (binascii.Error, ValueError):
        return ["image data is not base64"]
    known = {"image/jpeg", "image/png", "image/gif", "image/webp"}
    return [] if source["media_type"] in known else ["image media type"]


def problems(view: Conversation) -> list[str]:
    """Why the provider of a view would refuse it."""
    json.dumps(view.messages, allow_nan=False)
    if view.provider == "openai":
        return openai_problems(view.messages)
    return anthropic_problems(view.messages, view.system)


# --- Conversations -------------------------------------------------------------------------------

words = st.text(alphabet="abc \n\u00e4", max_size=6)
said_words = words.filter(lambda text: bool(text.strip()))
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
call_ids = st.sampled_from(["c1", "c2", "c3", "call_0_0", "x.y", "é", "", "z" * 50])
picture = "data:image/png;base64," + base64.b64encode(b"picture").decode()
parts = st.sampled_from(
    [
        {"type": "text", "text": "look"},
        {"type": "text", "text": "  "},
        {"type": "text", "text": 5},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "refusal", "refusal": "no"},
        {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "image_url"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "ogg"}},
        {"type": "file", "file": {"file_id": "f-1"}},
        {"type": "tool_use", "id": "c1", "name": "t", "input": {}},
        "plain",
        None,
    ]
)
contents = words | st.none() | st.lists(parts, max_size=3) | junk
arguments = st.sampled_from(
    ['{"a": 1}', "{}", "", '{"a": ', "[1]", "NaN", '{"a": NaN}', None, 3]
) | (st.dictionaries(words, words, max_size=2))
wild_calls = st.fixed_dictionaries(
    {},
    optional={
        "id": call_ids | junk,
        "type": st.sampled_from(["function", "custom", "other", None]),
        "function": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["book", "look", "a.b", "", "n" * 70]) | junk,
                "arguments": arguments | junk,
            },
        )
        | junk,
        "custom": st.fixed_dictionaries({"name": st.just("run")}, optional={"input": junk}),
        "index": st.just(0),
    },
)
wild_messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(
            ["system", "developer", "user", "assistant", "tool", "function", "critic"]
        )
        | junk,
        "content": contents,
        "name": st.sampled_from(["book", "look", "Zoë M", ""]) | junk,
        "tool_call_id": call_ids | junk,
        "tool_calls": st.lists(wild_calls | junk, max_size=3) | junk,
        "function_call": st.fixed_dictionaries(
            {"name": st.sampled_from(["book", "look"])}, optional={"arguments": arguments}
        )
        | junk,
        "refusal": st.sampled_from(["no", None, 3]),
        "audio": st.sampled_from([{"id": "a"}, {"id": "a", "transcript": "yes"}, None]),
        "timestamp": st.just(1),
    },
)


@st.composite
def sound(draw: st.DrawFn) -> list[Message]:
    """A conversation that OpenAI takes as it is, ids of earlier messages used again."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["user", "assistant", "calls", "system"]))
        if kind == "calls":
            ids = draw(
                st.lists(st.sampled_from(["c1", "c2", "c3"]), min_size=1, max_size=3, unique=True)
            )
            messages.append(
                {
                    "role": "assistant",
                    "content": draw(words | st.none()),
                    "tool_calls": [
                        {
                            "id": each,
                            "type": "function",
                            "function": {"name": "book", "arguments": '{"seat": "12A"}'},
                        }
                        for each in ids
                    ],
                }
            )
            messages += [
                {"role": "tool", "tool_call_id": each, "name": "book", "content": draw(words)}
                for each in draw(st.permutations(ids))
            ]
        else:
            messages.append({"role": kind, "content": draw(said_words)})
    return messages


@st.composite
def broken(draw: st.DrawFn) -> list[Message]:
    """A sound conversation that was shuffled, cut, doubled, thinned out or corrupted."""
    messages = draw(sound())
    for damage in draw(
        st.lists(
            st.sampled_from(["shuffle", "cut", "double", "remove", "corrupt", "swap", "stranger"]),
            max_size=4,
        )
    ):
        if not messages:
            break
        at = draw(st.integers(0, len(messages) - 1))
        other = draw(st.integers(0, len(messages) - 1))
        if damage == "shuffle":
            messages = draw(st.permutations(messages))
        elif damage == "cut":
            messages = messages[:at]
        elif damage == "double":
            messages = [*messages[:at], copy.deepcopy(messages[other]), *messages[at:]]
        elif damage == "remove":
            messages = messages[:at] + messages[at + 1 :]
        elif damage == "corrupt":
            key = draw(st.sampled_from(sorted({*messages[at], "content"})))
            messages = [*messages]
            messages[at] = {**messages[at], key: draw(junk)}
        elif damage == "swap":
            messages = [*messages]
            messages[at], messages[other] = messages[other], messages[at]
        else:
            messages = [*messages[:at], draw(wild_messages), *messages[at:]]
    return messages


anything = broken() | st.lists(wild_messages, max_size=6)


def call(identifier: str, name: str = "book", arguments: JSON = "{}") -> JSON:
    """A tool call of a function."""
    return {
        "id": identifier,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def calls(*items: JSON) -> Message:
    """An assistant's message with calls."""
    return {"role": "assistant", "content": None, "tool_calls": list(items)}


def answer(identifier: str, content: JSON = "done") -> Message:
    """A tool's answer."""
    return {"role": "tool", "tool_call_id": identifier, "content": content}


def user(content: JSON = "hello") -> Message:
    """What a user says."""
    return {"role": "user", "content": content}


def kinds(view: Conversation) -> list[str]:
    """The kinds of a view's repairs."""
    return [repair.kind for repair in view.repairs]


# --- Whatever happened, the view is valid --------------------------------------------------------


@given(anything)
def test_any_messages_give_a_view_that_openai_takes(messages: list[Message]) -> None:
    """No rule of Chat Completions is broken, whatever was recorded."""
    assert openai_problems(heal(messages, "openai").messages) == []


@given(anything)
def test_any_messages_give_a_view_that_anthropic_takes(messages: list[Message]) -> None:
    """No rule of the Messages API is broken, whatever was recorded."""
    view = heal(messages, "anthropic")
    assert anthropic_problems(view.messages, view.system) == []


@given(anything)
def test_a_healed_view_heals_to_itself(messages: list[Message]) -> None:
    """Healing a view of OpenAI again changes nothing and reports nothing."""
    once = heal(messages, "openai")
    twice = heal(once, "openai")
    assert (once, ()) == (twice, twice.repairs)


@given(anything, st.sampled_from(PROVIDERS))
def test_what_was_recorded_is_never_changed(messages: list[Message], provider: Provider) -> None:
    """Neither healing nor changing the view afterwards reaches the messages given."""
    before = copy.deepcopy(messages)
    view = heal(messages, provider)
    todo: list[object] = [*view]
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list):
            todo += value.values() if isinstance(value, dict) else value
            value.clear()
    assert before == messages


@given(sound())
def test_what_openai_takes_is_its_own_view(messages: list[Message]) -> None:
    """Nothing that is valid is repaired, call ids that come again in later messages included."""
    assert openai_problems(messages) == []
    view = heal(messages, "openai")
    assert (messages, ()) == (view.messages, view.repairs)


@given(broken())
def test_every_difference_is_reported(messages: list[Message]) -> None:
    """A view without repairs is what was recorded, and one that differs says where."""
    view = heal(messages, "openai")
    assert (view.messages != messages) == bool(view.repairs)
    assert all(0 <= repair.index < len(messages) and repair.detail for repair in view.repairs)


@given(sound(), st.randoms(use_true_random=False))
def test_shuffling_loses_no_words(messages: list[Message], random: object) -> None:
    """What user and assistant said is in the view, in whatever order it was recorded."""
    shuffled = list(messages)
    random.shuffle(shuffled)
    said = sorted(str(m["content"]) for m in messages if m["role"] in {"user", "assistant"})
    view = heal(shuffled, "openai")
    assert said == sorted(str(m["content"]) for m in view if m["role"] in {"user", "assistant"})


@given(broken(), st.sampled_from(PROVIDERS))
@example([calls(call("c1")), answer("c1"), calls(call("c1")), answer("c1")], "anthropic")
def test_call_ids_stay_as_a_conversation_grows(messages: list[Message], provider: Provider) -> None:
    """The calls of a shorter conversation have the same ids in a longer one."""

    def ids(view: Conversation) -> list[str]:
        return re.findall(r'"(?:tool_use_)?id": "(.*?)"', json.dumps(view.messages))

    whole = ids(heal(messages, provider))
    for end in range(len(messages)):
        part = ids(heal(messages[:end], provider))
        assert set(part) <= set(whole)


# --- Recorded runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", RUNS)
def test_an_intact_run_is_its_own_view(messages: list[Message]) -> None:
    """Real runs, ids that come again included, are given to OpenAI as they were recorded."""
    view = heal(messages, "openai")
    assert (messages, ()) == (view.messages, view.repairs)


@pytest.mark.parametrize("messages", RUNS)
def test_a_run_cut_anywhere_gives_a_valid_view(messages: list[Message]) -> None:
    """A crash after any message leaves a valid view, with one repair if a call was waiting."""
    for end in range(len(messages) + 1):
        cut = messages[:end]
        view = heal(cut, "openai")
        waiting = bool(cut) and "tool_calls" in cut[-1]
        assert (["interrupted"] if waiting else []) == kinds(view)
        assert cut == view.messages[:end]
        assert problems(view) == []
        assert problems(heal(cut, "anthropic")) == []


@pytest.mark.parametrize("messages", RUNS)
def test_nothing_of_a_run_is_lost_for_anthropic(messages: list[Message]) -> None:
    """All words, calls and answers of a run are in Anthropic's view, in their order."""
    view = heal(messages, "anthropic")
    expected: list[JSON] = []
    for message in messages[1:]:
        if message["role"] == "tool":
            expected.append(message["content"] or None)
            continue
        if message["content"]:
            expected.append(message["content"])
        for each in message.get("tool_calls", []):
            body = each["function"]
            expected.append([body["name"], json.loads(body["arguments"])])
    actual: list[JSON] = []
    for message in view:
        for block in message["content"]:
            assert isinstance(block, dict)
            if block["type"] == "tool_use":
                actual.append([block["name"], block["input"]])
            else:
                actual.append(block["text"] if block["type"] == "text" else block.get("content"))
    assert expected == actual
    assert messages[0]["content"] == view.system
    assert {"id"} >= set(kinds(view))


# --- Calls and their answers ---------------------------------------------------------------------


def test_a_call_without_an_answer_is_answered_as_interrupted() -> None:
    """The model learns that the call may have taken effect, not that it didn't."""
    view = heal([user(), calls(call("c1")), user("and?")], "openai")
    assert [message["role"] for message in view] == ["user", "assistant", "tool", "user"]
    assert "may or may not have taken effect" in str(view[2]["content"])
    assert (Repair("interrupted", 1, view.repairs[0].detail),) == view.repairs


def test_an_interrupted_call_is_an_error_for_anthropic() -> None:
    """The result of an interrupted call is marked as an error."""
    view = heal([user(), calls(call("c1"))], "anthropic")
    assert [message["role"] for message in view] == ["user", "assistant", "user"]
    assert '"is_error": true' in json.dumps(view[-1])


def test_only_the_open_one_of_parallel_calls_is_answered() -> None:
    """A recorded answer stays as it is beside an interrupted one."""
    view = heal([calls(call("c1"), call("c2")), answer("c2", "booked")], "openai")
    assert [message["tool_call_id"] for message in view[1:]] == ["c2", "c1"]
    assert view[1]["content"] == "booked"


def test_of_two_answers_the_first_counts() -> None:
    """The model went on from the first answer, so a second one is set aside."""
    view = heal([calls(call("c1")), answer("c1", "first"), answer("c1", "second")], "openai")
    assert [message["content"] for message in view[1:]] == ["first"]
    assert kinds(view) == ["set-aside"]


def test_an_answer_without_a_call_is_set_aside() -> None:
    """An answer that belongs to nothing is not sent."""
    view = heal([user(), answer("c9")], "openai")
    assert [user()] == view.messages
    assert str(view.repairs[0]) == "message 1: the call 'c9' of this answer is not there: left out"


@pytest.mark.parametrize(
    "messages",
    [
        [calls(call("c1")), user("still there?"), answer("c1")],
        [answer("c1"), calls(call("c1")), user("still there?")],
    ],
)
def test_an_answer_moves_next_to_its_call(messages: list[Message]) -> None:
    """An answer that was recorded too late or too early follows its call."""
    view = heal(messages, "openai")
    assert [calls(call("c1")), answer("c1"), user("still there?")] == view.messages
    assert kinds(view) == ["moved"]


def test_an_id_that_comes_again_means_its_newest_call() -> None:
    """Answers of two calls with one id go to the call before them."""
    messages = [calls(call("c1")), user(), calls(call("c1")), answer("c1", "second")]
    view = heal(messages, "openai")
    assert kinds(view) == ["interrupted"]
    assert view[-1]["content"] == "second"
    assert "Interrupted" in str(view[1]["content"])


def test_repeated_ids_are_renamed_where_the_provider_wants_it() -> None:
    """OpenAI takes an id again in a later message, Anthropic doesn't; within one none does."""
    later = [user(), calls(call("c1")), answer("c1", "a"), calls(call("c1")), answer("c1", "b")]
    assert later == heal(later, "openai")
    view = heal(later, "anthropic")
    assert re.findall(r'"(?:tool_use_)?id": "(.*?)"', json.dumps(view.messages)) == [
        "c1",
        "c1",
        "c1_2",
        "c1_2",
    ]
    same = heal([calls(call("c1"), call("c1")), answer("c1", "a"), answer("c1", "b")], "openai")
    assert [(m["tool_call_id"], m["content"]) for m in same[1:]] == [("c1", "a"), ("c1_2", "b")]


def test_missing_ids_are_given_to_call_and_answer_alike() -> None:
    """A call and an answer without ids find each other by name, then by order."""
    first, second = call("", "look"), call("", "book")
    messages: list[Message] = [
        calls(first, second),
        {"role": "tool", "name": "book", "content": "booked"},
        {"role": "tool", "content": "looked"},
    ]
    view = heal(messages, "openai")
    given = {c["id"]: c["function"]["name"] for c in view[0]["tool_calls"]}
    assert [(given[m["tool_call_id"]], m["content"]) for m in view[1:]] == [
        ("book", "booked"),
        ("look", "looked"),
    ]
    assert {"id"} == set(kinds(view))


@pytest.mark.parametrize(
    ("recorded", "sent"),
    [
        ('{"seat": "12A"}', {"seat": "12A"}),
        ('{"seat": "12', {"arguments": '{"seat": "12'}),
        ("[1]", {"arguments": "[1]"}),
        ('{"a": NaN}', {"arguments": '{"a": NaN}'}),
        ("", {}),
        (None, {}),
        ({"seat": "12A"}, {"seat": "12A"}),
    ],
)
def test_arguments_are_always_an_object(recorded: JSON, sent: JSON) -> None:
    """Arguments of any kind are an object for the provider, and nothing of them is lost."""
    messages = [user(), calls(call("c1", arguments=recorded)), answer("c1")]
    body = heal(messages, "openai")[1]["tool_calls"][0]["function"]
    assert sent == json.loads(body["arguments"])
    assert sent == heal(messages, "anthropic")[1]["content"][0]["input"]


def test_ids_that_a_provider_refuses_are_replaced() -> None:
    """An id that is too long or has other characters is replaced in call and answer alike."""
    for given_id in ("z" * 50, "x.y/\u00e9"):
        messages = [user(), calls(call(given_id), call(given_id[:-1])), answer(given_id)]
        for provider in PROVIDERS:
            view = heal(messages, provider)
            assert problems(view) == []
            assert "done" in json.dumps(view.messages)
    assert "x.y" in json.dumps(heal([user(), calls(call("x.y"))], "openai").messages)


def test_the_old_function_format_is_written_in_the_new_one() -> None:
    """function_call and the role function become a tool call and its answer."""
    messages: list[Message] = [
        user(),
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "42"},
    ]
    for provider in PROVIDERS:
        view = heal(messages, provider)
        assert problems(view) == []
        assert "42" in json.dumps(view.messages)
        assert "interrupted" not in kinds(view)
        assert "legacy" in kinds(view)


# --- What is said --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", []])
def test_an_assistant_that_says_nothing_is_dropped(content: JSON) -> None:
    """An empty message of the assistant is left out for both."""
    messages = [user(), {"role": "assistant", "content": content}, user("hello?")]
    assert [user(), user("hello?")] == heal(messages, "openai").messages
    assert [message["role"] for message in heal(messages, "anthropic")] == ["user"]
    assert "dropped" in kinds(heal(messages, "openai"))


def test_what_the_provider_has_no_field_for_is_left_out() -> None:
    """Fields and roles that OpenAI refuses are reported, not sent."""
    messages: list[Message] = [
        {"role": "user", "content": "hello", "timestamp": 1, "name": "Zoë M"},
        {"role": "critic", "content": "hm"},
        calls({**call("c1"), "index": 0}),
        answer("c1"),
    ]
    view = heal(messages, "openai")
    assert view[0] == {"role": "user", "content": "hello", "name": "Zo__M"}
    assert sorted(kinds(view)[:2]) + kinds(view)[2:] == ["field", "name", "set-aside", "field"]


@pytest.mark.parametrize("nothing", [None, []])
def test_a_message_with_no_calls_has_no_list_of_calls(nothing: JSON) -> None:
    """OpenAI refuses null and the empty list where calls would be."""
    messages = [user(), {"role": "assistant", "content": "hi", "tool_calls": nothing}]
    view = heal(messages, "openai")
    assert [user(), {"role": "assistant", "content": "hi"}] == view.messages
    assert kinds(view) == ["field"]


def test_a_refusal_is_heard() -> None:
    """A refusal reaches both, alone as a refusal, beside other parts as text."""
    alone = {"role": "assistant", "content": None, "refusal": "No."}
    beside = [{"type": "text", "text": "Sorry."}, {"type": "refusal", "refusal": "No."}]
    for message in (alone, {"role": "assistant", "content": beside}):
        for provider in PROVIDERS:
            view = heal([user(), message], provider)
            assert problems(view) == []
            assert '"No."' in json.dumps(view.messages)


@pytest.mark.parametrize("blank", ["", " \n", [{"type": "text", "text": " "}]])
def test_anthropic_gets_no_blank_text(blank: JSON) -> None:
    """White space is not sent to Anthropic, neither as words nor as an answer."""
    messages = [
        {"role": "system", "content": blank},
        user("hi"),
        {**calls(call("c1")), "content": blank},
        answer("c1", blank),
        user(blank),
    ]
    view = heal(messages, "anthropic")
    assert problems(view) == []
    assert (view.system, [m["role"] for m in view]) == ("", ["user", "assistant", "user"])


def test_what_is_no_message_is_left_out() -> None:
    """A value that is no object, from a foreign producer, is reported and not sent."""
    view = heal([user(), "hello", None], "openai")
    assert ([user()], ["set-aside", "set-aside"]) == (view.messages, kinds(view))


def test_pictures_reach_anthropic_as_images() -> None:
    """Data and https pictures are image blocks for the user, a note where none are allowed."""
    data: JSON = {"type": "image_url", "image_url": {"url": picture}}
    link: JSON = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    view = heal([user([data, link]), {"role": "assistant", "content": [data]}], "anthropic")
    assert [block["source"]["type"] for block in view[0]["content"]] == ["base64", "url"]
    assert view[1]["content"] == [{"type": "text", "text": "[image_url: left out]"}]
    assert kinds(view) == ["content"]


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,AAAAA", "data:image/tiff;base64,AAAA", "http://example.com/a"]
)
def test_pictures_that_anthropic_refuses_are_a_note(url: str) -> None:
    """Broken base64, other formats and links without encryption don't make a request fail."""
    view = heal([user([{"type": "image_url", "image_url": {"url": url}}])], "anthropic")
    assert view[0]["content"] == [{"type": "text", "text": "[image_url: left out]"}]
    assert kinds(view) == ["content"]


def test_system_messages_are_apart_for_anthropic() -> None:
    """System and developer texts are joined; one from within the conversation is reported."""
    messages: list[Message] = [
        {"role": "system", "content": "Be brief."},
        user(),
        {"role": "developer", "content": "Be kind."},
    ]
    view = heal(messages, "anthropic")
    assert view.system == "Be brief.\n\nBe kind."
    assert [Repair("moved", 2, view.repairs[0].detail)] == list(view.repairs)
    assert messages == heal(messages, "openai")


def test_a_conversation_for_anthropic_begins_with_the_user_and_ends_without_space() -> None:
    """An assistant that speaks first is preceded by the user; space at the end is cut."""
    view = heal([{"role": "assistant", "content": "Hi there \n"}], "anthropic")
    assert [message["role"] for message in view] == ["user", "assistant"]
    assert view[1]["content"] == [{"type": "text", "text": "Hi there"}]
    assert kinds(view) == ["inserted", "content"]


def test_an_unknown_provider_is_refused() -> None:
    """The error names what was given and what is known."""
    with pytest.raises(InvalidData, match=r"'acme' is not known \(one of openai, anthropic\)"):
        heal([], "acme")
