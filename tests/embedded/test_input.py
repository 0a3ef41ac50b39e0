"""What a caller may give that can't be right: a clear error, and nothing written."""

import asyncio
import datetime as dt
import json
import sqlite3

import pytest

import perdure
from perdure import EventTooLarge, InvalidData, InvalidInput, InvalidName, NewEvent
from perdure.embedded.folder import DATABASE
from perdure.model.event import NESTING_MAX
from perdure.model.upcast import Upcasters

AGENT = "input/one"
HOSTILE = [
    "",
    "x",
    "/",
    "a/",
    "/a",
    "../x",
    "a/..",
    "a/.",
    "a/b/c",
    "a//b",
    "x" * 10_000,
    "a/" + "x" * 10_000,
    "a/b\0c",
    "a/\n",
    "a/b\n",
    "a/b c",
    "a/😀",
    "a/b\ud800",
    "a/%2e%2e",
    "a/b'; DROP TABLE agents; --",
    "a\\b",
    "~/x",
    "-a/b",
    None,
    7,
    b"a/b",
    ["a", "b"],
]


@pytest.fixture
async def agent(tmp_path):
    """An agent with one event, which has to be its only one in the end."""
    async with perdure.connect(tmp_path) as store:
        opened = await store.agent(AGENT)
        await opened.emit("note", 1)
        yield opened
        assert await opened.sequence() == 1
        assert [summary.agent async for summary in store.agents()] == [AGENT]
        assert (await opened.verify()).sound
        connection = sqlite3.connect(tmp_path / DATABASE)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


@pytest.fixture
def store(agent):
    """The store of `agent`."""
    return perdure.Store(agent._session)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:20])
async def test_a_hostile_name_is_refused_by_every_door(agent, store, name):
    """A name that is no `namespace/name` raises InvalidName wherever it is given."""
    with pytest.raises(InvalidName):
        await store.agent(name)
    with pytest.raises(InvalidName):
        store.view(name)
    with pytest.raises(InvalidName):
        await store.emit(name, "note")
    with pytest.raises(InvalidName) as caught:
        await agent.fork(at=1, name=name)
    assert caught.value.hint
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 10_000, "a\ud800", None, 3, "\x1b[31m"])
async def test_a_hostile_key_is_refused(agent, name):
    """A record key or checkpoint name that is empty, endless or unprintable is refused."""
    with pytest.raises(InvalidName):
        await agent.records.put(name, 1)
    with pytest.raises(InvalidName):
        await agent.checkpoint(name, 1)


@pytest.mark.parametrize("kind", ["", " ", "a b", "../x", "x" * 1000, "é", "a\0", None, 3])
async def test_a_hostile_event_type_is_refused(agent, kind):
    """An event type is letters, digits and a few signs, of bounded length."""
    with pytest.raises(InvalidName):
        await agent.emit(kind)


async def test_fifty_megabytes_are_sent_to_a_checkpoint(agent):
    """An event of 50 MB raises EventTooLarge, which says to use a checkpoint."""
    with pytest.raises(EventTooLarge, match="checkpoint"):
        await agent.emit("note", "x" * 50_000_000)
    with pytest.raises(EventTooLarge, match="checkpoint"):
        await agent.records.put("large", ["x" * 1000] * 50_000)
    with pytest.raises(EventTooLarge, match="checkpoint"):
        await agent.emit_many([("note", 1), ("note", "x" * 50_000_000)])


def _nested(depth: int) -> object:
    value: object = 1
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


@pytest.mark.parametrize("depth", [NESTING_MAX + 1, 500, 970, 100_000])
async def test_what_is_nested_too_deeply_is_refused_and_harms_no_other_write(
    agent, tmp_path, depth
):
    """Data too deep to be read back raises InvalidData; what is written beside it goes in."""
    with pytest.raises(InvalidData, match="nested deeper"):
        await agent.emit("note", _nested(depth))
    async with perdure.connect(tmp_path / "other") as other:
        answers = await asyncio.gather(
            other.emit(AGENT, "note", 1),
            other.emit(AGENT, "note", _nested(depth)),
            other.emit(AGENT, "note", 2),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [perdure.Event, InvalidData, perdure.Event]


async def test_the_deepest_data_is_read_back_from_deep_in_a_program(tmp_path):
    """Data as deep as allowed can be written and read with most of the stack in use."""

    async def called_deeply(depth: int, data: object) -> object:
        if depth:
            return await called_deeply(depth - 1, data)
        async with perdure.connect(tmp_path) as store:
            agent = await store.agent(AGENT)
            await agent.emit("plan.generated", data)
            return (await store.view(AGENT).state_at()).plan

    deepest = _nested(NESTING_MAX)
    for calls in (0, 400):
        assert await called_deeply(calls, deepest) == deepest


def _circle() -> list[object]:
    circle: list[object] = []
    circle.append(circle)
    return circle


def _deep() -> list[object]:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    "data",
    [
        float("nan"),
        float("inf"),
        {"a": [1, {"b": -float("inf")}]},
        {1: 2},
        {None: 2},
        {"a": {1, 2}},
        b"bytes",
        "\ud800",
        {"\udfff": 1},
        object(),
        [object],
        1j,
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        _circle(),
        _deep(),
    ],
    ids=lambda data: type(data).__name__,
)
async def test_data_that_is_not_json_is_refused(agent, data):
    """Data that JSON can't hold raises InvalidData; nothing is converted in silence."""
    with pytest.raises(InvalidData) as caught:
        await agent.emit("note", data)
    assert caught.value.message.startswith("data")
    assert caught.value.hint
    with pytest.raises(InvalidData):
        await agent.emit_many([("note", 1), NewEvent(type="note", data=data)])


