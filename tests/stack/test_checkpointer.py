"""The checkpointer on the real engines: objects from chunks, states by the journal."""

import asyncio
import hashlib
import logging
import operator
import random
import re
import time
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed
from tests.stack import s3
from tests.stack.cassandra_tables import place_of
from tests.stack.services import Service

from perdure.blobs.store import FsspecBlobs
from perdure.cassandra.catalog import Catalog
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.objects import CassandraManifest
from perdure.cassandra.session import Session
from perdure.cassandra.state_table import CassandraStateTable
from perdure.checkpointer.frames import Frame
from perdure.checkpointer.uploads import Chunk
from perdure.errors import Corrupt, NotFound
from perdure.kafka import chunks, journal, topics, wire
from perdure.kafka.chunks import CHUNK_BYTES, upload
from perdure.model.event import NewEvent, encode
from perdure.model.projection import DEFAULT
from perdure.model.timeline import Span
from perdure.model.upcast import Upcasters
from perdure.projector.restore import refold

MIB = 2**20
DEADLINE_SECONDS = 60


class Place:
    """What a test sees of a cluster: its topics, its storage, its manifest, and a checkpointer."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.service = Service("checkpointer", cluster, folder)
        self.chunks = cluster.topic("chunks")

    async def __aenter__(self):
        await topics.ensure(self.cluster)
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.cluster.kafka, max_request_size=topics.MESSAGE_BYTES_MAX
        )
        await self.producer.start()
        self.session = await Session.connect(self.cluster)
        await Catalog.open(self.session, self.cluster)
        self.manifest = CassandraManifest(self.session, self.cluster)
        self.blobs = FsspecBlobs(self.cluster.blobs)
        return self

    async def __aexit__(self, *_):
        await asyncio.to_thread(self.service.stop)
        await self.producer.stop()
        await self.session.close()
        await self.blobs.close()

    def settle(self, **settings):
        """Change settings of a service that is not started yet."""
        self.cluster = msgspec.structs.replace(self.cluster, **settings)
        self.service = Service("checkpointer", self.cluster, self.folder)

    async def start(self):
        """Start the checkpointer, or start it again."""
        self.service.start()
        await asyncio.to_thread(self.service.wait_ready)

    async def stored(self, digest, *, upload="", wait=0):
        """As the gateway answers it: from the manifest."""
        until = time.monotonic() + wait
        while True:
            known = await self.manifest.find(digest)
            if known.object is not None:
                return known.object.stored
            if upload in known.refused:
                raise Corrupt(known.refused[upload])
            if time.monotonic() >= until:
                return None
            await asyncio.sleep(0.02)

    async def upload(self, digest, data, **options):
        """Upload as an agent process does."""
        return await upload(self.producer, self.chunks, digest, data, stored=self.stored, **options)

    async def send(self, *sent):
        """Send some chunks and no more."""
        for chunk in sent:
            key, value, headers = chunks.encode(chunk)
            await self.producer.send_and_wait(self.chunks, value, key, headers=headers)

    async def records(self, kind):
        """All records of a topic that are there now."""
        topic = self.cluster.topic(kind)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.cluster.kafka)
        await consumer.start()
        found = []
        try:
            partitions = [TopicPartition(topic, n) for n in range(self.cluster.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends = await consumer.end_offsets(partitions)
            for partition, end in ends.items():
                while await consumer.position(partition) < end:
                    found += (await consumer.getmany(partition, timeout_ms=1000)).get(partition, [])
        finally:
            await consumer.stop()
        return found

    async def is_ready(self):
        """Whether the service says that it can do its work."""
        return await asyncio.to_thread(self.service.ready)

    async def has_files(self):
        """Whether chunks of uploads are on the disk."""
        return any(self.folder.glob("perdure-uploads-*/*"))

    async def is_through(self):
        """Whether everything up to the last chunk is committed."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.cluster.kafka,
            group_id=self.cluster.group("checkpointer-chunks"),
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(self.chunks, n) for n in range(self.cluster.partitions)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            return all([end == (await consumer.committed(p) or 0) for p, end in ends.items()])
        finally:
            await consumer.stop()

    async def content(self, digest):
        """The object that is stored, checked."""
        frame = Frame(digest, bytes_max=2**40)
        stored = await self.blobs.get(digest)
        return b"".join(frame.feed(stored, last=True))


@pytest.fixture
async def place(cluster, tmp_path):
    """A cluster of its own, with a checkpointer that is not started yet."""
    # Files of killed services go where the test can see them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path))
        cluster = msgspec.structs.replace(cluster, quiet_seconds=1)
        async with Place(cluster, tmp_path) as made:
            yield made


