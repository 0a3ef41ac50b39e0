"""The checkpointer as a process: objects from chunks, and states by the journal.

Invariants:
- A position is committed after what is before it is durable: of chunks, up to the first one of an
  upload that is under way; of the journal, up to what was counted.
- While storage or tables are away nothing is skipped: it waits, and `/readyz` says for what.
- A record that can't be used becomes a dead letter with the reason, and holds up no other.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from perdure.blobs.store import FsspecBlobs
from perdure.cassandra.catalog import Catalog
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.objects import CassandraManifest
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session
from perdure.cassandra.state_table import CassandraStateTable
from perdure.checkpointer.spool import Spool
from perdure.checkpointer.states import Look, StateCheckpoints, Tables
from perdure.checkpointer.storage import Manifest
from perdure.checkpointer.tails import Key, Tails
from perdure.checkpointer.uploads import Uploads
from perdure.errors import PerdureError, Unreachable
from perdure.kafka import batches, chunks, journal, lenient, topics, wire
from perdure.kafka.batches import Record
from perdure.kafka.dead_letters import DeadLetters
from perdure.model.upcast import Upcasters, default_upcasters
from perdure.serving import Health, logged, logger
from perdure.settings import Cluster

FETCH_BYTES: Final = 8 * 2**20
"""The most bytes of records that are fetched ahead from a broker; a larger record goes alone."""

CHUNKS_AT_ONCE: Final = 16
RECORDS_AT_ONCE: Final = 2000

HANDLING_SECONDS_MAX: Final = 1800
"""How long a batch may take (a large object to slow storage) before its partitions are others'."""

SESSION_SECONDS: Final = 6
"""After how long others get the partitions of a killed process: the least that brokers allow."""

STORES_MAX: Final = 1000
"""Stores whose tables are kept at hand."""

FINISH_SECONDS: Final = 10.0
"""How long states are saved after the signal to stop; the next process saves the others."""

CLEAN_SECONDS: Final = 3600.0
"""How often it is looked for what killed writers left in storage."""

T = TypeVar("T")


