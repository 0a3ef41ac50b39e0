"""What must hold of recorded runs on their way to events."""

import contextlib
import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import InvalidData
from perdure.model import vocabulary
from perdure.model.event import EVENT_BYTES_MAX, JSON, NewEvent, prepared
from perdure.model.runs import Run, parse_run, run_events

LINES = files("perdure").joinpath("cli/data/airline-runs.jsonl").read_bytes().splitlines()


def line(**fields: object) -> bytes:
    """A line with these fields."""
    return json.dumps(fields).encode()


def messages_of(events: list[NewEvent]) -> list[object]:
    """The messages that events carry."""
    return [event.data for event in events if event.type == "message.added"]


def fact(event: NewEvent, key: str) -> JSON:
    """One field of an event's data."""
    assert isinstance(event.data, dict)
    value: JSON = event.data[key]
    return value


# --- Shipped runs --------------------------------------------------------------------------------


def test_the_shipped_runs_are_ten_tasks_some_solved_some_not() -> None:
    """The demo has variety: ten tasks, both rewards, short and long runs."""
    runs = [parse_run(text, number) for number, text in enumerate(LINES, 1)]
    assert (len(runs), len({run.task for run in runs})) == (10, 10)
    assert {0.0, 1.0} == {run.attributes["reward"] for run in runs}
    assert (min(len(r.messages) for r in runs), max(len(r.messages) for r in runs)) == (10, 62)


@pytest.mark.parametrize("number", range(1, len(LINES) + 1))
def test_every_event_of_a_real_run_can_be_recorded(number: int) -> None:
    """Messages come through unchanged, calls and answers pair up, and the data fits its types."""
    source = json.loads(LINES[number - 1])
    run = parse_run(LINES[number - 1], number)
    events = run_events(run)
    assert f"{source['task_id']}.{source['trial']}" == run.name
    assert source["messages"] == messages_of(events)
    assert {event.type for event in events} <= {"message.added", "tool.called", "tool.executed"}
    called = [fact(event, "id") for event in events if event.type == "tool.called"]
    executed = [fact(event, "id") for event in events if event.type == "tool.executed"]
    assert called == executed
    assert sum(len(m.get("tool_calls", ())) for m in source["messages"]) == len(called)
    assert {str(source["task_id"])} == {event.correlation_id for event in events}
    for event in events:
        assert prepared(event).data == event.data
        vocabulary.check(event.type, event.data)


# --- Events --------------------------------------------------------------------------------------


def test_calls_and_answers_follow_their_message() -> None:
    """A message comes first, then what it called or answered, in the order of the run."""
    run = parse_run(
        line(
            messages=[
                {"role": "user", "content": "book"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "book", "arguments": '{"seat": "12A"}'},
                        },
                        {
                            "id": "c2",
                            "type": "function",
                            "function": {"name": "look", "arguments": '{"broken'},
                        },
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "booked"},
            ]
        ),
        1,
    )
    events = run_events(run)
    assert [event.type for event in events] == [
        "message.added",
        "message.added",
        "tool.called",
        "tool.called",
        "message.added",
        "tool.executed",
    ]
    assert events[2].data == {"id": "c1", "name": "book", "arguments": {"seat": "12A"}}
    assert events[3].data == {"id": "c2", "name": "look", "arguments": '{"broken'}
    assert events[5].data == {"id": "c1", "name": "book", "result": "booked"}


def test_only_assistants_call_and_only_named_functions_are_called() -> None:
    """Malformed calls stay in their message and make no event that the vocabulary refuses."""
    broken: list[object] = [None, {}, {"function": 3}, {"id": 7, "function": {"name": None}}]
    good = {"id": 7, "function": {"name": "book"}}
    run = parse_run(
        line(
            messages=[
                {"role": "assistant", "tool_calls": [*broken, good]},
                {"role": "assistant", "tool_calls": "none"},
                {"role": "user", "tool_calls": [good]},
            ]
        ),
        1,
    )
    events = run_events(run)
    assert list(run.messages) == messages_of(events)
    assert [event.data for event in events if event.type == "tool.called"] == [
        {"id": None, "name": "book", "arguments": None}
    ]


def test_a_run_without_a_task_has_no_task_events() -> None:
    """Without a task id there is nothing to start, finish or correlate."""
    events = run_events(parse_run(line(reward=1.0, messages=[{"role": "user"}]), 4))
    assert [NewEvent(type="message.added", data={"role": "user"})] == events


def test_further_facts_are_kept_as_attributes() -> None:
    """Everything of a line but its messages is there for the caller."""
    run = parse_run(line(task_id="t", trial=2, model="m", messages=[]), 1)
    assert run.attributes == {"task_id": "t", "trial": 2, "model": "m"}
    assert (run.task, run.trial, run.name) == ("t", "2", "t.2")


