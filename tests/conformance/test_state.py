"""The folded state, at every point it was ever at."""

import datetime as dt
import random

import pytest
from tests.conformance import reference

import perdure

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


def some_event(chance, i):
    """An event of any type that changes a state, or of one that changes none."""
    kinds = {
        "message.added": {"role": "user", "content": f"hello {i}"},
        "plan.generated": {"steps": [i, i + 1]},
        "decision.made": {"choice": i},
        "tool.called": {"id": f"c{i}", "name": "book", "arguments": {}},
        "tool.executed": {"id": f"c{i}", "name": "book", "result": i},
        "tool.failed": {"id": f"c{i}", "name": "book", "error": "no"},
        "task.started": {"task": f"t{chance.randrange(3)}"},
        "task.finished": {"task": f"t{chance.randrange(3)}"},
        "task.failed": {"task": f"t{chance.randrange(3)}"},
        "custom.thing": [i],
    }
    return chance.choice(list(kinds.items()))


async def live(agent, seed, count):
    """Have an agent do a bit of everything; the randomness is the seed's."""
    chance = random.Random(seed)
    for i in range(count):
        match chance.randrange(15):
            case 0:
                await agent.records.put(f"r{chance.randrange(4)}", {"i": i})
            case 1:
                await agent.records.delete(f"r{chance.randrange(4)}")
            case 2:
                await agent.remember(f"fact {i}")
            case 3 if agent.state.memories.count:
                await agent.forget(chance.choice(list(agent.state.memories.ids)))
            case 4:
                await agent.revert(to=chance.randrange(agent.state.sequence + 1))
            case _:
                await agent.emit(*some_event(chance, i))


@pytest.mark.parametrize("seed", range(3))
async def test_state_at_every_sequence_equals_a_plain_fold(place, seed):
    """At every sequence from 0 to the last, the state is what folding the events by hand gives."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    await live(agent, seed, 90)
    expected = reference.states("airline/mia", [event async for event in agent.events()])
    assert reference.plain(agent.state) == expected[-1]
    view = (await place.connect()).view("airline/mia")
    for sequence, state in enumerate(expected):
        assert reference.plain(await view.state_at(sequence)) == state
    assert await view.state_at() == agent.state


async def test_a_state_never_changes(store):
    """A state that was handed out stays as it was, whatever the agent does later."""
    agent = await store.agent("airline/mia")
    await live(agent, 7, 30)
    kept = agent.state
    before = reference.plain(kept)
    await live(agent, 8, 60)
    assert reference.plain(kept) == before
    assert kept == await agent.state_at(kept.sequence)


async def test_before_the_first_event_there_is_an_empty_state(store):
    """At 0 the state is empty, has the agent's name, and every field that states have."""
    agent = await store.agent("airline/mia")
    assert agent.state == await agent.state_at() == await agent.state_at(0)
    assert reference.plain(agent.state) == reference.initial("airline/mia")
    required = {
        "agent", "sequence", "messages", "plan", "decisions", "tools", "tasks", "records",
        "memories", "checkpoints",
    }  # fmt: skip
    assert required <= set(agent.state.keys())


async def test_asking_for_what_is_not_there_yet(store):
    """A sequence after the last, a wrong one, or two points at once are errors that say so."""
    agent = await store.agent("airline/mia")
    await agent.emit("note")
    with pytest.raises(perdure.NotFound, match="last is 1"):
        await agent.state_at(2)
    for wrong in (-1, "1", 1.0, True):
        with pytest.raises(perdure.InvalidData):
            await agent.state_at(wrong)
    with pytest.raises(perdure.InvalidData):
        await agent.state_at(1, time=NOON)
    with pytest.raises(perdure.NotFound):
        await store.view("airline/nobody").state_at()


async def test_points_in_time(place):
    """At a time is after the last event before the first later one; before leaves it out."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    minutes = [0, 1, 1, 5, 3, 5, 5, 2, 9]
    for minute in minutes:
        await agent.emit("decision.made", minute, time=NOON + dt.timedelta(minutes=minute))
    for minute in range(-1, 11):
        moment = NOON + dt.timedelta(minutes=minute)
        later = [i for i, given in enumerate(minutes) if given > minute]
        not_before = [i for i, given in enumerate(minutes) if given >= minute]
        at = later[0] if later else len(minutes)
        before = not_before[0] if not_before else len(minutes)
        assert (await agent.state_at(time=moment)).sequence == at
        assert (await agent.state_at(before=moment)).sequence == before
        assert (await agent.state_at(time=moment.isoformat())).sequence == at


async def test_points_in_time_of_a_long_history(store):
    """A time is found in a long history with times that jump, as looking at each event finds it."""
    chance = random.Random(5)
    times, now = [], NOON
    for _ in range(2000):
        now += dt.timedelta(seconds=chance.choice([-30, 0, 0, 1, 1, 60]))
        times.append(now)
    for start in range(0, len(times), 150):
        await store.emit_many(
            "airline/mia",
            [
                perdure.NewEvent(type="note", data="x" * 90, time=time)
                for time in times[start : start + 150]
            ],
        )
    view = store.view("airline/mia")
    for moment in [*chance.sample(times, 25), NOON - dt.timedelta(days=1), now]:
        later = next((i for i, time in enumerate(times) if time > moment), len(times))
        not_before = next((i for i, time in enumerate(times) if time >= moment), len(times))
        assert (await view.state_at(time=moment)).sequence == later
        assert (await view.state_at(before=moment)).sequence == not_before


@pytest.mark.parametrize(
    "time", [dt.datetime(2026, 11, 1), "2026-11-01", "yesterday", 5, dt.date(2026, 11, 1)], ids=str
)
async def test_a_time_needs_a_zone(store, time):
    """A time that could mean two moments, or none, is refused."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.InvalidData):
        await agent.state_at(time=time)
    with pytest.raises(perdure.InvalidData):
        await agent.emit("note", time=time)