class Metrics:
    """What Prometheus is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"perdure_checkpointer_{name}", text, registry=registry)

        self.chunks = counter("chunks", "Chunks of uploads that were read")
        self.chunk_bytes = counter("chunk_bytes", "Bytes of chunks that were read")
        self.objects = counter("objects", "Objects that were stored")
        self.object_bytes = counter("object_bytes", "Bytes of objects that were stored")
        self.abandoned = counter("abandoned_uploads", "Uploads that were given up")
        self.dead_letters = counter("dead_letters", "Records that became dead letters")
        self.records = counter("journal_records", "Records of the journal that were counted")
        self.states = counter("states", "States that were saved")
        self.state_bytes = counter("state_bytes", "Bytes of states that were saved")
        self.state_failures = counter("state_failures", "States that could not be saved")
        self.retries = counter("retries", "Calls that were made again because an engine was away")
        self.object_seconds = Histogram(
            "perdure_checkpointer_object_seconds",
            "From an object's last chunk, when it was read, until it was stored",
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self.uploads = Gauge(
            "perdure_checkpointer_uploads", "Uploads that are under way", registry=registry
        )
        self.lag = Gauge(
            "perdure_checkpointer_lag",
            "Records that were not read yet",
            ["topic", "partition"],
            registry=registry,
        )


class Engine:
    """What the service stands on, connected by `open`."""

    def __init__(self, cluster: Cluster, health: Health, metrics: Metrics) -> None:
        self.cluster = cluster
        self.metrics = metrics
        self.letters = DeadLetters(cluster)
        self.storage = FsspecBlobs(cluster.blobs)
        self.spool = Spool()
        self._health = health
        self._stack = contextlib.AsyncExitStack()
        self._session: Session | None = None
        self._generations: LiveGenerations | None = None
        self._manifest: Manifest | None = None
        self.tables = functools.lru_cache(maxsize=STORES_MAX)(self._tables)

    async def patiently(self, what: str, call: Callable[[], Awaitable[T]], /) -> T:
        """What the call gives; it is made again for as long as it raises Unavailable."""
        first = True

        async def counted() -> T:
            nonlocal first
            if not first:
                self.metrics.retries.inc()
            first = False
            return await call()

        return await self._health.patiently(what, counted)

    async def open(self) -> None:
        """Connect, as soon as everything is there."""
        await asyncio.to_thread(self.spool.clean)
        await self.patiently("Kafka", lambda: topics.ensure(self.cluster))
        await self.patiently("Kafka", self.letters.start)
        self._stack.push_async_callback(self.letters.stop)
        self._stack.push_async_callback(self.storage.close)
        self._stack.callback(self.spool.close)
        session = await self.patiently("Cassandra", lambda: Session.connect(self.cluster))
        self._stack.push_async_callback(session.close)

        async def opened() -> LiveGenerations:
            catalog = await Catalog.open(session, self.cluster)
            return await LiveGenerations.open(session, self.cluster, catalog, self._partition_of)

        self._generations = await self.patiently("Cassandra", opened)
        self._manifest = CassandraManifest(session, self.cluster)
        self._session = session

    async def close(self) -> None:
        """Let go of everything."""
        await self._stack.aclose()

    @property
    def manifest(self) -> Manifest:
        """The list of objects."""
        return _opened(self._manifest)

    async def refresh(self) -> None:
        """Look again in which generation agents are."""
        generations = _opened(self._generations)
        await self.patiently("Cassandra", generations.refresh)

    def _tables(self, store: str) -> Tables:
        session, generations = _opened(self._session), _opened(self._generations)
        return Tables(
            CassandraEventTable(session, store, generations),
            CassandraStateTable(session, store, generations),
        )

    def _partition_of(self, store: str, agent: str) -> int:
        return wire.partition_of(wire.key_of(store, agent), self.cluster.partitions)


class _Partition:
    """The uploads of a partition, and the offset after the last chunk that was taken."""

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads
        self.lock = asyncio.Lock()
        self.next = 0

    @property
    def position(self) -> int:
        first = self.uploads.position
        return self.next if first is None else first


class Objects:
    """Consumes chunks. Set `consumer` before the first batch."""

    def __init__(self, engine: Engine) -> None:
        self.consumer: Callable[[], AIOKafkaConsumer | None] = lambda: None
        self._engine = engine
        self._metrics = engine.metrics
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._log = logger("perdure.checkpointer")

    async def take(self, records: Sequence[Record]) -> None:
        """Take a batch, each partition by itself and in its order."""
        await asyncio.gather(
            *(
                self._take_or_again(partition, own)
                for partition, own in batches.by_partition(records).items()
            )
        )

    async def revoked(self, partitions: set[TopicPartition]) -> None:
        """Others read these partitions now, from where they were committed."""
        for partition in partitions:
            state = self._partitions.pop(partition, None)
            if state is not None and not state.lock.locked():
                state.uploads.close()
        self._count()

    async def sweep(self) -> None:
        """Give up uploads that have been waiting for their next chunk for too long."""
        for partition, state in list(self._partitions.items()):
            async with state.lock:
                consumer = self.consumer()
                end = consumer.highwater(partition) if consumer is not None else None
                if end is None or state.next < end or self._is_lost(partition, state):
                    continue  # What they wait for may be among what was not read yet.
                before = time.time() - self._engine.cluster.upload_seconds
                given_up = await self._engine.patiently(
                    "the manifest", functools.partial(state.uploads.abandon, before)
                )
                for upload in given_up:
                    self._metrics.abandoned.inc()
                    self._log.warning(
                        "upload given up",
                        digest=upload.first.digest,
                        upload=upload.first.upload,
                        uploader=upload.first.uploader,
                        chunks=upload.chunks,
                        of=upload.first.count,
                    )
                if given_up:
                    await batches.commit(consumer, partition, state.position)
        self._count()

    async def clean(self) -> None:
        """Remove what killed writers left in storage; never mind if that can't be done now."""
        try:
            removed = await self._engine.storage.clean()
        except PerdureError as error:
            self._log.warning("storage can't be cleaned up", reason=str(error))
        else:
            if removed:
                self._log.info("storage cleaned up", removed=removed)

    async def _take_or_again(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        try:
            await self._take(partition, records)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be left out
            # What is under way is let go of, so that its chunks have to come again, too.
            first = self._first(partition, records)
            await self.revoked({partition})
            await batches.read_again(self.consumer(), {partition: first}, error)

    def _first(self, partition: TopicPartition, records: Sequence[Record]) -> int:
        state = self._partitions.get(partition)
        begun = None if state is None else state.uploads.position
        first: int = records[0].offset
        return first if begun is None else min(begun, first)

    async def _take(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        if await batches.is_stale(self.consumer(), records):
            return
        state = self._partitions.get(partition)
        if state is None:
            engine = self._engine
            uploads = Uploads(engine.storage, engine.manifest, engine.spool)
            state = self._partitions[partition] = _Partition(uploads)
        async with state.lock:
            for record in records:
                if self._is_lost(partition, state):
                    break
                await self._take_one(state.uploads, record)
                state.next = record.offset + 1
            if self._is_lost(partition, state):
                state.uploads.close()
                return
            await batches.commit(self.consumer(), partition, state.position)
        self._count()
        batches.tell_lag(self._metrics.lag, self.consumer(), partition, state.next)

    async def _take_one(self, uploads: Uploads, record: Record) -> None:
        begun = time.monotonic()
        self._metrics.chunks.inc()
        self._metrics.chunk_bytes.inc(len(record.value or b""))
        try:
            chunk = chunks.decode(record.key, record.value, record.headers)
            stored = await self._engine.patiently(
                "checkpoint storage",
                lambda: uploads.take(chunk, record.offset, record.timestamp / 1000),
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it holds up no other
            await _put_aside(self._engine, record, error)
        else:
            if stored is not None:
                self._metrics.objects.inc()
                self._metrics.object_bytes.inc(stored.stored)
                self._metrics.object_seconds.observe(time.monotonic() - begun)

    def _is_lost(self, partition: TopicPartition, state: _Partition) -> bool:
        return self._partitions.get(partition) is not state

    def _count(self) -> None:
        self._metrics.uploads.set(
            sum(state.uploads.under_way for state in self._partitions.values())
        )


class States:
    """Consumes the journal. Set `consumer` before the first batch."""

    def __init__(self, engine: Engine, upcasters: Upcasters) -> None:
        self.consumer: Callable[[], AIOKafkaConsumer | None] = lambda: None
        self._engine = engine
        self._metrics = engine.metrics
        self._tails = Tails()
        self.arrivals = _Listener(self.revoked)
        self._log = logger("perdure.checkpointer")
        self.checkpoints = StateCheckpoints(
            self._tails,
            lambda key: engine.tables(key.store),
            upcasters,
            patiently=engine.patiently,
            looked=self._looked,
        )

    async def count(self, records: Sequence[Record]) -> None:
        """Count a batch; whoever is due is looked at by `checkpoints`, beside this."""
        for partition, own in batches.by_partition(records).items():
            try:
                await self._count(partition, own)
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be left out
                first = {partition: own[0].offset}
                await batches.read_again(self.consumer(), first, error)

    async def revoked(self, partitions: set[TopicPartition]) -> None:
        """Others count the agents of these partitions now."""
        for partition in partitions:
            self._tails.forget(partition.partition)

    async def look_at_quiet(self, before: float) -> None:
        """Have those looked at whose last event came before a time of the monotonic clock."""
        for key in self._tails.at_rest(before):
            await self.checkpoints.look(key, at_rest=True)

    async def finish(self) -> None:
        """Save what is worth it before the process ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                await self.look_at_quiet(float("inf"))
                await self.checkpoints.all_done()

    async def _count(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        if await batches.is_stale(self.consumer(), records):
            return
        await self.arrivals.looked(self._engine.refresh)
        for record in records:
            try:
                await self._count_one(record)
            except Exception as error:  # noqa: BLE001 - it holds up no other
                await _put_aside(self._engine, record, error)
        self._metrics.records.inc(len(records))
        position = records[-1].offset + 1
        await batches.commit(self.consumer(), partition, position)
        batches.tell_lag(self._metrics.lag, self.consumer(), partition, position)

    async def _count_one(self, record: Record) -> None:
        told = journal.decode(record.value)
        events = [event for entry in told.entries for event in entry.events]
        if told.switched:
            await self._engine.refresh()
        if not events:
            return
        key = Key(told.store, told.agent, record.partition)
        due = self._tails.add(
            key,
            sequence=told.sequence,
            size=sum(len(bytes(event)) for event in events),
            events=len(events),
            now=time.monotonic(),
        )
        if due:
            await self.checkpoints.look(key, at_rest=False)

    def _looked(self, look: Look) -> None:
        if look.saved:
            self._metrics.states.inc()
            self._metrics.state_bytes.inc(look.saved)
        if look.error is not None:
            self._metrics.state_failures.inc()
            with logged(agent=look.key.agent):
                self._log.warning("state not saved", store=look.key.store, reason=str(look.error))


class _Listener(batches.Arrivals):
    """Told of partitions that go, too."""

    def __init__(self, revoked: Callable[[set[TopicPartition]], Awaitable[None]]) -> None:
        super().__init__()
        self._revoked = revoked

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Hand on which."""
        await self._revoked(revoked)


def application(cluster: Cluster) -> AsgiFastStream:
    """The service. Nothing is connected before it is started.

    Raises:
        InvalidInput: checkpoint storage has a URL of no known kind.
    """
    lenient.install()
    running: list[asyncio.Task[None]] = []
    started = asyncio.Event()

    health = Health("checkpointer", ready=lambda: [] if started.is_set() else ["not started"])
    engine = Engine(cluster, health, Metrics(health.registry))
    objects, states = Objects(engine), States(engine, default_upcasters)
    broker = KafkaBroker(
        cluster.kafka.split(","),
        client_id=cluster.group("checkpointer"),
        apply_types=False,  # what is consumed are records as they are
        logger=None,
    )

    @broker.subscriber(
        cluster.topic("chunks"),
        batch=True,
        max_records=CHUNKS_AT_ONCE,
        group_id=cluster.group("checkpointer-chunks"),
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=FETCH_BYTES // 4,
        max_poll_interval_ms=HANDLING_SECONDS_MAX * 1000,
        session_timeout_ms=SESSION_SECONDS * 1000,
        listener=_Listener(objects.revoked),
        parser=batches.as_they_are,
        decoder=batches.undecoded,
        title="chunks",
        description="Pieces of objects; see perdure.kafka.chunks",
    )
    async def take(records: Sequence[Record]) -> None:
        await objects.take(records)

    @broker.subscriber(
        cluster.topic("journal"),
        batch=True,
        max_records=RECORDS_AT_ONCE,
        group_id=cluster.group("checkpointer"),
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=FETCH_BYTES // 4,
        max_poll_interval_ms=HANDLING_SECONDS_MAX * 1000,
        session_timeout_ms=SESSION_SECONDS * 1000,
        listener=states.arrivals,
        parser=batches.as_they_are,
        decoder=batches.undecoded,
        title="journal",
        description="What became of events; see perdure.kafka.journal",
    )
    async def count(records: Sequence[Record]) -> None:
        await states.count(records)

    objects.consumer = functools.partial(batches.consumer_of, broker, cluster.topic("chunks"))
    states.consumer = functools.partial(batches.consumer_of, broker, cluster.topic("journal"))

    async def start() -> None:
        await engine.open()
        for name, work in (
            ("sweeping", lambda: _every(_sweep_seconds(cluster), objects.sweep)),
            ("cleaning", lambda: _every(CLEAN_SECONDS, objects.clean)),
            ("saving", states.checkpoints.work),
            ("looking", lambda: _every(1.0, lambda: _quiet(states, cluster))),
        ):
            running.append(asyncio.create_task(health.persistently(name, work), name=name))

    async def stop() -> None:
        await states.finish()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await engine.close()

    return AsgiFastStream(
        broker,
        asgi_routes=health.routes(),
        on_startup=[start],
        after_startup=[started.set],
        after_shutdown=[stop],
        logger=None,
    )


async def _quiet(states: States, cluster: Cluster) -> None:
    await states.look_at_quiet(time.monotonic() - cluster.quiet_seconds)


async def _every(seconds: float, call: Callable[[], Awaitable[None]]) -> None:
    while True:
        await call()
        await asyncio.sleep(seconds)


def _sweep_seconds(cluster: Cluster) -> float:
    return min(30.0, cluster.upload_seconds / 4)


async def _put_aside(engine: Engine, record: Record, error: Exception) -> None:
    """Make a dead letter of a record."""
    log = logger("perdure.checkpointer")
    where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    if isinstance(error, PerdureError):
        log.warning("dead letter", reason=str(error), **where)
    else:
        log.error("dead letter", exc_info=error, **where)
    engine.metrics.dead_letters.inc()
    await engine.patiently("the dead letters", lambda: engine.letters.put_aside(record, error))


def _opened(value: T | None) -> T:
    if value is None:
        raise Unreachable("the checkpointer is starting", hint="/readyz says what it waits for")
    return value