async def until(what):
    """Wait until something that is asked of another process is so."""
    await AsyncRetrying(
        stop=stop_after_delay(DEADLINE_SECONDS),
        wait=wait_fixed(0.05),
        retry=retry_if_result(operator.not_),
    )(what)


def packed(seed, size):
    """An object that hardly compresses: its digest and its stored bytes."""
    plain = random.Random(seed).randbytes(size)
    data = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(plain)
    return hashlib.sha256(plain).hexdigest(), data


def pieces_of(digest, data, name="u"):
    """The chunks of an upload."""
    parts = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    return [
        Chunk(name, digest, index, len(parts), len(data), part, "test")
        for index, part in enumerate(parts)
    ]


async def test_objects_of_several_sizes(place):
    """What is uploaded is stored, noted in the manifest, and sent once."""
    await place.start()
    objects = [
        packed(number, size) for number, size in enumerate((0, 1, 1000, CHUNK_BYTES, 3 * MIB))
    ]
    sizes = await asyncio.gather(*(place.upload(*each, uploader="me") for each in objects))
    assert sizes == [len(data) for _, data in objects]
    for digest, data in objects:
        assert await place.blobs.get(digest) == data
        line = (await place.manifest.find(digest)).object
        assert (line.stored, line.uploader) == (len(data), "me")
        assert line.size == len(await place.content(digest))
    before = len(await place.records("chunks"))
    for digest, data in objects:
        assert await place.upload(digest, data) == len(data)
    assert len(await place.records("chunks")) == before
    await until(place.is_through)
    assert await place.records("dead-letters") == []
    metrics = place.service.metrics()
    assert metrics["perdure_checkpointer_objects_total"] == len(objects)
    assert await asyncio.to_thread(place.service.stop) == 0