@pytest.mark.parametrize("number", [True, "3", -1, 1.5, float("nan"), None, [1], 2**70])
async def test_a_number_that_is_no_sequence_is_refused(agent, number):
    """Where a sequence is asked for, only a whole number that can be one is taken."""
    if number is not None:  # None is "the latest", or "does not matter"
        with pytest.raises((InvalidInput, perdure.NotFound)):
            await agent.state_at(number)
        with pytest.raises((InvalidInput, perdure.NotFound)):
            await agent.fork(at=number, name="input/two")
        with pytest.raises((InvalidInput, perdure.SequenceConflict)):
            await agent.emit("note", expected_sequence=number)
        with pytest.raises((InvalidInput, perdure.RecordConflict)):
            await agent.records.put("key", 1, expected_version=number)
    with pytest.raises((InvalidInput, perdure.NotFound)):
        await agent.revert(to=number)


@pytest.mark.parametrize("number", [True, "3", -1, 0, 1.5, 2**53, 2**63, 2**70])
async def test_a_number_that_counts_no_writes_is_refused(agent, number):
    """A writer's sequence and an event's version are whole numbers from 1 on, up to 2**53 - 1."""
    with pytest.raises(InvalidInput):
        await agent.emit("note", writer="w", writer_sequence=number)
    with pytest.raises(InvalidInput):
        await agent.emit("note", version=number)


async def test_the_largest_number_of_a_writer_is_sealed_and_counted_on(tmp_path):
    """A writer that starts at the largest number harms nobody, however many events follow."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        await agent.emit("note", 0, writer="w", writer_sequence=2**53 - 1)
        for n in range(1, 150):
            await agent.emit("note", n, writer="w")
        await agent.close()
        assert [e.writer_sequence async for e in agent.events()][-1] == 2**53 + 148


async def test_a_writers_sequence_without_a_writer_is_refused(agent):
    """Half of the pair that makes a write idempotent is an error, not ignored."""
    with pytest.raises(InvalidData, match="writer"):
        await agent.emit("note", writer_sequence=1)


@pytest.mark.parametrize(
    "time", [dt.datetime(2026, 11, 1), "2026-11-01", "2026-11-01T10:00", "yesterday", 1e9, ""]
)
async def test_a_time_without_zone_is_refused(agent, time):
    """A time that could mean several moments raises InvalidData, wherever it is given."""
    with pytest.raises(InvalidData, match="time"):
        await agent.emit("note", time=time)
    with pytest.raises(InvalidData):
        await agent.state_at(time=time)
    with pytest.raises(InvalidData):
        await agent.state_at(before=time)
    with pytest.raises(InvalidData):
        [event async for event in agent.events(since=time)]


async def test_the_ends_of_time_are_taken_or_refused(tmp_path):
    """The first and last moments can be recorded and found, in any zone, or are refused."""
    east = dt.timezone(dt.timedelta(hours=14))
    moments = [
        dt.datetime.min.replace(tzinfo=dt.UTC),
        dt.datetime.max.replace(tzinfo=dt.UTC),
        dt.datetime.min.replace(tzinfo=east),
        dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=12))),
    ]
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        recorded = 0
        for moment in moments:
            try:
                event = await agent.emit("note", time=moment)
            except InvalidData:
                continue
            recorded += 1
            assert moment == event.time
            assert [event] == [e async for e in agent.events(first=recorded)]
            assert (await agent.state_at(time=moment)).sequence <= recorded
        assert (await agent.verify()).sound


async def test_an_event_type_of_unknown_version_is_told(tmp_path):
    """An event of a version that nothing here lifts raises MissingUpcaster; raw, it still reads."""
    newer = Upcasters()
    newer.upcaster("plan.generated", 1, 9)(lambda data: data)
    async with perdure.connect(tmp_path, upcasters=newer) as store:
        await store.emit(AGENT, "plan.generated", {"later": "form"})
    async with perdure.connect(tmp_path, upcasters=Upcasters()) as store:
        with pytest.raises(InvalidData, match="version 9"):
            await store.emit(AGENT, "plan.generated", {"later": "form"}, version=9)
        view = store.view(AGENT)
        with pytest.raises(perdure.MissingUpcaster, match=r"plan\.generated.*9"):
            await view.state_at()
        [event] = [event async for event in view.events(lift=False)]
        assert (event.version, event.data) == (9, {"later": "form"})


async def test_a_type_nobody_knows_is_kept_and_folded_over(tmp_path):
    """Any type is welcome: it is recorded, and the default state counts it."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        event = await agent.emit("robot.blinked", {"times": 3})
        assert event.sequence == agent.state.sequence == 1
        assert json.dumps(event.to_cloudevent())


@pytest.mark.parametrize("event", [None, "note", ("note",), ("note", 1, 2), {"type": "note"}, 3])
async def test_what_is_no_event_is_refused(agent, event):
    """A list of events that holds something else records none of them."""
    with pytest.raises(InvalidInput):
        await agent.emit_many([("note", 1), event])
