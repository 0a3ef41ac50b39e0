"""Structured records: each change an event, guarded by versions where the writer cares."""

import asyncio

import pytest

import perdure

VALUES = [None, False, 0, "", [], {}, {"tier": "gold", "seats": ["1A"]}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_a_record_holds_any_json_value(place, value):
    """A record is read back as it was put, here and in another connection."""
    agent = await (await place.connect()).agent("airline/mia")
    event = await agent.records.put("profile of Zoë", value)
    assert event.type == "record.put"
    again = await (await place.connect()).agent("airline/mia")
    for handle in (agent, again):
        assert repr(await handle.records.get("profile of Zoë", "absent")) == repr(value)
        assert await handle.records.version("profile of Zoë") == event.sequence


async def test_a_record_that_is_not_there(store):
    """A missing or deleted record reads as the default, and has version 0."""
    agent = await store.agent("airline/mia")
    assert await agent.records.get("x") is None
    assert await agent.records.get("x", 5) == 5
    assert await agent.records.version("x") == 0
    await agent.records.put("x", 1)
    await agent.records.delete("x")
    assert await agent.records.get("x", 5) == 5
    assert await agent.records.version("x") == 0
    await agent.records.delete("never there")


async def test_an_expected_version_may_be_of_another_writers_change(store):
    """A version that somebody else put is accepted at once, though this handle hasn't seen it."""
    agent = await store.agent("shop/ann")
    await agent.records.put("x", 1)
    other = await store.emit("shop/ann", "record.put", {"key": "x", "value": 2})
    await agent.records.put("x", 3, expected_version=other.sequence)
    assert await agent.records.get("x") == 3


async def test_an_expected_version_guards_a_change(store):
    """A change goes in when the record is at the expected version, and is refused otherwise."""
    agent = await store.agent("airline/mia")
    first = await agent.records.put("x", 1, expected_version=0)
    with pytest.raises(perdure.RecordConflict, match="x"):
        await agent.records.put("x", 2, expected_version=0)
    second = await agent.records.put("x", 2, expected_version=first.sequence)
    with pytest.raises(perdure.RecordConflict):
        await agent.records.delete("x", expected_version=first.sequence)
    assert await agent.records.get("x") == 2
    await agent.records.delete("x", expected_version=second.sequence)
    with pytest.raises(perdure.RecordConflict):
        await agent.records.put("x", 3, expected_version=second.sequence)
    await agent.records.put("x", 3, expected_version=0)
    assert await agent.records.get("x") == 3
    for wrong in (-1, "1", True):
        with pytest.raises(perdure.InvalidData):
            await agent.records.put("x", 4, expected_version=wrong)


async def test_other_events_do_not_disturb_a_version(place):
    """What is recorded meanwhile, of other records or by others, is no conflict for this one."""
    agent = await (await place.connect()).agent("airline/mia")
    other = await place.connect()
    version = (await agent.records.put("x", 1)).sequence
    await agent.records.put("y", 1)
    await other.emit("airline/mia", "note", "unseen")
    await other.emit("airline/mia", "record.put", {"key": "z", "value": 1})
    await agent.records.put("x", 2, expected_version=version)
    assert (await agent.refresh()).records == {"x": 2, "y": 1, "z": 1}


async def test_a_version_that_somebody_else_raised_is_a_conflict(place):
    """A change by another process is noticed even if this one has not read it yet."""
    agent = await (await place.connect()).agent("airline/mia")
    other = await place.connect()
    version = (await agent.records.put("x", 1)).sequence
    await other.emit("airline/mia", "record.put", {"key": "x", "value": "theirs"})
    with pytest.raises(perdure.RecordConflict):
        await agent.records.put("x", "mine", expected_version=version)
    assert await agent.records.get("x") == "theirs"


async def test_of_many_changes_from_one_version_one_wins(store):
    """Concurrent changes that expect the same version: one is recorded, the others conflict."""
    agent = await store.agent("airline/mia")
    version = (await agent.records.put("x", 0)).sequence
    answers = await asyncio.gather(
        *[agent.records.put("x", i, expected_version=version) for i in range(10)],
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, perdure.Event)]
    assert len(won) == 1
    assert sum(isinstance(answer, perdure.RecordConflict) for answer in answers) == 9
    assert await agent.records.get("x") == won[0].data["value"]


async def test_a_counter_of_many_tasks_loses_no_count(store):
    """Read, add one, put with the version read, again on conflict: every addition counts."""
    agent = await store.agent("airline/mia")

    async def add():
        while True:
            version = await agent.records.version("count")
            count = await agent.records.get("count", 0)
            await asyncio.sleep(0)
            try:
                await agent.records.put("count", count + 1, expected_version=version)
            except perdure.RecordConflict:
                continue
            return

    await asyncio.gather(*[add() for _ in range(12)])
    assert await agent.records.get("count") == 12


async def test_find_by_field(store):
    """Find gives the records whose fields have the values, nested ones by a dotted name."""
    agent = await store.agent("airline/mia")
    await agent.records.put("b", {"tier": "gold", "home": {"city": "Rome"}})
    await agent.records.put("a", {"tier": "gold", "home": {"city": "Oslo"}})
    await agent.records.put("c", {"tier": None, "home.city": "Rome"})
    await agent.records.put("d", "gold")
    records = agent.records
    assert list(await records.find(tier="gold")) == ["a", "b"]
    assert list(await records.find(tier="gold", home={"city": "Oslo"})) == ["a"]
    assert list(await records.find({"home.city": "Rome"})) == ["b", "c"]
    assert list(await records.find({"home.city": "Rome"}, tier="gold")) == ["b"]
    assert list(await records.find(tier=None)) == ["c"]
    assert list(await records.find(other=None)) == []
    assert list(await records.find()) == ["a", "b", "c", "d"]


async def test_history_of_a_record(store):
    """History gives every version of a record, deleted and undone ones too, oldest first."""
    agent = await store.agent("airline/mia")
    await agent.records.put("x", 1)
    await agent.records.put("y", "other")
    await agent.records.delete("x")
    await agent.records.put("x", 2)
    await agent.revert(to=1)
    await agent.records.put("x", 3)
    found = [(v.sequence, v.value, v.deleted) async for v in agent.records.history("x")]
    assert found == [(1, 1, False), (3, None, True), (4, 2, False), (6, 3, False)]


async def test_versions_go_back_with_an_undo(store):
    """After an undo a record has its earlier version again, and expects that one."""
    agent = await store.agent("airline/mia")
    first = await agent.records.put("x", 1)
    second = await agent.records.put("x", 2)
    await agent.revert(to=first.sequence)
    assert await agent.records.version("x") == first.sequence
    with pytest.raises(perdure.RecordConflict):
        await agent.records.put("x", 3, expected_version=second.sequence)
    await agent.records.put("x", 3, expected_version=first.sequence)


@pytest.mark.parametrize("key", ["", "a\x00b", "x" * 513, None, 5, "\ud800"], ids=ascii)
async def test_wrong_keys_are_refused(store, key):
    """A record key that is no short printable text is refused by every call."""
    agent = await store.agent("airline/mia")
    for call in (agent.records.get, agent.records.version, agent.records.delete):
        with pytest.raises(perdure.InvalidName):
            await call(key)
    with pytest.raises(perdure.InvalidName):
        await agent.records.put(key, 1)
    assert await agent.sequence() == 0
