"""What the recorder writes into Cassandra: rows, indexes and head, whole or not at all, once."""

import datetime as dt
import random
import uuid

import msgspec
import pytest
from tests.stack.cassandra_tables import Place, decided, note, place_of

from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.session import AT_ONCE
from perdure.cassandra.streams import CassandraRecordings
from perdure.model.event import decode
from perdure.model.sequencing import link
from perdure.model.timeline import Revert, Span
from perdure.recorder import buckets
from perdure.recorder.recordings import Written, forked, fresh

AGENT = "airline/mia"


@pytest.fixture
async def place(shared_cluster, store):
    """A store nobody has written to."""
    async with place_of(shared_cluster, store) as place:
        yield place


@pytest.fixture
def small_buckets(monkeypatch):
    """Buckets that are full after seven events."""
    monkeypatch.setattr(buckets, "BUCKET_EVENTS", 7)


async def rows_of(place, agent=AGENT):
    """Everything that the tables of events hold of an agent: cells with their stamps."""
    found = {}
    for bucket in range(20):
        key = (place.store, agent, bucket)
        for table, columns in {
            "events": "sequence, event, WRITETIME(event), last, WRITETIME(last), chain,"
            " WRITETIME(chain), epoch, position, bucket_events, bucket_bytes, writers, lineage,"
            " first, chain_before, time_max",
            "events_by_type": "type, time, sequence",
            "event_ids": "id, sequence, WRITETIME(sequence)",
        }.items():
            statement = await place.session.prepare(
                f"SELECT {columns} FROM {place.tables.keyspace}.{table}"
                " WHERE store = ? AND agent = ? AND bucket = ?"
            )
            rows = await place.session.execute(statement, key)
            if rows:
                found[table, bucket] = [repr(row) for row in rows]
    return found


async def events_of(place, agent=AGENT):
    """The agent's own events, read by somebody who knows nothing yet."""
    table = CassandraEventTable(place.session, place.store, place.generations)
    [stream, *_] = await table.lineage(agent)
    span = Span(agent, stream.forked_at + 1, stream.sequence)
    return [event async for batch in table.read(span) for event in batch.events]


async def test_an_unknown_agent_is_fresh(place):
    """Of an agent that nobody wrote, loading gives a stream without rows."""
    assert await place.load(AGENT) == fresh(AGENT)


async def test_what_was_written_is_loaded(place):
    """The head after each append is what a recorder finds that starts anew."""
    for number in range(5):
        after = await place.record(AGENT, note(number), note(number + 100), writer=f"w{number % 2}")
        assert await place.load(AGENT) == after
    assert after.head.writers == {"w0": 6, "w1": 4}
    assert [event.data for event in await events_of(place)] == [
        {"number": n} for number in range(5) for n in (number, number + 100)
    ]


async def test_a_claim_is_a_head_without_rows(place):
    """A raised epoch is stored without events, of a new agent and of one that has some."""
    for number in (1, 2):
        before = await place.load(AGENT)
        place.position += 1
        after = msgspec.structs.replace(
            before,
            head=msgspec.structs.replace(before.head, epoch=number),
            position=place.position,
            created=True,
        )
        await place.recordings.write(place.store, AGENT, before, after, [])
        assert await place.load(AGENT) == after
        await place.record(AGENT, note(number), epoch=number)
    assert [event.epoch for event in await events_of(place)] == [1, 2]


async def test_buckets_close_and_open(place, small_buckets):
    """Appends go on in the next bucket when one is full; all of them are read as one stream."""
    stream = None
    chain = fresh(AGENT).head.chain
    for number in range(30):
        events = [note(number)] * random.Random(number).randint(1, 5)
        stream = await place.record(AGENT, *events, stream=stream, writer=f"w{number % 3}")
        assert await place.load(AGENT) == stream
    assert stream.bucket >= 8
    events = await events_of(place)
    assert [event.sequence for event in events] == list(range(1, stream.head.sequence + 1))
    for _, data in sorted(
        (decode(data).sequence, data)
        for found in (
            await place.recordings.written_at(place.store, AGENT, stream, range(30))
        ).values()
        for data in found.events
    ):
        chain = link(chain, data)
    assert chain == stream.head.chain


async def test_writers_of_closed_buckets_are_remembered(place, small_buckets):
    """The last number of a writer is known after its bucket was closed."""
    stream = None
    for number in range(40):
        stream = await place.record(AGENT, note(number), stream=stream, writer=f"w{number}")
    wanted = [f"w{number}" for number in range(40)]
    last = await place.recordings.last_of(place.store, AGENT, [*wanted, "nobody"])
    assert stream.head.writers.keys() | last.keys() == set(wanted)
    assert set((stream.head.writers | last).values()) == {1}


