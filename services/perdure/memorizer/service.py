"""The memorizer as a process: embeds memories as they are stored, so that recall need not.

The journal tells which agents stored or forgot something; what is missing in the index is looked up
in the tables, as recall does it. So there is one way for memories to enter, and whatever one
process left out (or another did already) is seen by the next.

Invariants:
- A position of the journal is committed after all that is before it is in the index.
- While Weaviate or the tables are away nothing is skipped: it waits, and `/readyz` says for what.
- An agent whose memories can't be embedded holds up no other; recall tells its users why.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

import msgspec
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session as Tables
from perdure.errors import PerdureError, Unreachable
from perdure.kafka import batches, journal, topics, wire
from perdure.kafka.batches import Record
from perdure.memorizer.choice import chosen_embedder
from perdure.memorizer.embedder import Embedder, unit_vectors
from perdure.memorizer.memory import MemoryIndex
from perdure.memorizer.recall import memorize
from perdure.model.event import NUMBER_MAX
from perdure.model.timeline import Span
from perdure.serving import Health, logged, logger
from perdure.settings import Cluster
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.objects import TYPES
from perdure.weaviate.schema import Collections
from perdure.weaviate.session import Session

RECORDS_AT_ONCE: Final = 500
FETCH_BYTES: Final = 9 * 2**20
"""The most bytes of one fetch: more than the largest journal record."""

HANDLING_SECONDS_MAX: Final = 1_800
"""How long a batch may take (texts of a backlog) before its partitions are others'."""

SESSION_SECONDS: Final = 6
"""After how long others get the partitions of a killed process: the least that brokers allow."""

STORES_MAX: Final = 1_000
"""Stores whose indexes are kept at hand."""

T = TypeVar("T")
_log = logger("perdure.memorizer")


class _Typed(msgspec.Struct):
    """What is read of an event: whether it concerns memories."""

    type: str


_typed = msgspec.json.Decoder(_Typed)


def concerned(told: Iterable[journal.JournalRecord]) -> dict[str, list[str]]:
    """The agents that stored or forgot memories, by store, each once.

    >>> event = msgspec.Raw(b'{"type": "memory.stored", "data": {"text": "prefers aisle seats"}}')
    >>> entry = journal.Entry(7, "recorded", [event])
    >>> concerned([journal.JournalRecord("default", "airline/mia", 0, [entry])])
    {'default': ['airline/mia']}
    """
    agents: dict[str, dict[str, None]] = {}
    for record in told:
        events = [event for entry in record.entries for event in entry.events]
        if any(_typed.decode(event).type in TYPES for event in events):
            agents.setdefault(record.store, {})[record.agent] = None
    return {store: list(own) for store, own in agents.items()}


