"""Recording events and reading them back."""

import asyncio
import datetime as dt
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure import NewEvent
from perdure.model.event import json_copy

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)

JSON_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.1,
    1.0,
    -0.0,
    5e-324,
    1.7976931348623157e308,
    1e16,
    "",
    "\x00\x1f\x7f\u2028\u2029",
    "Zoë 日本 👩‍🚀 \u202e",
    '"\\/\b\f\n\r\t',
    [],
    {},
    [[[[[]]]]],
    {"": {"": [None, {"a.b": 1}]}},
    {"id": 7, "sequence": "x", "data": [1]},
    {"z": 1, "a": 2, "m": 3},
]


async def history(agent, **options):
    """All events of an agent in a list."""
    return [event async for event in agent.events(**options)]


async def test_sequences_count_from_one_without_gap(store):
    """Events of an agent are numbered 1, 2, 3 … in the order they were emitted."""
    agent = await store.agent("airline/mia")
    answers = [await agent.emit("note", {"i": i}) for i in range(5)]
    answers += await agent.emit_many([("note", {"i": i}) for i in range(5, 12)])
    assert [event.sequence for event in answers] == list(range(1, 13))
    assert [event.position for event in answers][-1] == "airline/mia@12"
    assert await history(agent) == answers


async def test_concurrent_emits_keep_the_order_of_their_calls(store):
    """Emits that wait together are recorded in the order they were called, each once."""
    agent = await store.agent("airline/mia")
    answers = await asyncio.gather(*[agent.emit("note", i) for i in range(200)])
    assert [event.sequence for event in answers] == list(range(1, 201))
    assert [event.data for event in answers] == list(range(200))
    assert [event.data async for event in agent.events()] == list(range(200))


@pytest.mark.parametrize("value", JSON_VALUES, ids=lambda value: ascii(value)[:30])
async def test_every_json_value_survives_exactly(place, value):
    """What is read back, also elsewhere too, equals what was given: value, type and sign."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    answer = await agent.emit("note", value)
    again = await (await place.connect()).agent("airline/mia")
    [event] = await history(again)
    assert repr(event.data) == repr(answer.data) == repr(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_the_copy_that_is_recorded_equals_what_was_given(value):
    """Whatever JSON value an event is given, the copy made of it is the same to the last bit."""
    copied, _ = json_copy("data", value)
    assert repr(copied) == repr(value)


async def test_later_changes_of_the_callers_object_do_not_matter(store):
    """An event holds what was given when it was emitted, not what the object became."""
    agent = await store.agent("airline/mia")
    data = {"role": "user", "content": ["hi"]}
    answer = await agent.emit("message.added", data)
    data["content"].append("there")
    data["role"] = "system"
    expected = {"role": "user", "content": ["hi"]}
    assert answer.data == expected
    assert list(agent.state.messages) == [expected]
    assert [event.data async for event in agent.events()] == [expected]


async def test_objects_changed_while_an_emit_waits_do_not_matter(store):
    """The data is copied when emit is called, before it first waits."""
    agent = await store.agent("airline/mia")
    data = {"n": 1}
    task = asyncio.ensure_future(agent.emit("note", data))
    await asyncio.sleep(0)
    data["n"] = 2
    assert (await task).data == {"n": 1}


@pytest.mark.parametrize(
    "bad",
    [float("nan"), {1: 2}, {"a": {1}}, "\ud800", b"x", NOON, object(), [[], (1, float("inf"))]],
    ids=lambda bad: ascii(bad)[:20],
)
async def test_a_batch_with_one_bad_event_records_nothing(store, bad):
    """emit_many records all of its events or none."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.InvalidData):
        await agent.emit_many([("note", 1), ("note", bad), ("note", 3)])
    assert await agent.sequence() == 0
    assert agent.state.sequence == 0


async def test_a_refused_batch_leaves_nothing_behind(store):
    """A batch that lost against another write is recorded neither wholly nor in part."""
    agent = await store.agent("airline/mia")
    await agent.emit("note", 1, writer="w", writer_sequence=5)
    with pytest.raises(perdure.SequenceConflict):
        await agent.emit_many(
            [("note", 2), NewEvent(type="note", data=3, writer="w", writer_sequence=2)]
        )
    assert [event.data async for event in agent.events()] == [1]


async def test_an_empty_batch_is_nothing(store):
    """emit_many of no events answers no events and records none."""
    agent = await store.agent("airline/mia")
    assert await agent.emit_many([]) == []
    assert await store.emit_many("airline/none", []) == []
    assert [summary.agent async for summary in store.agents()] == ["airline/mia"]


async def test_attributes_are_kept(store):
    """Every attribute that emit takes is read back as it was given, times in UTC."""
    agent = await store.agent("airline/mia")
    time = dt.datetime(2026, 11, 1, 12, 30, 0, 123456, dt.timezone(dt.timedelta(hours=5.5)))
    answer = await agent.emit(
        "note",
        1,
        id="mine",
        time=time,
        source="/crew/tool",
        version=3,
        writer="w",
        writer_sequence=9,
        correlation_id="t-7",
        causation_id="c-1",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    [event] = await history(agent)
    assert event == answer
    assert (event.id, event.source, event.version) == ("mine", "/crew/tool", 3)
    assert (event.time, event.time.utcoffset()) == (time, dt.timedelta(0))
    assert (event.writer, event.writer_sequence) == ("w", 9)
    assert (event.correlation_id, event.causation_id) == ("t-7", "c-1")
    assert event.subject == "airline/mia"
    assert event.epoch == agent.epoch


async def test_expected_sequence_lets_one_of_two_win(store):
    """Of two writers that expect the same sequence, one is recorded and the other is told."""
    await store.emit("airline/mia", "note", 0)
    answers = await asyncio.gather(
        *[store.emit("airline/mia", "note", i, expected_sequence=1) for i in range(8)],
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, perdure.Event)]
    assert [event.sequence for event in won] == [2]
    assert sum(isinstance(answer, perdure.SequenceConflict) for answer in answers) == 7
    assert await store.view("airline/mia").sequence() == 2


