"""From an agent process's log to rows, on the real engines: the recorder as processes."""

import asyncio
import contextlib
import os
import sys

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed
from tests.stack.producing import producing
from tests.stack.services import Service

from perdure.cassandra import schema
from perdure.cassandra.catalog import Catalog
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session
from perdure.errors import (
    AgentExists,
    EventTooLarge,
    SequenceConflict,
    StoreClosed,
    Unreachable,
    WriterFenced,
)
from perdure.kafka import journal, topics, wire
from perdure.kafka.log import KafkaLog
from perdure.model.event import NewEvent, Sent
from perdure.model.sequencing import Append
from perdure.model.timeline import Span

LONG = 60.0
AGENTS = [f"airline/a{number}" for number in range(12)]


async def until(look, holds):
    """Look again until what is seen holds."""

    async def looked():
        return await look()

    looking = AsyncRetrying(
        retry=retry_if_result(lambda seen: not holds(seen)),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(LONG),
    )
    await looking(looked)


class Journal:
    """What became of records, read from the journal: `kafka.log.Verdicts`."""

    def __init__(self, consumer):
        self.consumer = consumer
        self.entries = {}
        self.through = {}
        self.came = asyncio.Condition()

    async def follow(self):
        """Take in what comes."""
        async for message in self.consumer:
            record = journal.decode(message.value)
            async with self.came:
                for entry in record.entries:
                    self.entries.setdefault((record.partition, entry.offset), entry)
                if record.through >= 0:
                    self.through[record.partition] = record.through
                self.came.notify_all()

    async def wait(self, store, partition, offset, timestamp):
        """The entry of a record."""
        async with asyncio.timeout(LONG), self.came:
            await self.came.wait_for(lambda: (partition, offset) in self.entries)
        return self.entries[partition, offset]


class Place:
    """A cluster, an agent process's log on it, and its tables."""

    def __init__(self, cluster, folder, log, told):
        self.cluster, self.folder, self.log, self.told = cluster, folder, log, told
        self.recorders = []

    async def recorder(self, *, said=None):
        """One more recorder, which is ready, or says that something else is so."""
        number = len(self.recorders) + 1
        service = Service("recorder", self.cluster, self.folder, number=number).start()
        self.recorders.append(service)
        if said is None:
            await asyncio.to_thread(service.wait_ready)
        else:
            await self.saying(service, said)
        return service

    async def saying(self, service, said):
        """Wait until a service says why it is not ready."""
        await until(lambda: asyncio.to_thread(service.not_ready), lambda told: said in told)

    @contextlib.asynccontextmanager
    async def table(self, store="default"):
        """The tables, as the gateway reads them."""
        session = await Session.connect(self.cluster)
        try:
            catalog = await Catalog.open(session, self.cluster)

            def partition_of(store, agent):
                return wire.partition_of(wire.key_of(store, agent), self.cluster.partitions)

            live = await LiveGenerations.open(session, self.cluster, catalog, partition_of)
            yield CassandraEventTable(session, store, live)
        finally:
            await session.close()

    async def rows(self, agent):
        """The agent's events as they are stored, after its chain was verified."""
        async with self.table() as table:
            head = await table.head(agent)
            async for _, findings in table.verify(agent):
                assert findings == []
            return [
                event
                async for batch in table.read(Span(agent, 1, head.sequence))
                for event in batch.events
            ]


@pytest.fixture
async def place(cluster, tmp_path):
    """A cluster of the test's own, with a log, and without a recorder yet."""
    await topics.ensure(cluster)
    async with _following(cluster) as told:

        async def chain_at(agent, sequence):
            async with made.table() as table:
                return await table.chain_at(agent, sequence)

        log = KafkaLog(
            bootstrap=cluster.kafka,
            topic=cluster.topic("events"),
            partitions=cluster.partitions,
            store="default",
            writer="here",
            verdicts=told,
            chain_at=chain_at,
            version_of=lambda kind: 1,
        )
        await log.start()
        made = Place(cluster, tmp_path, log, told)
        try:
            yield made
        finally:
            await log.close()
            for service in made.recorders:
                await asyncio.to_thread(service.stop)