class Metrics:
    """What Prometheus is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"perdure_memorizer_{name}", text, registry=registry)

        self.records = counter("journal_records", "Records of the journal that were read")
        self.agents = counter("agents", "Times that an agent's memories were looked at")
        self.memories = counter("memories", "Memories that were embedded")
        self.failures = counter("failures", "Times that an agent's memories could not be embedded")
        self.retries = counter("retries", "Calls that were made again because an engine was away")
        self.seconds = Histogram(
            "perdure_memorizer_batch_seconds",
            "From a batch of the journal until its memories can be recalled",
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        self.lag = Gauge(
            "perdure_memorizer_lag",
            "Records that were not read yet",
            ["topic", "partition"],
            registry=registry,
        )


class Memorizer:
    """Takes batches of the journal, once it is `running`."""

    def __init__(self, cluster: Cluster, health: Health, broker: KafkaBroker) -> None:
        self._cluster = cluster
        self._health = health
        self._broker = broker
        self.arrivals = batches.Arrivals()
        self._embedder: Embedder = chosen_embedder(cluster.embedder)
        self._metrics = Metrics(health.registry)
        self._generations: LiveGenerations | None = None
        self._index: Callable[[str], MemoryIndex] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect, as soon as everything is there; let go of everything at the end."""
        cluster = self._cluster
        async with contextlib.AsyncExitStack() as stack:
            await self._patiently("Kafka", lambda: topics.ensure(cluster))
            tables = await self._patiently("Cassandra", lambda: Tables.connect(cluster))
            stack.push_async_callback(tables.close)
            self._generations = await self._patiently("Cassandra", lambda: self._placed(tables))
            weaviate = await self._patiently("Weaviate", lambda: Session.connect(cluster))
            stack.push_async_callback(weaviate.close)
            await self._patiently("the embedder", self._warmed_up)
            self._index = self._indexes(tables, self._generations, Collections(weaviate))
            yield

    async def take(self, records: Sequence[Record]) -> None:
        """Have everything in the index that a batch tells of; then commit, partition by partition.

        A failure that nobody thought of has the batch read again: none of it is left out.
        """
        started = time.perf_counter()
        consumer = batches.consumer_of(self._broker, self._cluster.topic("journal"))
        parts = {
            partition: own
            for partition, own in batches.by_partition(records).items()
            if not await batches.is_stale(consumer, own)
        }
        try:
            await self._take([record for own in parts.values() for record in own])
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be left out
            await batches.read_again(consumer, batches.firsts(parts), error)
            return
        for partition, own in parts.items():
            position = own[-1].offset + 1
            await batches.commit(consumer, partition, position)
            batches.tell_lag(self._metrics.lag, consumer, partition, position)
        self._metrics.records.inc(len(records))
        self._metrics.seconds.observe(time.perf_counter() - started)

    async def _take(self, records: Sequence[Record]) -> None:
        told: list[journal.JournalRecord] = []
        for record in records:
            try:
                told.append(journal.decode(record.value))
            except PerdureError as error:
                # The recorder alone writes there; a record of somebody else's stops nothing.
                _log.error("no journal record", offset=record.offset, reason=str(error))
        switched = any(each.switched for each in told)
        await self.arrivals.looked(self._refresh, anyway=switched)
        for store, agents in concerned(told).items():
            await self._memorize(store, agents)

    async def _refresh(self) -> None:
        """Look again in which generation agents are."""
        await self._patiently("Cassandra", _opened(self._generations).refresh)

    async def _memorize(self, store: str, agents: Sequence[str]) -> None:
        """Bring agents up to date together; each on its own where one of them can't be."""
        self._metrics.agents.inc(len(agents))
        try:
            await self._brought_up(store, agents)
        except Exception as error:  # noqa: BLE001 - an embedder is foreign code
            if len(agents) > 1:
                for agent in agents:
                    await self._memorize(store, [agent])
                return
            self._metrics.failures.inc()
            with logged(agent=agents[0]):
                _log.warning("memories not embedded", store=store, exc_info=error)

    async def _brought_up(self, store: str, agents: Sequence[str]) -> None:
        spans = [Span(agent, 1, NUMBER_MAX) for agent in agents]
        index = _opened(self._index)(store)
        counted = 0

        def count(done: int) -> None:
            nonlocal counted
            self._metrics.memories.inc(done - counted)
            counted = done

        async def once() -> int:
            nonlocal counted
            counted = 0
            return await memorize(index, self._embedder, spans, progress=count)

        await self._patiently("the memory index", once)

    async def _patiently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives; it is made again for as long as an engine is away."""
        first = True

        async def counted() -> T:
            nonlocal first
            if not first:
                self._metrics.retries.inc()
            first = False
            return await call()

        return await self._health.patiently(what, counted)

    async def _placed(self, tables: Tables) -> LiveGenerations:
        catalog = await Catalog.open(tables, self._cluster)
        return await LiveGenerations.open(tables, self._cluster, catalog, self._partition_of)

    async def _warmed_up(self) -> None:
        """Load the model before the first batch, so that what is wrong with it is told at once."""
        await asyncio.to_thread(unit_vectors, self._embedder, ["ready"])

    def _indexes(
        self, tables: Tables, generations: LiveGenerations, collections: Collections
    ) -> Callable[[str], MemoryIndex]:
        @functools.lru_cache(maxsize=STORES_MAX)
        def index(store: str) -> MemoryIndex:
            return WeaviateIndex(
                collections,
                store,
                CassandraEventTable(tables, store, generations),
                keyspace_of=lambda agent: generations.of(store, agent).keyspace,
                embedder=self._embedder.name,
            )

        return index

    def _partition_of(self, store: str, agent: str) -> int:
        return wire.partition_of(wire.key_of(store, agent), self._cluster.partitions)


def application(cluster: Cluster) -> AsgiFastStream:
    """The service. Nothing is connected before it is started.

    Raises:
        InvalidInput: the settings name an embedder that can't be had.
    """
    started = asyncio.Event()
    health = Health("memorizer", ready=lambda: [] if started.is_set() else ["not started"])
    broker = KafkaBroker(
        cluster.kafka.split(","),
        client_id=cluster.group("memorizer"),
        apply_types=False,  # what is consumed are records as they are
        logger=None,
    )
    memorizer = Memorizer(cluster, health, broker)

    @broker.subscriber(
        cluster.topic("journal"),
        batch=True,
        max_records=RECORDS_AT_ONCE,
        group_id=cluster.group("memorizer"),
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=FETCH_BYTES,
        max_poll_interval_ms=HANDLING_SECONDS_MAX * 1000,
        session_timeout_ms=SESSION_SECONDS * 1000,
        heartbeat_interval_ms=SESSION_SECONDS * 1000 // 3,
        listener=memorizer.arrivals,
        parser=batches.as_they_are,
        decoder=batches.undecoded,
        title="journal",
        description="What became of events; see perdure.kafka.journal",
    )
    async def take(records: Sequence[Record]) -> None:
        await memorizer.take(records)

    return AsgiFastStream(
        broker,
        asgi_routes=health.routes(),
        lifespan=memorizer.running,
        after_startup=[started.set],
        logger=None,
    )


def _opened(value: T | None) -> T:
    if value is None:
        raise Unreachable("the memorizer is starting", hint="/readyz says what it waits for")
    return value