async def test_a_hint_of_a_bucket_that_was_never_opened(place, small_buckets):
    """A recorder that stops between hint and batch leaves the stream as it was."""
    stream = None
    for number in range(7):
        stream = await place.record(AGENT, note(number), stream=stream)
    after, _ = decided(stream, AGENT, [note(7)], 7)
    await place.recordings._close(place.tables, place.store, stream, after)
    assert await place.load(AGENT) == stream
    assert len(await events_of(place)) == 7
    await place.record(AGENT, note(7))
    assert len(await events_of(place)) == 8


async def test_the_same_again_changes_nothing(place, small_buckets):
    """Appends that are recorded once more leave every cell as it is, with its stamp."""
    stream = fresh(AGENT)
    writes = []
    for number in range(20):
        after, rows = decided(stream, AGENT, [note(number)] * 2, number)
        writes.append((stream, after, rows))
        stream = after
    for before, after, rows in writes:
        await place.recordings.write(place.store, AGENT, before, after, rows)
    once = await rows_of(place)
    for before, after, rows in writes:
        await place.recordings.write(place.store, AGENT, before, after, rows)
    assert await rows_of(place) == once


async def test_a_zombie_never_wins(place, small_buckets):
    """Old batches that arrive late, cut otherwise and in any order, leave every cell as it is."""
    stream = fresh(AGENT)
    streams, rows = [stream], []
    for number in range(20):
        stream, new = decided(stream, AGENT, [note(number)], number, writer=f"w{number % 2}")
        streams.append(stream)
        rows.append(new)
        await place.recordings.write(place.store, AGENT, streams[-2], stream, new)
    expected = await rows_of(place)
    chance = random.Random(7)
    for _ in range(40):
        start = chance.randrange(20)
        end = start + 1
        while (
            end < 20
            and streams[end + 1].bucket == streams[start + 1].bucket
            and chance.random() < 0.7
        ):
            end += 1
        together = [row for part in rows[start:end] for row in part]
        await place.recordings.write(place.store, AGENT, streams[start], streams[end], together)
    assert await rows_of(place) == expected
    assert await place.load(AGENT) == stream


async def test_an_older_topic_counts_as_before_all(place):
    """Of rows that an older topic brought no offset is known; those of the new one win."""
    before = await place.record(AGENT, note(1))
    newer = CassandraRecordings(place.session, place.generations, 2)
    loaded = await newer.load(place.store, AGENT)
    assert loaded == msgspec.structs.replace(before, position=-1)
    after, rows = decided(loaded, AGENT, [note(2)], 0)
    await newer.write(place.store, AGENT, loaded, after, rows)
    assert await newer.load(place.store, AGENT) == after
    assert [event.data["number"] for event in await events_of(place)] == [1, 2]


async def test_written_at_finds_what_each_append_brought(place, small_buckets):
    """The stored bytes of appends are found by their positions, over several buckets."""
    stream, expected = fresh(AGENT), {}
    for number in range(25):
        expected[number * 10] = Written(stream.head.sequence, [])
        after, rows = decided(stream, AGENT, [note(number)] * (number % 3), number * 10)
        if rows:
            await place.recordings.write(place.store, AGENT, stream, after, rows)
            stream = after
            brought = [row.recorded.data for row in rows]
            expected[number * 10] = expected[number * 10]._replace(events=brought)
    everything = range(0, 250, 10)
    found = await place.recordings.written_at(place.store, AGENT, stream, everything)
    assert found == expected
    last = max(expected)
    assert await place.recordings.written_at(place.store, AGENT, stream, [last, 7]) == {
        last: expected[last],
        7: Written(0, []),
    }
    assert await place.recordings.written_at(place.store, AGENT, stream, []) == {}


async def test_events_are_found_by_id(place, small_buckets):
    """Ids of events are found, in any bucket; others aren't."""
    stream = None
    for number in range(20):
        event = note(number, id=f"given-{number}")
        stream = await place.record(AGENT, event, stream=stream)
    wanted = [f"given-{number}" for number in range(20)]
    found = await place.recordings.by_id(place.store, AGENT, stream, [*wanted, "unknown"])
    assert {name: event.data["number"] for name, event in found.items()} == {
        f"given-{number}": number for number in range(20)
    }


async def test_many_ids_at_once(place):
    """More ids than one request takes are all found."""
    events = [note(number, id=str(uuid.UUID(int=number))) for number in range(AT_ONCE * 20)]
    stream = await place.record(AGENT, *events)
    ids = {event.id for event in events}
    found = await place.recordings.by_id(place.store, AGENT, stream, ids)
    assert found.keys() == ids


