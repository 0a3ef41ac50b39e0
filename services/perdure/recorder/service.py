"""The recorder as a process: reads the topic of events, and records each partition in its order.

Invariants:
- A position is committed after what is before it is in the tables and told in the journal, and
  never past a failure.
- While Cassandra or Kafka is away nothing is skipped: it waits, keeps its partitions, and
  `/readyz` says for what.
- A record that can't be recorded becomes a dead letter with the reason, and holds up no other.
- A partition whose log does not go on where it was recorded last stands still, and `/readyz` says
  which offsets are missing: see `recorder.extent`.
"""

import contextlib
import functools
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import IllegalStateError
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session
from perdure.cassandra.streams import CassandraRecordings
from perdure.errors import Unavailable
from perdure.kafka import batches, lenient, topics, wire
from perdure.kafka.batches import Record
from perdure.kafka.telling import KafkaJournal
from perdure.recorder.extent import KafkaExtent
from perdure.recorder.heads import Heads
from perdure.recorder.partition import Done, PartitionRecorder
from perdure.recorder.recordings import Recordings
from perdure.recorder.worker import Worker, Workers
from perdure.serving import Health, logger
from perdure.settings import Cluster

RECORDS_AT_ONCE: Final = 4000
"""Records of all partitions that are taken over at once."""

FETCH_BYTES: Final = 16 * 1024 * 1024
"""The most bytes of one fetch from a broker; a larger record comes alone."""

PARTITION_FETCH_BYTES: Final = 2 * 1024 * 1024
"""The same of one partition."""

SESSION_SECONDS: Final = 6
"""After how long others get the partitions of a killed process: the least that brokers allow."""

NEW_OBJECTS_MAX: Final = 1_000_000
"""Objects between two looks for garbage that reference counts leave over: records that wait are
twenty objects each, none of them garbage; with a look every 50,000 a sixth of its time went into
looking, at Python's default of 700 a quarter."""

FINISH_SECONDS: Final = 10.0
"""How long a step may take to end when its partition goes away; others do it again then."""

T = TypeVar("T")