@pytest.mark.parametrize("text", ["0001-01-01T00:00+01:00", "9999-12-31T23:59:59-01:00"])
async def test_a_time_beyond_all_calendars_is_refused(store, text):
    """A time that has no UTC form is named in an error of perdure's own."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.InvalidData):
        await agent.emit("note", time=dt.datetime.fromisoformat(text))


async def test_diff_says_what_changed(store):
    """Diff names each path that changed between two points, in either direction, and no other."""
    agent = await store.agent("airline/mia")
    await agent.records.put("profile", {"tier": "silver", "seats": ["1A"]})
    await agent.emit("plan.generated", ["look"], time=NOON + dt.timedelta(days=999))
    await agent.records.put("profile", {"tier": "gold", "seats": ["1A", "2B"]})
    await agent.emit("decision.made", {"choice": "refund"})

    async def found(a, b):
        ignored = ("sequence", "record_versions")
        return {
            (difference.path, difference.kind, str(difference.before), str(difference.after))
            for difference in await agent.diff(a, b)
            if not difference.path.startswith(ignored)
        }

    assert await found(2, 4) == {
        ("records.profile.tier", "changed", "silver", "gold"),
        ("records.profile.seats[1]", "added", "None", "2B"),
        ("decisions[0]", "added", "None", "{'choice': 'refund'}"),
    }
    assert await found(4, 2) == {
        ("records.profile.tier", "changed", "gold", "silver"),
        ("records.profile.seats[1]", "removed", "2B", "None"),
        ("decisions[0]", "removed", "{'choice': 'refund'}", "None"),
    }
    assert await agent.diff(3, 3) == []
    assert [str(d) for d in await agent.diff(0, 1) if d.path == "sequence"] == ["sequence: 0 → 1"]


async def test_diff_takes_times(store):
    """The points of a diff may be times as well as sequences."""
    agent = await store.agent("airline/mia")
    await agent.emit("decision.made", 1, time=NOON)
    await agent.emit("decision.made", 2, time=NOON + dt.timedelta(hours=1))
    by_time = await agent.diff(NOON, "2026-11-01T13:00Z")
    assert by_time == await agent.diff(1, 2)
    assert by_time


async def test_reading_ones_own_writes(place):
    """A position that emit gave back is included by a read in any connection."""
    store = await place.connect()
    event = await (await store.agent("airline/mia")).emit("note", 1)
    view = (await place.connect()).view("airline/mia")
    assert (await view.state_at(at_least=event.position)).sequence == 1
    with pytest.raises(perdure.InvalidData):
        await view.state_at(at_least="airline/bob@1")
    with pytest.raises(perdure.NotFound):
        await view.state_at(time="2100-01-01T00:00Z", at_least="airline/mia@9")
    with pytest.raises(perdure.InvalidData):
        await view.state_at(at_least="airline/mia")


async def test_data_that_is_not_what_its_type_promises_changes_nothing(store):
    """A foreign event with odd data is recorded, counted, and harms no state."""
    agent = await store.agent("airline/mia")
    await agent.emit("message.added", {"role": "user", "content": "hi"})
    before = reference.plain(agent.state)
    odd = [None, [], "x", 5, {}, {"task": 5}, {"key": []}, {"key": "k"}, {"id": {}}, {"name": 1}]
    kinds = [
        "message.added", "tool.called", "task.started", "record.put", "record.deleted",
        "memory.stored", "memory.forgotten",
    ]  # fmt: skip
    for kind in kinds:
        for data in odd:
            with_shape = kind == "message.added" and isinstance(data, dict)
            if with_shape or kind == "tool.called":
                continue
            try:
                await agent.emit(kind, data)
            except perdure.InvalidData:
                continue  # refused at the door, as it may be
    after = reference.plain(await agent.state_at())
    for name in ("messages", "plan", "decisions", "memories"):
        assert after[name] == before[name]