# --- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"task_id": 3, "trial": 1}, "3.1"),
        ({"task_id": "lost-bag", "trial": "b"}, "lost-bag.b"),
        ({"task_id": 0, "trial": 0}, "0.0"),
        ({"task_id": 3}, "9"),
        ({"trial": 1}, "9"),
        ({"task_id": None, "trial": 1}, "9"),
        ({}, "9"),
    ],
)
def test_an_agent_is_named_by_task_and_trial_or_else_by_line(
    fields: dict[str, object], name: str
) -> None:
    """The line number names an agent where task or trial is missing."""
    assert name == parse_run(line(messages=[], **fields), 9).name


@pytest.mark.parametrize(
    "identifier", ["../x", "a/b", "a\0b", "\U0001f600", "x" * 200, "", " ", "-1", "a\n"]
)
def test_hostile_ids_are_refused(identifier: str) -> None:
    """An id that can't be part of an agent's name is an error that says the line."""
    with pytest.raises(InvalidData, match=r"^line 6: "):
        parse_run(line(task_id=identifier, trial=0, messages=[]), 6)


@pytest.mark.parametrize("identifier", [True, 1.5, -1, [], {}])
def test_ids_are_whole_numbers_or_text(identifier: object) -> None:
    """An id of another type, or below zero, is an error."""
    with pytest.raises(InvalidData, match=r"^line 6: "):
        parse_run(line(task_id=identifier, trial=0, messages=[]), 6)


# --- Bad lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is empty"),
        (b"  \n", "it is empty"),
        (b'{"messages": [', "it is not JSON"),
        (b"hello", "it is not JSON"),
        (b"[1]", "it is a list, not an object"),
        (b"null", "it is null, not an object"),
        (b'{"task_id": 1}', "it has no messages"),
        (b'{"messages": {}}', "messages is a dict, not a list"),
        (b'{"messages": ["hi"]}', r"messages\[0\] is a str, not an object"),
        (b'{"messages": [{"role": "user"}, {}]}', r"messages\[1\] has no role"),
        (b'{"messages": [{"role": 1}]}', r"messages\[0\] has no role"),
        (b'{"messages": [{"role": "user", "content": NaN}]}', r'content"\] is nan'),
        (b'{"messages": [], "reward": 1e999}', r'reward"\] is inf'),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "it is not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "it is not UTF-8"),
        (b'{"messages": ' + b"[" * 100_000, "it is nested too deeply"),
        (b'{"messages": []} {}', "it is not JSON"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number_and_reason(text: bytes, reason: str) -> None:
    """The error starts with the line number and says what is wrong with it."""
    with pytest.raises(InvalidData, match=rf"^line 17: .*{reason}"):
        parse_run(text, 17)


def test_a_message_over_the_limit_of_an_event_is_refused() -> None:
    """A run that could only be recorded in part is not read at all."""
    big = {"role": "user", "content": "x" * EVENT_BYTES_MAX}
    with pytest.raises(InvalidData, match=r"^line 2: the data of a message.added takes 1,0"):
        parse_run(line(messages=[{"role": "user"}, big]), 2)
    small = {"role": "user", "content": "x" * 1000}
    assert len(parse_run(line(messages=[small] * 2000), 2).messages) == 2000


def test_a_byte_order_mark_before_the_first_line_is_skipped() -> None:
    """Files saved by editors that write one can be imported."""
    assert parse_run(b"\xef\xbb\xbf" + line(messages=[]), 1).name == "1"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.integers(1, 10**6))
def test_any_bytes_are_a_run_or_refused(text: bytes, number: int) -> None:
    """No line breaks the import in another way than by its one error."""
    with contextlib.suppress(InvalidData):
        assert isinstance(parse_run(text, number), Run)
        return
    with pytest.raises(InvalidData, match=rf"^line {number}: "):
        parse_run(text, number)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "function", "name", "arguments", "type"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool"])},
            optional={
                "content": json_values,
                "tool_calls": st.lists(json_values) | json_values,
                "tool_call_id": json_values,
                "name": json_values,
            },
        ),
        max_size=5,
    )
)
def test_any_messages_give_events_that_can_be_recorded(messages: list[object]) -> None:
    """Messages of any shape come back unchanged, and no event is refused by its type."""
    events = run_events(parse_run(line(task_id=1, trial=0, messages=messages), 1))
    assert messages == messages_of(events)
    for event in events:
        vocabulary.check(event.type, prepared(event).data)