class Metrics:
    """What Prometheus is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"perdure_recorder_{name}", text, registry=registry)

        self.records = counter("records", "Records that were decided")
        self.events = counter("events", "Events that were recorded")
        self.duplicates = counter("duplicates", "Events that were recorded before already")
        self.refused = counter("refused", "Writes that were refused")
        self.dead_letters = counter("dead_letters", "Records that became dead letters")
        self.retries = counter("retries", "Calls that were made again because an engine was away")
        self.failures = counter("failures", "Steps that failed for no known reason")
        self.writes = counter("writes", "Writes of an agent's rows and head")
        self.write_seconds = counter("write_seconds", "What writes took, added up")
        self.step_records = Histogram(
            "perdure_recorder_step_records",
            "Records that one step took",
            registry=registry,
            buckets=(1, 3, 10, 30, 100, 300, 1000, 3000),
        )
        self.heads = Gauge("perdure_recorder_heads", "Heads kept in memory", registry=registry)
        self.head_bytes = Gauge(
            "perdure_recorder_head_bytes", "Bytes that kept heads take, about", registry=registry
        )
        self.lag = Gauge(
            "perdure_recorder_lag",
            "Records that are not recorded yet",
            ["topic", "partition"],
            registry=registry,
        )


class Recorder:
    """What the service is made of. Set `consumer` before it is opened."""

    def __init__(self, cluster: Cluster) -> None:
        self.consumer: Callable[[], AIOKafkaConsumer | None] = lambda: None
        self.health = Health("recorder", ready=self._not_ready)
        self.cluster = cluster
        self.heads = Heads()
        self._metrics = Metrics(self.health.registry)
        self._workers = Workers(self._worker, self.heads.drop)
        self._topic = cluster.topic("events")
        self._stack = contextlib.AsyncExitStack()
        self._recordings: Recordings | None = None
        self._placement: LiveGenerations | None = None
        self._journal: KafkaJournal | None = None
        self._log = logger("perdure.recorder")

    async def patiently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives; it is made again for as long as it raises Unavailable."""
        try:
            return await call()
        except Unavailable:
            pass

        async def again() -> T:
            self._metrics.retries.inc()
            return await call()

        return await self.health.patiently(what, again)

    async def open(self) -> None:
        """Connect, as soon as the engines are there; what is missing in them is made."""
        cluster = self.cluster
        await self.patiently("Kafka", lambda: topics.ensure(cluster))
        journal = KafkaJournal(cluster)
        await self.patiently("Kafka", journal.start)
        self._stack.push_async_callback(journal.close)
        session = await self.patiently("Cassandra", lambda: Session.connect(cluster))
        self._stack.push_async_callback(session.close)

        async def opened() -> tuple[LiveGenerations, int]:
            catalog = await Catalog.open(session, cluster)
            generation = await catalog.checked_topics(cluster.partitions)
            live = await LiveGenerations.open(session, cluster, catalog, self._partition_of)
            return live, generation

        live, generation = await self.patiently("Cassandra", opened)
        self._placement = live
        self._recordings = CassandraRecordings(session, live, generation)
        self._journal = journal

    async def finish(self) -> None:
        """Finish the steps that are under way, and commit them."""
        await self._workers.stop(FINISH_SECONDS)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()

    async def take(self, records: Sequence[Record]) -> None:
        """Take over a batch. Returns at once: who falls behind is paused."""
        consumer = self.consumer()
        for partition, own in batches.by_partition(records).items():
            if not await batches.is_stale(consumer, own):
                self._workers.put(partition.partition, own)

    def assigned(self, partitions: set[TopicPartition]) -> None:
        """These partitions are recorded here from now on."""
        self._workers.assigned({each.partition for each in partitions})

    async def revoked(self, partitions: set[TopicPartition]) -> None:
        """Others record these partitions from now on."""
        await self._workers.revoked({each.partition for each in partitions}, FINISH_SECONDS)
        for each in partitions:
            with contextlib.suppress(KeyError):
                self._metrics.lag.remove(each.topic, str(each.partition))

    def pause(self, partition: int) -> None:
        """Have no more of a partition fetched for now."""
        self._ask(lambda consumer, of: consumer.pause(of), partition)

    def resume(self, partition: int) -> None:
        """Have a partition fetched again."""
        self._ask(lambda consumer, of: consumer.resume(of), partition)

    async def commit(self, partition: int, position: int) -> None:
        """Commit a position of a partition."""
        await batches.commit(self.consumer(), TopicPartition(self._topic, partition), position)

    def _ask(
        self, question: Callable[[AIOKafkaConsumer, TopicPartition], None], partition: int
    ) -> None:
        consumer = self.consumer()
        if consumer is not None:
            with contextlib.suppress(IllegalStateError):  # it went away meanwhile
                question(consumer, TopicPartition(self._topic, partition))

    def _worker(self, partition: int) -> Worker:
        if self._recordings is None or self._journal is None:
            raise Unavailable("the recorder is not open yet", hint="open it before it consumes")
        recorder = PartitionRecorder(
            partition,
            self.cluster.partitions,
            recordings=self._recordings,
            journal=self._journal,
            heads=self.heads,
            patiently=self.patiently,
            placement=self._placement,
            extents=KafkaExtent(self._topic, self.cluster.group("recorder"), self.consumer),
        )
        return Worker(
            partition,
            recorder=recorder,
            reading=self,
            patiently=self.patiently,
            done=self._count,
            failed=self._failed,
        )

    def _count(self, partition: int, done: Done) -> None:
        metrics = self._metrics
        metrics.records.inc(done.records)
        metrics.events.inc(done.events)
        metrics.duplicates.inc(done.duplicates)
        metrics.refused.inc(done.refused)
        metrics.dead_letters.inc(done.dead)
        metrics.writes.inc(done.writes)
        metrics.write_seconds.inc(done.write_seconds)
        metrics.step_records.observe(done.records)
        metrics.heads.set(len(self.heads))
        metrics.head_bytes.set(self.heads.bytes)
        position = self._workers.positions().get(partition)
        if position is not None:
            where = TopicPartition(self._topic, partition)
            batches.tell_lag(metrics.lag, self.consumer(), where, position)

    def _failed(self, partition: int, error: Exception) -> None:
        self._metrics.failures.inc()
        self.heads.drop(partition)
        self._log.error("step failed", partition=partition, exc_info=error)

    def _partition_of(self, store: str, agent: str) -> int:
        return wire.partition_of(wire.key_of(store, agent), self.cluster.partitions)

    def _not_ready(self) -> list[str]:
        return [] if self._recordings is not None else ["not started"]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc] # it has no types
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._recorder.revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        # Each begins where it was committed, with nothing known of it.
        self._recorder.assigned(assigned)


def application(cluster: Cluster) -> AsgiFastStream:
    """The service. Nothing is connected before it is started."""
    lenient.install()
    recorder = Recorder(cluster)
    topic = cluster.topic("events")
    broker = KafkaBroker(
        cluster.kafka.split(","),
        client_id=cluster.group("recorder"),
        apply_types=False,  # what is consumed are records as they are
        logger=None,
    )
    recorder.consumer = functools.partial(batches.consumer_of, broker, topic)

    @broker.subscriber(
        topic,
        batch=True,
        max_records=RECORDS_AT_ONCE,
        batch_timeout_ms=batches.IDLE_MILLISECONDS,
        group_id=cluster.group("recorder"),
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        isolation_level="read_committed",  # what a transaction took back was never written
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        session_timeout_ms=SESSION_SECONDS * 1000,
        heartbeat_interval_ms=SESSION_SECONDS * 1000 // 3,
        rebalance_timeout_ms=int(3 * FINISH_SECONDS * 1000),
        listener=_Listener(recorder),
        parser=batches.as_they_are,
        decoder=batches.undecoded,
        title="events",
        description="Events of agents as CloudEvents; see perdure.kafka.wire",
    )
    async def take(records: Sequence[Record]) -> None:
        await recorder.take(records)

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        before = gc.get_threshold()
        gc.set_threshold(NEW_OBJECTS_MAX, *before[1:])
        try:
            await recorder.open()
            yield
        finally:
            await recorder.close()
            gc.set_threshold(*before)

    return AsgiFastStream(
        broker,
        asgi_routes=recorder.health.routes(),
        lifespan=lifespan,
        on_shutdown=[recorder.finish],
        logger=None,
    )