@contextlib.asynccontextmanager
async def _following(cluster):
    consumer = AIOKafkaConsumer(
        cluster.topic("journal"),
        bootstrap_servers=cluster.kafka,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=9_000_000,
    )
    await consumer.start()
    told = Journal(consumer)
    task = asyncio.create_task(told.follow())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])
        await consumer.stop()


def append(agent, *data, epoch=None, expected=None, **attributes):
    """A write of notes."""
    events = tuple(NewEvent(type="note", data=each, **attributes) for each in data)
    return Append(agent, events, "here", epoch, expected)


async def test_what_is_asked_of_a_log_holds_on_the_cluster(place):
    """Sequences, epochs, expectations and ids mean what they mean on one machine."""
    await place.recorder()
    log, mia = place.log, "airline/mia"
    first, second = await log.claim(mia), await log.claim(mia)
    assert (first.epoch, second.epoch, second.sequence) == (1, 2, 0)
    recorded = await log.append(append(mia, 1, 2, 3, epoch=2), "recorded")
    assert [(event.sequence, event.data, event.epoch) for event in recorded] == [
        (1, 1, 2),
        (2, 2, 2),
        (3, 3, 2),
    ]
    with pytest.raises(WriterFenced, match="opened again with epoch 2"):
        await log.append(append(mia, 4, epoch=1), "recorded")
    with pytest.raises(SequenceConflict, match="at sequence 3"):
        await log.append(append(mia, 4, epoch=2, expected=2), "recorded")
    [named] = await log.append(append(mia, 4, expected=3, id="once"), "recorded")
    assert await log.append(append(mia, 5, id="once"), "recorded") == [named]
    head = await log.claim(mia)
    assert (head.epoch, head.sequence) == (3, 4)
    assert [event.data for event in await place.rows(mia)] == [1, 2, 3, 4]


async def test_writes_that_do_not_wait_keep_their_order(place):
    """Sent without waiting, or only until they are durable, they are recorded as they were sent."""
    log = place.log
    answers = [log.append(append(agent, n), "sent") for n in range(40) for agent in AGENTS]
    durable = await asyncio.gather(
        *(log.append(append(agent, 40), "durable") for agent in AGENTS), *answers
    )
    await place.recorder()
    for agent, [sent] in zip(AGENTS, durable, strict=False):
        assert isinstance(sent, Sent)
        assert (sent.sequence, sent.subject) == (0, agent)
        partition, offset = map(int, sent.log_position.split(":"))
        entry = await place.told.wait("default", partition, offset, 0)
        [event] = entry.answers()
        assert (event.id, event.sequence, event.data) == (sent.id, 41, 40)
    for agent in AGENTS[:3]:
        rows = await place.rows(agent)
        assert [(event.sequence, event.data) for event in rows] == [(n + 1, n) for n in range(41)]


async def test_a_fork_goes_on_with_its_parents_history(place):
    """It is made once, and its chain goes on from its parent's."""
    await place.recorder()
    log, mia, twin = place.log, "airline/mia", "airline/twin"
    await log.append(append(mia, 1, 2, 3, id=None), "recorded")
    event = NewEvent(type="agent.forked", data={"parent": mia, "at": 2})
    head, forked = await log.fork(Append(twin, (event,), "here", 1), mia, 2)
    assert (head.sequence, head.epoch, forked.sequence, forked.epoch) == (3, 1, 3, 1)
    async with place.table() as table:
        assert head.chain == (await table.head(twin)).chain
        assert await table.chain_at(mia, 2) != await table.chain_at(mia, 3)
        [own, parents] = await table.lineage(twin)
        assert (own.parent, own.forked_at, parents.agent) == (mia, 2, mia)
    [more] = await log.append(append(twin, 4, epoch=1), "recorded")
    assert more.sequence == 4
    with pytest.raises(AgentExists):
        await log.fork(Append(twin, (event,), "here", 1), mia, 2)