@pytest.mark.slow
async def test_a_large_object_in_bounded_memory(place):
    """200 MB pass through a service whose memory stays within some tens of MB."""
    await place.start()
    await place.upload(*packed(1, 4 * MIB))
    before = _peak(place.service)
    size, compressor = 200 * MIB, zstandard.ZstdCompressor(level=1, write_checksum=True)
    source = random.Random(7)
    digest, file = hashlib.sha256(), place.folder / "large"
    with file.open("wb") as out, compressor.stream_writer(out, size=size, closefd=False) as writer:
        for _ in range(size // MIB):
            piece = source.randbytes(MIB)
            digest.update(piece)
            writer.write(piece)

    async def pieces():
        with file.open("rb") as stored:
            while piece := stored.read(3 * MIB):
                yield piece

    begun = time.monotonic()
    taken = await place.upload(digest.hexdigest(), pieces(), size=file.stat().st_size)
    seconds = time.monotonic() - begun
    grown = _peak(place.service) - before
    logging.getLogger(__name__).info("%d B, %.1f s, %d + %d MB", taken, seconds, before, grown)
    assert taken == file.stat().st_size == await place.blobs.size(digest.hexdigest())
    assert (await place.manifest.find(digest.hexdigest())).object.size == size
    assert grown < 100


def _peak(service):
    """The most main memory that a process ever had, in MB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text("ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


@pytest.mark.slow
async def test_objects_in_s3(place, monkeypatch):
    """With an URL of S3 the same happens there; of 50 MB no more than parts are in memory."""
    with s3.server() as address:
        for name, value in s3.environment(address).items():
            monkeypatch.setenv(name, value)
        s3.make_bucket(address, "perdure")
        place.settle(blobs="s3://perdure/checkpoints")
        await place.start()
        await place.upload(*packed(1, 12 * MIB))
        before = _peak(place.service)
        digest, data = packed(2, 50 * MIB)
        assert await place.upload(digest, data) == len(data)
        assert _peak(place.service) - before < 60
        found = FsspecBlobs("s3://perdure/checkpoints")
        try:
            assert await found.get(digest) == data
        finally:
            await found.close()
        assert await asyncio.to_thread(place.service.stop) == 0


@pytest.mark.slow
async def test_killed_amid_uploads(place):
    """However often the service is killed, every object is stored whole, and nothing else."""
    await place.start()
    objects = [packed(number, (number % 7 + 1) * MIB) for number in range(16)]
    waiting = asyncio.gather(*(place.upload(*each) for each in objects))
    for round_ in range(4):
        await asyncio.sleep(0.05 + 0.1 * round_)
        place.service.kill()
        await place.start()
    assert await waiting == [len(data) for _, data in objects]
    for digest, data in objects:
        assert await place.blobs.get(digest) == data
    await until(place.is_through)
    assert await place.records("dead-letters") == []
    assert await asyncio.to_thread(place.service.stop) == 0
    assert list(place.folder.glob("perdure-uploads-*")) == []


async def test_two_checkpointers_and_one_dies(place):
    """Partitions go over to whoever is left, with the uploads that were under way in them."""
    await place.start()
    digests = [packed(number, 2 * MIB) for number in range(8)]
    begun = [pieces_of(*each, name=f"u{number}") for number, each in enumerate(digests)]
    for upload_ in begun:
        await place.send(*upload_[:2])
    other = Service("checkpointer", place.cluster, place.folder, number=2)
    other.start()
    try:
        await asyncio.to_thread(other.wait_ready)
        place.service.kill()
        for upload_ in begun:
            await place.send(*upload_[2:])
        for digest, data in digests:
            assert await place.stored(digest, wait=DEADLINE_SECONDS) == len(data)
            assert await place.blobs.get(digest) == data
    finally:
        await asyncio.to_thread(other.stop)


async def test_uploads_that_never_completed(place):
    """Are given up after the deadline, also by a service that was started after; disk is freed."""
    place.settle(upload_seconds=2)
    await place.start()
    dead, living = pieces_of(*packed(1, 3 * MIB), "dead"), pieces_of(*packed(2, 3 * MIB), "living")
    await place.send(*dead[:3])
    await until(place.has_files)
    place.service.kill()
    await place.start()
    await until(place.is_through)
    assert "3 of 7" in (await place.manifest.find(dead[0].digest)).refused["dead"]
    assert not await place.has_files()
    with pytest.raises(Corrupt, match="save it again"):
        await place.stored(dead[0].digest, upload="dead")
    for chunk in living:  # slower than the deadline altogether, but not from chunk to chunk
        await place.send(chunk)
        await asyncio.sleep(0.4)
    assert await place.stored(living[0].digest, wait=10) is not None
    # Its late chunks are of no use any more, and harm nothing; the next attempt is a new one.
    await place.send(*dead[3:])
    assert await place.upload(*packed(1, 3 * MIB)) > 3 * MIB
    metrics = place.service.metrics()
    assert metrics["perdure_checkpointer_abandoned_uploads_total"] == 1


async def test_an_object_with_a_wrong_digest(place):
    """Is refused: who waits for it is told why, and the record is with the dead letters."""
    await place.start()
    (digest, _), (_, data) = packed(1, MIB), packed(2, MIB)
    with pytest.raises(Corrupt, match="other content"):
        await place.upload(digest, data)
    [letter] = await place.records("dead-letters")
    headers = dict(letter.headers)
    assert (headers["perdure-error"], headers["perdure-index"]) == (b"Corrupt", b"2")
    assert headers["perdure-topic"] == place.chunks.encode()
    assert b"other content" in headers["perdure-reason"]
    assert zlib.crc32(letter.value) == int(headers["perdure-crc"], 16)
    with pytest.raises(NotFound):
        await place.blobs.size(digest)
    # The right one isn't held up by it.
    assert await place.upload(*packed(1, MIB)) > MIB


async def test_what_is_no_chunk(place):
    """Becomes a dead letter, on each topic that is read; what comes after it is taken."""
    await place.start()
    for topic in (place.chunks, place.cluster.topic("journal")):
        batch = place.producer.create_batch()
        for key, value, headers in (
            (b"k", b"junk", []),
            (None, None, [("perdure-digest", None)]),
            (b"k", b"\xff", [("x", b"\xff\xfe")]),
        ):
            batch.append(key=key, value=value, timestamp=None, headers=headers)
        batch.close()
        await place.producer.send_batch(batch, topic, partition=0)
    digest, data = packed(1, 1000)
    assert await place.upload(digest, data) == len(data)

    async def all_aside():
        return len(await place.records("dead-letters")) >= 6

    await until(all_aside)
    letters = await place.records("dead-letters")
    assert len(letters) == 6
    assert {dict(letter.headers)["perdure-error"] for letter in letters} == {
        b"InvalidInput",
        b"Corrupt",
    }
    assert place.service.metrics()["perdure_checkpointer_dead_letters_total"] == 6


async def test_storage_that_is_away_for_a_while(place):
    """The service says what it waits for, loses nothing, and goes on when it is back."""
    blobs = place.folder / "blobs"
    blobs.write_text("in the way of the folder", "utf-8")
    await place.start()
    digest, data = packed(1, MIB)
    waiting = asyncio.create_task(place.upload(digest, data))

    async def is_waiting():
        return not await place.is_ready()

    await until(is_waiting)
    assert not waiting.done()
    blobs.unlink()
    assert await waiting == len(data)
    assert await place.blobs.get(digest) == data
    await until(place.is_ready)
    assert place.service.metrics()["perdure_checkpointer_retries_total"] > 0


class Writer:
    """Writes an agent's events as the recorder does: rows first, then the journal."""

    def __init__(self, place, tables, agent):
        self.place, self.tables, self.agent = place, tables, agent
        self.key = wire.key_of(tables.store, agent)
        self.partition = wire.partition_of(self.key, place.cluster.partitions)
        self.stream = None
        self.events = CassandraEventTable(tables.session, tables.store, tables.generations)
        self.states = CassandraStateTable(tables.session, tables.store, tables.generations)

    async def write(self, count, size):
        """Some messages of so many bytes each."""
        for _ in range(count):
            event = NewEvent(type="message.added", data={"role": "user", "content": "x" * size})
            self.stream = await self.tables.record(self.agent, event, stream=self.stream)
            head = self.stream.head
            span = Span(self.agent, head.sequence, head.sequence)
            [batch] = [batch async for batch in self.events.read(span)]
            entry = journal.Entry(
                self.tables.position, "recorded", [msgspec.Raw(encode(e)) for e in batch.events]
            )
            told = journal.JournalRecord(
                self.tables.store, self.agent, self.partition, [entry], head.sequence
            )
            await self.place.producer.send_and_wait(
                self.place.cluster.topic("journal"),
                journal.encode(told),
                self.key,
                partition=self.partition,
            )

    async def saved(self):
        """The sequence of the newest saved state, which equals the fold of all events up to it."""
        lineage = await self.events.lineage(self.agent)
        spans = [Span(self.agent, 1, lineage[0].sequence)]
        found = await self.states.nearest(DEFAULT.name, DEFAULT.key, spans)
        if found is None:
            return 0
        folded = await refold(
            self.events, Upcasters(), projection=DEFAULT, lineage=lineage, at=found.sequence
        )
        assert DEFAULT.decode(found.data) == folded
        return found.sequence

    async def saved_up_to(self, sequence):
        """Wait until a state after at least this sequence is saved."""

        async def is_saved():
            return await self.saved() >= sequence

        await until(is_saved)


@pytest.fixture
async def tables(place, store):
    """The tables of events of a store of the place."""
    async with place_of(place.cluster, store) as tables:
        yield tables


async def test_states_are_saved_by_the_journal(place, tables):
    """Of a busy agent each time the policy says so, at rest with less; of a small one, never."""
    await place.start()
    busy, small = Writer(place, tables, "airline/mia"), Writer(place, tables, "airline/tom")
    await small.write(3, 100)
    await busy.write(25, 50_000)
    await busy.saved_up_to(20)
    await busy.write(2, 50_000)  # 5 % of the state and more: worth it once it is quiet
    await busy.saved_up_to(27)
    # Beside those two at most one for each pause of the test that was long enough.
    assert 2 <= place.service.metrics()["perdure_checkpointer_states_total"] < 10
    assert await small.saved() == 0
    # A damaged head start is none: who restarts knows nothing, and finds what to do in the tables.
    place.service.kill()
    await place.start()
    await busy.write(4, 50_000)
    await busy.saved_up_to(31)


async def test_states_are_saved_before_the_service_ends(place, tables):
    """On SIGTERM what is worth it is saved, although its agent didn't come to rest yet."""
    place.settle(quiet_seconds=600)
    await place.start()
    mia = Writer(place, tables, "airline/mia")
    await mia.write(4, 50_000)

    async def is_counted():
        metrics = await asyncio.to_thread(place.service.metrics)
        return metrics["perdure_checkpointer_journal_records_total"] == 4

    await until(is_counted)
    assert await mia.saved() == 0
    assert await asyncio.to_thread(place.service.stop) == 0
    assert await mia.saved() == 4


async def test_an_agent_that_can_not_be_read(place, tables):
    """Its damage is told in the log with its name, and the states of others are saved."""
    await place.start()
    mia, tom = Writer(place, tables, "airline/mia"), Writer(place, tables, "airline/tom")
    await mia.write(1, 100)
    await tables.session.execute(
        f"UPDATE {tables.tables.keyspace}.events SET event = 0x00 WHERE store = '{tables.store}'"
        " AND agent = 'airline/mia' AND bucket = 0 AND sequence = 1"
    )
    told = journal.JournalRecord(
        tables.store,
        "airline/mia",
        mia.partition,
        [journal.Entry(9, "recorded", [msgspec.Raw(b'"' + b"x" * 2 * MIB + b'"')])],
        2,
    )
    await place.producer.send_and_wait(
        place.cluster.topic("journal"), journal.encode(told), mia.key, partition=mia.partition
    )
    await tom.write(3, 50_000)
    await tom.saved_up_to(3)

    async def is_told():
        return any(line.get("agent") == "airline/mia" for line in place.service.logged())

    await until(is_told)
    assert place.service.metrics()["perdure_checkpointer_state_failures_total"] == 1
