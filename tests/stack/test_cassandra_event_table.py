"""Reading streams from Cassandra: the same answers as the embedded store's, and no gap passes."""

import datetime as dt
import random

import msgspec
import pytest
from tests.conformance.places import backend
from tests.stack.cassandra_tables import note, place_of

import perdure
from perdure.cassandra import event_rows, event_table
from perdure.cassandra.cells import microseconds
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.streams import CassandraRecordings
from perdure.cassandra.tables import Tables
from perdure.errors import Corrupt, NotFound
from perdure.model.event import encode
from perdure.model.sequencing import Head, Recorded, link
from perdure.model.timeline import Span, history
from perdure.recorder import buckets
from perdure.recorder.recordings import Row, forked, fresh

AGENT = "airline/mia"


@pytest.fixture
async def place(shared_cluster, store):
    """A store nobody has written to."""
    async with place_of(shared_cluster, store) as place:
        yield place


@pytest.fixture
def table(place):
    """The read side, which knows nothing yet."""
    return CassandraEventTable(place.session, place.store, place.generations)


@pytest.fixture
def small(monkeypatch):
    """Buckets of seven events, and pages of sixteen."""
    monkeypatch.setattr(buckets, "BUCKET_EVENTS", 7)
    monkeypatch.setattr(event_rows, "BATCH_BYTES", 1)


async def read(table, span):
    """The events of a span."""
    return [event async for batch in table.read(span) for event in batch.events]


async def listed(batches):
    """The items of batches."""
    return [item async for batch in batches for item in batch]


async def findings(table, agent):
    """How many events `verify` looked at, and what it found."""
    steps = [step async for step in table.verify(agent)]
    return sum(count for count, _ in steps), [each for _, found in steps for each in found]


async def copy(source, place):
    """Record everything of another store as a recorder would, in appends of any size."""
    chance = random.Random(5)
    for summary in await listed(source.agents("")):
        agent = summary.agent
        [own, *_] = await source.lineage(agent)
        stream = fresh(agent)
        if own.parent is not None:
            reader = CassandraEventTable(place.session, place.store, place.generations)
            spans = history(await reader.lineage(own.parent), own.forked_at)
            chain = await reader.chain_at(spans[-1].agent, own.forked_at)
            stream = forked(agent, own.parent, own.forked_at, chain)
        events = await read(source, Span(agent, own.forked_at + 1, own.sequence))
        while events or not stream.created:
            count = chance.randint(1, 9)
            part, events = events[:count], events[count:]
            place.position += 1
            head = stream.head
            rows = []
            for event in part:
                data = encode(event)
                chain = link(head.chain, data)
                time = max(head.time_max or event.time, event.time)
                writers = head.writers | {event.writer: event.writer_sequence}
                head = Head(agent, event.sequence, summary.epoch, chain, time, writers)
                rows.append(Row(Recorded(event, data, chain), place.position))
            size = sum(len(row.recorded.data) for row in rows)
            after = msgspec.structs.replace(
                buckets.placed(stream, len(rows), size),
                head=msgspec.structs.replace(head, epoch=summary.epoch),
                position=place.position,
                reverts=own.reverts,
                created=True,
            )
            await place.recordings.write(place.store, agent, stream, after, rows)
            stream = after


async def lives(store):
    """Agents with a history: forks of forks, undo, times out of order, names of all kinds."""
    chance = random.Random(3)
    start = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    agents = []
    for name in ["airline/mia", "airline/a.b", "air/z", "air-line/x", "b/1", "b/10", "b/2"]:
        agent = await store.agent(name)
        for number in range(chance.randint(1, 40)):
            time = start + dt.timedelta(minutes=number + chance.randint(-5, 5))
            await agent.emit_many(
                [perdure.NewEvent(type=f"t{number % 3}", data={"n": number}, time=time)]
            )
        agents.append(agent)
    for number in range(6):
        parent = chance.choice(agents)
        at = chance.randint(1, parent.state.sequence)
        twin = await parent.fork(at=at, name=f"forks/{number}")
        await twin.emit_many([("more", {"n": n}) for n in range(chance.randint(0, 20))])
        await twin.revert(to=chance.randint(1, at))
        agents.append(twin)
    await store.agent("quiet/one")