async def test_what_is_no_event_is_put_aside_and_the_rest_goes_on(place):
    """Poison, a record in the wrong partition and one that is too large become dead letters."""
    recorder = await place.recorder()
    mia = "airline/mia"
    home = wire.partition_of(b"airline/mia", place.cluster.partitions)
    async with producing(place.cluster) as producer:
        sent = {
            await producer.send(b"no event at all", key=b"x"): "no CloudEvent",
            await producer.send(b"\xff\x00", key=b"y", headers=[("ce_id", b"\xff")]): "CloudEvent",
            await producer.event(mia, "message.added", "no message"): "data of message.added",
            await producer.event(mia, data="x" * 1_000_001): "are the most in one event",
        }
        headers = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/s")]
        headers += [("ce_type", b"note"), ("ce_subject", mia.encode())]
        wrong = (home + 1) % place.cluster.partitions
        sent[await producer.send(b"1", headers=headers, partition=wrong)] = f"kept in {home}"
        fine = await producer.event(mia, "note", 7, id="fine")
        again = await producer.event(mia, "note", 8, id="fine")
    for where, said in sent.items():
        entry = await place.told.wait("default", *where, 0)
        assert entry.outcome == "dead-letter"
        assert said in str(entry.error.error())
    for where in (fine, again):
        [event] = (await place.told.wait("default", *where, 0)).answers()
        assert (event.sequence, event.data, event.writer) == (1, 7, "/elsewhere")
    letters = await _letters(place.cluster, len(sent))
    assert {(int(each["perdure-partition"]), int(each["perdure-offset"])) for each in letters} == {
        *sent
    }
    metrics = await asyncio.to_thread(recorder.metrics)
    assert metrics["perdure_recorder_dead_letters_total"] == len(sent)
    assert metrics["perdure_recorder_duplicates_total"] == 1


async def _letters(cluster, count):
    """The headers of so many dead letters."""
    consumer = AIOKafkaConsumer(
        cluster.topic("dead-letters"),
        bootstrap_servers=cluster.kafka,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=9_000_000,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(LONG):
            return [
                {name: value.decode(errors="replace") for name, value in message.headers}
                for message in [await consumer.getone() for _ in range(count)]
            ]
    finally:
        await consumer.stop()


async def test_records_that_kafka_dropped_stop_their_partition(place):
    """What retention took before it was recorded is named; others go on, and it does when told."""
    cluster, mia = place.cluster, "airline/mia"
    home = wire.partition_of(b"airline/mia", cluster.partitions)
    other = next(a for a in AGENTS if wire.partition_of(a.encode(), cluster.partitions) != home)
    first = await place.recorder()
    await place.log.append(append(mia, 1), "recorded")
    assert await asyncio.to_thread(first.stop) == 0
    lost = [(await place.log.append(append(mia, n), "durable"))[0] for n in (2, 3)]
    where = TopicPartition(cluster.topic("events"), home)
    last = int(lost[-1].log_position.split(":")[1])
    assert await _perdure(cluster, "archive") == 0
    await _dropped(cluster, where, last + 1)
    second = await place.recorder(said=f"offsets {last - 1} to {last} of {where.topic}")
    [seen] = await place.log.append(append(other, 1), "recorded")
    [waiting] = await place.log.append(append(mia, 4), "durable")
    assert (seen.sequence, waiting.sequence) == (1, 0)
    await place.saying(second, f"set the offset of group {cluster.group('recorder')} to {last + 1}")
    assert await asyncio.to_thread(second.stop) == 0
    assert [event.data for event in await place.rows(mia)] == [1]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.kafka,
        group_id=cluster.group("recorder"),
        enable_auto_commit=False,
    )
    await consumer.start()
    consumer.assign([where])
    await consumer.commit({where: last + 1})
    await consumer.stop()
    await place.recorder()
    await place.log.append(append(mia, 5), "recorded")
    assert [event.data for event in await place.rows(mia)] == [1, 4, 5]
    assert await _perdure(cluster, "replay", "--force") == 1  # what was live is not the same
    assert [event.data for event in await place.rows(mia)] == [1, 2, 3, 4, 5]


async def _perdure(cluster, *arguments):
    """The exit status of a command."""
    values = msgspec.to_builtins(cluster)
    environment = {f"PERDURE_{name.upper()}": str(value) for name, value in values.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perdure", *arguments), env=os.environ | environment
    )
    return await asyncio.wait_for(process.wait(), LONG)


