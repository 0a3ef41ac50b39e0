"""The gateway on the real engines: what the journal tells, and a store of a cluster over HTTP."""

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaProducer

import perdure
from perdure.errors import InvalidInput
from perdure.gateway import journal as gateway_journal
from perdure.gateway.journal import Journal
from perdure.gateway.positions import Positions
from perdure.kafka import topics
from perdure.kafka.journal import Entry, JournalRecord, encode
from perdure.kafka.wire import key_of, partition_of

LONG = 20.0
AGENT = "airline/mia"


class Recorder:
    """Writes journal records as a recorder does, and events that they tell of."""

    def __init__(self, producer, cluster):
        self._producer, self._cluster = producer, cluster
        self.partition = partition_of(key_of("lab", AGENT), cluster.partitions)

    async def tell(self, *offsets, through=None, agent=AGENT, outcome="recorded"):
        """Tell what became of these records."""
        record = JournalRecord(
            "lab",
            agent,
            self.partition,
            [Entry(offset, outcome) for offset in offsets],
            through=max(offsets) if through is None else through,
        )
        await self._producer.send_and_wait(
            self._cluster.topic("journal"), encode(record), partition=self.partition
        )

    async def tell_many(self, count, *, per_record=1):
        """Tell of records 0 to `count`, some at a time."""
        sent = []
        for start in range(0, count, per_record):
            offsets = range(start, min(start + per_record, count))
            record = JournalRecord(
                "lab", AGENT, self.partition, [Entry(o, "recorded") for o in offsets]
            )
            record = msgspec.structs.replace(record, through=offsets[-1])
            sent.append(
                await self._producer.send(
                    self._cluster.topic("journal"), encode(record), partition=self.partition
                )
            )
        await asyncio.gather(*sent)

    async def write(self):
        """Write something of the agent; the offset."""
        written = await self._producer.send_and_wait(
            self._cluster.topic("events"), b"{}", partition=self.partition
        )
        return written.offset


@pytest.fixture
async def recorder(cluster):
    """Whoever writes the journal, on topics of its own."""
    await topics.ensure(cluster)
    producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka)
    await producer.start()
    yield Recorder(producer, cluster)
    await producer.stop()


@contextlib.asynccontextmanager
async def reading(cluster, *, kept_bytes_max=None):
    """A gateway's journal that is being read."""

    async def switched():
        """Nobody reads tables here."""

    journal = Journal(cluster, lambda _: None, switched)
    if kept_bytes_max is not None:
        journal.verdicts._kept_bytes_max = kept_bytes_max
    running = asyncio.create_task(journal.run())
    deadline = time.monotonic() + LONG
    while journal.trouble and time.monotonic() < deadline:  # noqa: ASYNC110 - of an engine
        await asyncio.sleep(0.01)
    assert journal.trouble == ""
    yield journal
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_verdict_arrives_when_the_recorder_tells_it(cluster, recorder):
    """Who waits gets it, and who asks later finds it kept."""
    async with reading(cluster) as journal:
        waiting = asyncio.create_task(journal.decided([(recorder.partition, 5)], LONG))
        await asyncio.sleep(0.1)
        await recorder.tell(5, outcome="refused")
        [verdict] = await waiting
        assert (verdict.offset, verdict.entry.outcome) == (5, "refused")
        assert await journal.decided([(recorder.partition, 5)], 0) == [verdict]
        with pytest.raises(InvalidInput, match="no partition 99"):
            await journal.decided([(99, 5)], LONG)


async def test_what_was_decided_long_ago_is_found_in_the_journal(cluster, recorder):
    """From before the gateway started, or let go of: whatever the topic still has."""
    await recorder.tell_many(3_000, per_record=3)
    async with reading(cluster, kept_bytes_max=1) as journal:
        for offset in (0, 1, 1_499, 2_998, 2_999):
            [verdict] = await journal.decided([(recorder.partition, offset)], LONG)
            assert verdict.offset == offset


async def test_an_entry_that_stands_before_its_neighbours_is_found(cluster, recorder):
    """Agents are recorded side by side: an entry may stand long before `through` covers it."""
    await recorder.tell_many(600)
    await recorder.tell(2_000, through=599, agent="airline/ben")
    for offset in range(600, 1_900):
        await recorder.tell(offset)
    await recorder.tell(1_999, through=2_000)
    async with reading(cluster, kept_bytes_max=1) as journal:
        [verdict] = await journal.decided([(recorder.partition, 2_000)], LONG)
        assert (verdict.offset, verdict.agent) == (2_000, "airline/ben")


async def test_a_record_that_is_not_decided_is_not_waited_for_longer_than_asked(cluster, recorder):
    """Nor is one found that the journal doesn't have."""
    await recorder.tell_many(10)
    async with reading(cluster) as journal:
        started = time.monotonic()
        assert await journal.decided([(recorder.partition, 77)], 0.3) == []
        assert time.monotonic() - started < LONG / 2