async def test_expected_sequence_zero_means_the_first_event(store):
    """Expecting 0 holds for an agent without events, and for no other."""
    event = await store.emit("airline/mia", "note", expected_sequence=0)
    assert event.sequence == 1
    with pytest.raises(perdure.SequenceConflict, match="at sequence 1"):
        await store.emit("airline/mia", "note", expected_sequence=0)
    with pytest.raises(perdure.SequenceConflict):
        await store.emit("airline/mia", "note", expected_sequence=9)


async def test_events_of_a_part(store):
    """First and last choose by sequence, both included; beyond the end there is nothing."""
    agent = await store.agent("airline/mia")
    await agent.emit_many([("note", i) for i in range(1, 11)])

    async def chosen(*given):
        return [event.sequence async for event in agent.events(*given)]

    assert await chosen() == list(range(1, 11))
    assert await chosen(4) == list(range(4, 11))
    assert await chosen(4, 6) == [4, 5, 6]
    assert await chosen(10, 99) == [10]
    assert await chosen(11) == []
    assert await chosen(6, 5) == []
    assert await chosen(1, 0) == []


async def test_events_of_types(store):
    """Types are exact names, or end with a dot and a star for all that start so."""
    agent = await store.agent("airline/mia")
    kinds = ["tool.called", "tool.executed", "toolbox.opened", "tool", "note", "tool.executed.late"]
    for kind in kinds:
        await agent.emit(kind, {"name": "x"})

    async def chosen(types):
        return [event.type async for event in agent.events(types=types)]

    assert await chosen(["note"]) == ["note"]
    assert await chosen(["tool.*"]) == ["tool.called", "tool.executed", "tool.executed.late"]
    assert await chosen(["tool", "tool.called"]) == ["tool.called", "tool"]
    assert await chosen("note") == ["note"]
    assert await chosen([]) == []
    assert await chosen(["too*"]) == []


async def test_events_of_a_time(store):
    """Since is included, until is not, whatever the order of the times and their zones."""
    agent = await store.agent("airline/mia")
    for minute in (0, 2, 1, 2, 3):
        await agent.emit("note", minute, time=NOON + dt.timedelta(minutes=minute))

    async def chosen(**given):
        return [event.data async for event in agent.events(**given)]

    two = NOON + dt.timedelta(minutes=2)
    assert await chosen(since=two) == [2, 2, 3]
    assert await chosen(until=two) == [0, 1]
    assert await chosen(since="2026-11-01T13:01+01:00", until=two) == [1]
    assert await chosen(since=two, first=3, types=["note"]) == [2, 3]


@pytest.mark.parametrize(
    "given",
    [
        {"first": 0},
        {"first": "1"},
        {"first": 1.0},
        {"first": True},
        {"last": -1},
        {"since": dt.datetime(2026, 11, 1)},
        {"until": "2026-11-01T10:00"},
        {"until": "soon"},
        {"since": 7},
    ],
    ids=str,
)
async def test_wrong_bounds_are_refused(store, given):
    """A bound that is no sequence, or no time with a zone, is named in an error."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.InvalidData):
        await history(agent, **given)


async def test_reading_sees_what_was_there_when_it_began(store):
    """An iteration ends where the stream ended when it began, also while others write."""
    agent = await store.agent("airline/mia")
    await agent.emit_many([("note", i) for i in range(3)])
    seen = []
    async for event in agent.events():
        seen.append(event.sequence)
        await agent.emit("note", "more")
    assert seen == [1, 2, 3]


async def test_events_of_an_unknown_agent(store):
    """Reading an agent that is not there says so, and makes none."""
    with pytest.raises(perdure.NotFound, match="airline/nobody"):
        await history(store.view("airline/nobody"))
    assert [summary async for summary in store.agents()] == []


async def test_reading_a_long_history_takes_bounded_memory(store):
    """50,000 events are read in a few megabytes, whatever they take together."""
    filler = "x" * 200
    for start in range(0, 50_000, 1000):
        await store.emit_many(
            "airline/long", [("note", {"i": i, "text": filler}) for i in range(start, start + 1000)]
        )
    view = store.view("airline/long")
    expected = 1
    tracemalloc.start()
    try:
        async for event in view.events():
            assert event.sequence == expected
            expected += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert expected == 50_001
    assert peak < 8_000_000


async def test_data_that_looks_like_the_next_event_is_no_event(store):
    """A span that ends before such data, at it or after it has the events that were recorded."""
    lookalike = {
        "first": {"a": 1, "sequence": 4, "time": "t"},
        "before": [1, {"id": "x", "sequence": 3, "time": "t"}],
        "text": ',{"id":"x","sequence":3,"time":"t"},{"id":"',
        "whole": [{"id": "x"}, {"id": "x", "sequence": 2, "time": "t"}],
    }
    agent = await store.agent("events/lookalike")
    given = await agent.emit_many([("note", "x" * 10_000)] + [("note", lookalike)] * 6)
    for last in range(1, 8):
        assert [event async for event in agent.events(last=last)] == given[:last]