async def test_answers_equal_the_embedded_stores(place, table, small, tmp_path):
    """Lineage, heads, events, times, chains and lists are those of the same lives on one folder."""
    async with perdure.connect(tmp_path) as store:
        await lives(store)
        source = backend(store).events
        await copy(source, place)
        summaries = await listed(source.agents(""))
        assert await listed(table.agents("")) == summaries
        for prefix in [
            "a",
            "air",
            "air/",
            "airline/",
            "airline/m",
            "b/1",
            "forks",
            "nobody",
            "b/2",
        ]:
            assert await listed(table.agents(prefix)) == await listed(source.agents(prefix))
        for name in [summary.agent for summary in summaries]:
            lineage = await source.lineage(name)
            assert await table.lineage(name) == lineage
            assert await table.head(name) == await source.head(name)
            spans = history(lineage, lineage[0].sequence)
            for span in spans:
                events = await read(source, span)
                assert await read(table, span) == events
                stored = [data async for page in table.read_stored(span) for data in page]
                assert stored == [encode(event) for event in events]
            times = {microseconds(e.time) for span in spans for e in await read(source, span)}
            for time in sorted(times)[::3]:
                for inclusive in (True, False):
                    for moved in (time - 1, time, time + 1):
                        assert await table.sequence_at(
                            spans, moved, inclusive=inclusive
                        ) == await source.sequence_at(spans, moved, inclusive=inclusive)
            assert await findings(table, name) == await findings(source, name)


async def test_parts_of_a_stream(place, table, small):
    """Any span gives exactly its events, wherever it starts and ends."""
    stream = None
    for number in range(40):
        stream = await place.record(AGENT, note(number), stream=stream)
    chance = random.Random(1)
    for _ in range(60):
        first = chance.randint(1, 40)
        last = chance.randint(first, 40)
        events = await read(table, Span(AGENT, first, last))
        assert [event.sequence for event in events] == list(range(first, last + 1))
    assert await read(table, Span(AGENT, 5, 4)) == []


async def test_a_reader_sees_what_comes_later(place, table, small):
    """A reader that has looked at a stream reads on in buckets that were opened since."""
    stream = None
    for number in range(30):
        stream = await place.record(AGENT, note(number), stream=stream)
        assert (await table.head(AGENT)).sequence == number + 1
        assert len(await read(table, Span(AGENT, 1, number + 1))) == number + 1


async def test_leaving_early_is_harmless(place, table, small):
    """A reader that stops in the middle leaves nothing behind."""
    stream = None
    for number in range(40):
        stream = await place.record(AGENT, note(number), stream=stream)
    batches = table.read(Span(AGENT, 1, 40))
    assert (await anext(batches)).events[0].sequence == 1
    await batches.aclose()
    assert len(await read(table, Span(AGENT, 1, 40))) == 40


async def test_nobody_is_not_found(table):
    """Every question about an agent that isn't there says so."""
    with pytest.raises(NotFound, match="airline/mia"):
        await table.head(AGENT)
    with pytest.raises(NotFound):
        await table.lineage(AGENT)
    with pytest.raises(NotFound):
        await read(table, Span(AGENT, 1, 1))
    with pytest.raises(NotFound):
        await table.chain_at(AGENT, 1)
    with pytest.raises(NotFound):
        await findings(table, AGENT)
    assert await listed(table.agents("")) == []


async def test_events_of_a_type(place, table, small):
    """By type, time and sequence exactly the fitting events come, in their order."""
    stream = None
    for number in range(60):
        event = note(number, type=f"t{number % 4}")
        stream = await place.record(AGENT, event, stream=stream)
    events = await read(table, Span(AGENT, 1, 60))

    async def found(types, **bounds):
        return [e async for batch in table.by_type(AGENT, types, **bounds) for e in batch.events]

    assert await found(["t1", "t3"]) == [e for e in events if e.type in {"t1", "t3"}]
    assert await found(["t2"], first=11, last=31) == [e for e in events[10:31] if e.type == "t2"]
    since, until = microseconds(events[20].time), microseconds(events[41].time)
    assert await found(["t0", "t1"], since=since, until=until) == [
        e for e in events[20:42] if e.type in {"t0", "t1"}
    ]
    assert await found(["other"]) == []
    assert await found([]) == []


async def test_many_agents_are_listed_by_name(place, table, monkeypatch):
    """A list goes on over its pages, by name, each agent once, from any name on."""
    monkeypatch.setattr(event_table, "AGENTS_PAGE", 5)
    monkeypatch.setattr(event_table, "NAMESPACES_PAGE", 3)
    names = [f"n{number % 13}/a{number}" for number in range(80)]
    names += ["n1-x/a", "n1.x/a", "n/a", "n10/z"]
    for name in names:
        await place.record(name, note(1))
    assert [agent.agent for agent in await listed(table.agents(""))] == sorted(names)
    for prefix in ["n1", "n1/", "n10/a", "n12", "n2/a1", "x"]:
        expected = sorted(name for name in names if name.startswith(prefix))
        assert [agent.agent for agent in await listed(table.agents(prefix))] == expected
        for after in ["", "n1/a14", "n1/a15", "n10", "n11/a3", "z"]:
            rest = [name for name in expected if name > after]
            found = await listed(table.agents(prefix, after=after))
            assert [agent.agent for agent in found] == rest


async def test_an_agent_that_was_only_listed_is_none(place, table):
    """What a recorder wrote before it was stopped at its first event is no agent."""
    await place.recordings._list(place.tables, place.store, AGENT, 0)
    assert await listed(table.agents("")) == []
    await place.record(AGENT, note(1))
    assert [agent.agent for agent in await listed(table.agents(""))] == [AGENT]