async def test_caught_up_waits_for_what_was_acknowledged_before(cluster, recorder):
    """Until the journal covers the end of the agent's partition, whoever wrote there."""
    async with reading(cluster) as journal:
        positions = Positions(cluster, journal)
        assert await positions.caught_up("lab", AGENT, LONG)
        offset = await recorder.write()
        assert not await positions.caught_up("lab", AGENT, 0.2)
        waiting = asyncio.create_task(positions.caught_up("lab", AGENT, LONG))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await recorder.tell(offset)
        assert await waiting


async def test_a_gateway_that_was_cut_off_goes_on_where_it_stopped(cluster, recorder, monkeypatch):
    """What was told while it was away is learned when it is back."""
    async with reading(cluster) as journal:
        await recorder.tell(1)
        await journal.decided([(recorder.partition, 1)], LONG)
        real, failed = gateway_journal.decode, asyncio.Event()

        def cut(value):
            if not failed.is_set():
                failed.set()
                raise OSError("connection reset")
            return real(value)

        monkeypatch.setattr(gateway_journal, "decode", cut)
        await recorder.tell(2)
        await failed.wait()
        await recorder.tell(3)
        found = [
            (await journal.decided([(recorder.partition, offset)], LONG))[0].offset
            for offset in (2, 3)
        ]
        assert found == [2, 3]
        assert await journal.verdicts.reached(recorder.partition, 3, LONG)
        assert journal.trouble == ""


async def test_writers_and_readers_go_on_after_the_gateway_was_killed(shared_services, store):
    """What was written meanwhile is confirmed, and read, as soon as it is back."""
    gateway = shared_services["gateway"]
    async with perdure.connect(shared_services.url(store, ack="recorded")) as crew:
        mia = await crew.agent(AGENT)
        await mia.emit("note", 0)
        await asyncio.to_thread(gateway.kill)
        writing = [asyncio.create_task(mia.emit("note", number)) for number in range(1, 20)]
        await asyncio.sleep(0.2)
        gateway.start()
        events = await asyncio.gather(*writing)
        assert [event.sequence for event in events] == list(range(2, 21))
        read = [event.data async for event in crew.view(AGENT).events()]
        assert read == list(range(20))


async def test_a_stream_of_events_that_is_cut_is_read_on(shared_services, store):
    """The gateway is killed while a long history is read: every event comes once, in order."""
    gateway = shared_services["gateway"]
    async with perdure.connect(shared_services.url(store)) as crew:
        await crew.emit_many(AGENT, [("note", {"text": "x" * 1_000})] * 4_000, ack="recorded")
        sequences = []
        async for event in crew.view(AGENT).events():
            sequences.append(event.sequence)
            if event.sequence == 500:
                await asyncio.to_thread(gateway.kill)
                gateway.start()
        assert sequences == list(range(1, 4_001))


async def test_a_watcher_sees_what_another_process_records(shared_services, store):
    """As it is recorded, whoever writes it, in order and without a gap."""
    async with (
        perdure.connect(shared_services.url(store)) as crew,
        perdure.connect(shared_services.url(store)) as other,
    ):
        await crew.emit(AGENT, "note", 0, ack="recorded")
        seen = []

        async def watch():
            async for change in other.view(AGENT).watch(after=0):
                seen.append(change.sequence)
                if len(seen) == 50:
                    return

        watching = asyncio.create_task(watch())
        for number in range(1, 50):
            await crew.emit(AGENT, "note", number)
        async with asyncio.timeout(LONG):
            await watching
        assert seen == list(range(1, 51))


async def test_stores_of_a_cluster_never_meet(shared_services, store):
    """An agent of the same name in two stores is two agents."""
    one, two = f"{store}-1", f"{store}-2"
    async with (
        perdure.connect(shared_services.url(one, ack="recorded")) as first,
        perdure.connect(shared_services.url(two, ack="recorded")) as second,
    ):
        await first.emit(AGENT, "note", "first")
        await second.emit(AGENT, "note", "second")
        await second.emit("airline/ben", "note")
        assert [event.data async for event in first.view(AGENT).events()] == ["first"]
        assert [event.data async for event in second.view(AGENT).events()] == ["second"]
        assert [summary.agent async for summary in first.agents()] == [AGENT]


def test_a_gateway_ends_at_once_although_somebody_waits(shared_services, store):
    """Long questions are answered when the signal comes; it ends with 0."""
    gateway = shared_services["gateway"]
    url = f"{gateway.url}/v1/stores/{store}/changes"
    version = httpx.get(url, timeout=LONG).json()["version"]
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(
            httpx.get, url, params={"after": version, "timeout": 50}, timeout=60
        )
        time.sleep(0.5)
        started = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - started < LONG / 2
        assert asking.result().json() == {"version": version}
    gateway.start().wait_ready()