async def test_a_fork_finds_its_parents_ids_up_to_the_fork(place, small_buckets):
    """What was done before the fork counts as done in the fork; what came after doesn't."""
    stream = None
    for number in range(20):
        stream = await place.record(AGENT, note(number, id=f"i{number}"), stream=stream)
    table = CassandraEventTable(place.session, place.store, place.generations)
    twin = "airline/twin"
    fork = forked(twin, AGENT, 12, await table.chain_at(AGENT, 12))
    fork = await place.record(twin, note(100, id="own"), stream=fork)
    assert await place.load(twin) == fork
    found = await place.recordings.by_id(
        place.store, twin, fork, [f"i{number}" for number in range(20)] + ["own"]
    )
    assert sorted(found) == sorted([f"i{number}" for number in range(12)] + ["own"])
    assert found["own"].sequence == 13


async def test_events_are_found_by_writer_and_number(place, small_buckets):
    """A writer's events are found by their numbers, near or far back; skipped ones are not."""
    stream = None
    for number in range(1, 31):
        event = note(number, writer=f"w{number % 2}", writer_sequence=number)
        stream = await place.record(AGENT, event, stream=stream)
    wanted = [("w1", 1), ("w0", 2), ("w1", 29), ("w0", 29), ("w0", 16), ("nobody", 1)]
    found = await place.recordings.by_writer(place.store, AGENT, stream, wanted)
    assert {key: event.data["number"] for key, event in found.items()} == {
        ("w1", 1): 1,
        ("w0", 2): 2,
        ("w1", 29): 29,
        ("w0", 16): 16,
    }


async def test_lineage_goes_from_bucket_to_bucket(place, small_buckets):
    """Parent, fork and undo are known in every later bucket."""
    await place.record(AGENT, *[note(n) for n in range(5)])
    table = CassandraEventTable(place.session, place.store, place.generations)
    twin = "airline/twin"
    stream = forked(twin, AGENT, 3, await table.chain_at(AGENT, 3))
    stream = await place.record(twin, note(1), stream=stream)
    before = stream
    place.position += 1
    after, rows = decided(before, twin, [note(2)], place.position)
    stream = msgspec.structs.replace(after, reverts=(Revert(5, 2),))
    await place.recordings.write(place.store, twin, before, stream, rows)
    for number in range(20):
        stream = await place.record(twin, note(number), stream=stream)
    assert stream.bucket > 1
    loaded = await place.load(twin)
    assert (loaded.parent, loaded.forked_at, loaded.reverts) == (AGENT, 3, (Revert(5, 2),))
    assert loaded == stream


async def test_the_largest_append_fits(place):
    """An append of eight megabytes goes into one batch, and is read back."""
    events = [note(number, type="big.one") for number in range(8)]
    events = [msgspec.structs.replace(event, data="x" * 950_000) for event in events]
    after = await place.record(AGENT, *events)
    assert buckets.fits(place.store, AGENT, 8, after.bytes)
    assert [len(event.data) for event in await events_of(place)] == [950_000] * 8
    after = await place.record(AGENT, note(1), stream=after)
    assert after.bucket == 1


async def test_the_most_events_in_one_append(place):
    """As many small events as fit, all with ids to be found by, go into one batch."""
    size = 1 + max(len(row.recorded.data) for row in decided(fresh(AGENT), AGENT, [note(0)], 0)[1])
    count = next(n for n in range(30_000, 0, -100) if buckets.fits(place.store, AGENT, n, n * size))
    events = [note(0, id=f"{number}") for number in range(count)]
    after = await place.record(AGENT, *events)
    assert count > 10_000
    assert await place.load(AGENT) == after
    found = await place.recordings.by_id(place.store, AGENT, after, [f"{count - 1}"])
    assert found[f"{count - 1}"].sequence == count


async def test_stores_never_meet(place):
    """Agents of one name in two stores know nothing of each other."""
    other = Place(place.session, place.catalog, place.tables, f"{place.store}x")
    await place.record(AGENT, note(1, id="i"))
    assert await other.load(AGENT) == fresh(AGENT)
    theirs = await other.record(AGENT, note(2))
    assert await other.recordings.by_id(other.store, AGENT, theirs, ["i"]) == {}
    assert [event.data["number"] for event in await events_of(place)] == [1]


async def test_the_latest_time_so_far_is_kept(place):
    """The head's time is that of the latest event, whatever the order of their times."""
    times = [dt.datetime(2026, 11, day, tzinfo=dt.UTC) for day in (5, 3, 9, 1)]
    for time in times:
        stream = await place.record(AGENT, note(1, time=time))
        assert (await place.load(AGENT)).head.time_max == stream.head.time_max
    assert stream.head.time_max == times[2]