async def run(place, cql):
    """Change a table behind perdure's back; `{}` is a table's keyspace and its bucket's key."""
    key = f"store = '{place.store}' AND agent = '{AGENT}'"
    await place.session.execute(cql.replace("KS", place.tables.keyspace).replace("KEY", key))


DAMAGES = {
    "DELETE FROM KS.events WHERE KEY AND bucket = 1 AND sequence = 10": "missing in Cassandra",
    "DELETE FROM KS.events WHERE KEY AND bucket = 1": "is missing",
    "UPDATE KS.events SET event = 0x7b7d WHERE KEY AND bucket = 1 AND sequence = 10": "damaged",
    "UPDATE KS.events SET chain = 0x00 WHERE KEY AND bucket = 1": "hash chain is broken",
    "UPDATE KS.events SET chain_before = 0x00 WHERE KEY AND bucket = 0": "was altered",
    "UPDATE KS.events SET last = 15 WHERE KEY AND bucket = 1": "missing in Cassandra",
    "UPDATE KS.events SET first = 7 WHERE KEY AND bucket = 1": "does not go on",
    "UPDATE KS.events SET bucket_events = 9 WHERE KEY AND bucket = 1": "counts other events",
    "UPDATE KS.events SET time_max = 9 WHERE KEY AND bucket = 1": "time by which it is found",
    "UPDATE KS.events SET epoch = null WHERE KEY AND bucket = 1": "is damaged",
    "DELETE FROM KS.events_by_type WHERE KEY AND bucket = 1": "place by type and time",
    "DELETE FROM KS.event_ids WHERE KEY AND bucket = 1 AND id = 'x'": "",
    "INSERT INTO KS.event_ids (store, agent, bucket, id, sequence)"
    f" VALUES ('STORE', '{AGENT}', 1, 'x', 9)": "place by id x",
    "DELETE FROM KS.agents WHERE store = 'STORE' AND prefix = 'airline/'": "list of agents",
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_found(place, small, damage):
    """Whatever is changed behind perdure's back, `verify` names it, and goes on after it."""
    stream = None
    for number in range(20):
        stream = await place.record(AGENT, note(number), stream=stream)
    table = CassandraEventTable(place.session, place.store, place.generations)
    assert await findings(table, AGENT) == (20, [])
    # With the time of a clock, which is later than any place in the log.
    await run(place, damage.replace("STORE", place.store))
    table = CassandraEventTable(place.session, place.store, place.generations)
    looked_at, found = await findings(table, AGENT)
    if not DAMAGES[damage]:
        assert found == []
        return
    assert DAMAGES[damage] in " ".join(each.problem for each in found)
    assert all(AGENT in each.subject for each in found)
    assert looked_at >= 6 + 7


async def test_a_gap_is_never_skipped(place, small):
    """A missing or damaged event stops reading with an error that names it."""
    stream = None
    for number in range(20):
        stream = await place.record(AGENT, note(number), stream=stream)
    await run(place, "DELETE FROM KS.events WHERE KEY AND bucket = 1 AND sequence = 10")
    table = CassandraEventTable(place.session, place.store, place.generations)
    for reading in (
        read(table, Span(AGENT, 1, 20)),
        read(table, Span(AGENT, 10, 10)),
        listed(table.read_stored(Span(AGENT, 8, 12))),
    ):
        with pytest.raises(Corrupt, match="airline/mia@10"):
            await reading
    assert len(await read(table, Span(AGENT, 11, 20))) == 10
    await run(place, "UPDATE KS.events SET event = 0x00 WHERE KEY AND bucket = 2 AND sequence = 16")
    with pytest.raises(Corrupt):
        await read(table, Span(AGENT, 11, 20))
    with pytest.raises(Corrupt, match="airline/mia@21"):
        await read(table, Span(AGENT, 20, 25))


async def test_two_generations_are_one_list(place, shared_cluster):
    """While partitions are switched one by one, each agent is read and listed where it is."""
    generation = await place.catalog.build()
    newer = await Tables.prepare(place.session, shared_cluster.keyspace(generation.number))

    class Both:
        """Agents of even numbers are in the newer tables."""

        def of(self, store, agent):
            return newer if int(agent.rpartition("/")[2]) % 2 == 0 else place.tables

        def all(self):
            return [place.tables, newer]

    for number in range(10):
        await place.record(f"n/{number}", note(number))
    place.recordings = CassandraRecordings(place.session, Both(), 1)
    for number in range(0, 10, 2):
        await place.record(f"n/{number}", note(number), note(number))
    table = CassandraEventTable(place.session, place.store, Both())
    summaries = await listed(table.agents(""))
    assert [(each.agent, each.sequence) for each in summaries] == [
        (f"n/{number}", 1 if number % 2 else 2) for number in range(10)
    ]
    await place.catalog.drop(generation.number)