async def _dropped(cluster, where, offset):
    """Have Kafka drop the head of a partition, as retention would."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    try:
        await admin.delete_records({where: RecordsToDelete(offset)})
    finally:
        await admin.close()


async def test_a_topic_that_was_made_anew_is_refused(place):
    """Records of another topic are not taken for repeats of those that were recorded."""
    cluster, mia = place.cluster, "airline/mia"
    first = await place.recorder()
    for number in range(5):
        await place.log.append(append(mia, number), "recorded")
    assert await asyncio.to_thread(first.stop) == 0
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    try:
        await admin.delete_topics([cluster.topic("events")])
        await until(admin.list_topics, lambda there: cluster.topic("events") not in there)
    finally:
        await admin.close()
    await topics.ensure(cluster)
    async with producing(cluster) as producer:
        await producer.event(mia, "note", "new")
    await place.recorder(said="it is another topic than the one that was recorded")
    assert [event.data for event in await place.rows(mia)] == [0, 1, 2, 3, 4]


async def test_tables_that_are_gone_are_waited_for(place):
    """While a table is missing nothing becomes a dead letter; then everything is recorded."""
    cluster, mia = place.cluster, "airline/mia"
    recorder = await place.recorder()
    await place.log.append(append(mia, 1), "recorded")
    keyspace = cluster.keyspace(1)
    session = await Session.connect(cluster)
    try:
        await session.run_schema([f"DROP KEYSPACE {keyspace}"])
        [sent] = await place.log.append(append("airline/ann", 2), "durable")
        await place.saying(recorder, "Cassandra at")
        await schema.create_generation(session, cluster, 1)
    finally:
        await session.close()
    partition, offset = map(int, sent.log_position.split(":"))
    entry = await place.told.wait("default", partition, offset, 0)
    assert [event.data for event in entry.answers()] == [2]
    metrics = await asyncio.to_thread(recorder.metrics)
    assert metrics["perdure_recorder_dead_letters_total"] == 0


@pytest.mark.slow
async def test_recorders_that_come_and_go_record_everything_once(place):
    """Killed, stopped, joined by others in the middle of writing: each event is there once."""
    log, sent = place.log, dict.fromkeys(AGENTS, 0)
    writing = True

    async def write(agent):
        while writing:
            events = await log.append(
                append(agent, *range(sent[agent], sent[agent] + 3)), "recorded"
            )
            sent[agent] += 3
            assert events[-1].sequence == sent[agent]

    one = await place.recorder()
    writers = [asyncio.create_task(write(agent)) for agent in AGENTS]
    two = await place.recorder()  # partitions move to it while both are at work
    await _decided(place, 200)
    await asyncio.to_thread(one.kill)
    await _decided(place, 200)
    one.start()
    await asyncio.to_thread(one.wait_ready)
    await _decided(place, 200)
    assert await asyncio.to_thread(two.stop) == 0
    await _decided(place, 200)
    writing = False
    await asyncio.gather(*writers)
    for agent in AGENTS:
        [last] = await log.append(append(agent, "last"), "recorded")
        assert last.sequence == sent[agent] + 1
    for agent in AGENTS[::4]:
        rows = await place.rows(agent)
        assert [event.data for event in rows] == [*range(sent[agent]), "last"]
        assert [event.sequence for event in rows] == list(range(1, sent[agent] + 2))


async def _decided(place, count):
    """Wait until so many more records are decided."""
    async with asyncio.timeout(LONG), place.told.came:
        goal = len(place.told.entries) + count
        await place.told.came.wait_for(lambda: len(place.told.entries) >= goal)


async def test_a_log_tells_what_kafka_does_not_take(place, cluster):
    """A write that is too large, one to a closed log, and a Kafka that isn't there are told."""
    with pytest.raises(EventTooLarge, match="divide them"):
        place.log.append(append("airline/mia", *["x" * 900_000] * 9), "durable")
    large = await place.log.append(append("airline/mia", *["x" * 900_000] * 8), "durable")
    assert len(large) == 8
    await place.log.close()
    with pytest.raises(StoreClosed):
        place.log.append(append("airline/mia", 1), "durable")
    nowhere = KafkaLog(
        bootstrap="127.0.0.1:1",
        topic="none",
        partitions=1,
        store="default",
        writer="here",
        verdicts=place.told,
        chain_at=place.log._chain_at,
        version_of=lambda kind: 1,
    )
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        await nowhere.start()
    await nowhere.close()
