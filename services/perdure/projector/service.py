"""The projector as a process: keeps hot states up to date, publishes them, and answers with them.

Invariants:
- Of every agent that moved, a state at least as new as the journal record that told so is published
  before that record's position is committed.
- While the tables are away it waits, and `/readyz` says so; nothing is skipped.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker
from litestar import Litestar
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from perdure.errors import PerdureError, Unreachable
from perdure.gateway.app import build, opened
from perdure.gateway.service import Gateway
from perdure.kafka import batches, journal, topics
from perdure.kafka.batches import Record
from perdure.kafka.wire import key_of
from perdure.model.projection import default_projections
from perdure.model.upcast import default_upcasters
from perdure.projector.publishing import Moved, StateRecord, encode, moved, state_record
from perdure.projector.routes import StateRoutes
from perdure.serving import Receive, Scope, Send, logged, logger
from perdure.settings import Cluster

RECORDS_AT_ONCE: Final = 2_000
FETCH_BYTES: Final = 9 * 1024 * 1024
"""The most bytes of one fetch: more than the largest journal record."""

SESSION_SECONDS: Final = 6
"""After how long others get the partitions of a killed process: the least that brokers allow."""

AGENTS_AT_ONCE: Final = 32
"""Agents whose states are brought forward and published concurrently."""

HANDLING_SECONDS_MAX: Final = 600
"""How long a batch may take, cold states included, before its partitions are others'."""

_log = logger("perdure.projector")


class Metrics:
    """What Prometheus is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.records = Counter(
            "perdure_projector_journal_records", "Journal records read", registry=registry
        )
        self.published = Counter(
            "perdure_projector_published", "States published", registry=registry
        )
        self.failures = Counter(
            "perdure_projector_failures", "States that could not be folded", registry=registry
        )
        self.seconds = Histogram(
            "perdure_projector_batch_seconds",
            "From a batch of the journal until its states are published",
            registry=registry,
            buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
        )
        self.lag = Gauge(
            "perdure_projector_lag",
            "Records that were not read yet",
            ["topic", "partition"],
            registry=registry,
        )


class _Application(AsgiFastStream):
    """FastStream's application, and HTTP routes with parameters beside its own."""

    http: Litestar

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.http(scope, receive, send)  # type: ignore[arg-type] # ASGI, typed more narrowly


class Projector:
    """Takes batches of the journal. `broker` publishes."""

    def __init__(self, cluster: Cluster, gateway: Gateway, broker: KafkaBroker) -> None:
        self._cluster = cluster
        self._gateway = gateway
        self._broker = broker
        self.arrivals = batches.Arrivals()
        self._topic = cluster.topic("state")
        self._metrics = Metrics(gateway.health.registry)
        self._gate = asyncio.Semaphore(AGENTS_AT_ONCE)
        self._publish = broker.publisher(
            self._topic, title="state", description="The newest state of each agent", schema=dict
        )

    async def take(self, records: Sequence[Record]) -> None:
        """Publish the states of all agents that a batch tells of, each once; then commit.

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
        told = []
        for record in records:
            try:
                told.append(journal.decode(record.value))
            except PerdureError as error:
                # The recorder alone writes there; one record of somebody else's stops nothing.
                _log.error("no journal record", offset=record.offset, reason=str(error))
        switched = any(record.switched for record in told)
        await self.arrivals.looked(self._gateway.refresh, anyway=switched)
        async with asyncio.TaskGroup() as group:
            for agent in moved(told):
                group.create_task(self._publish_one(agent))

    async def _publish_one(self, agent: Moved) -> None:
        async def record() -> StateRecord | None:
            desk = self._gateway.desk
            return await state_record(desk.states, desk.source_of, agent)

        async with self._gate:
            with logged(agent=agent.agent):
                found = await self._gateway.health.patiently("the tables", record)
                if found is None:
                    return
                if found.error:
                    self._metrics.failures.inc()
                    _log.warning("state not folded", store=agent.store, reason=found.error)
                key = key_of(agent.store, agent.agent)
                await self._gateway.health.patiently("Kafka", lambda: self._send(key, found))
                self._metrics.published.inc()

    async def _send(self, key: bytes, state: StateRecord) -> None:
        try:
            await self._publish.publish(encode(state), key=key)
        except KafkaError as error:
            raise Unreachable(
                f"Kafka at {self._cluster.kafka} doesn't take a state of {self._topic}: {error!r}",
                hint="start it, or check its address",
            ) from error


def application(cluster: Cluster) -> AsgiFastStream:
    """The service. Nothing is connected before it is started."""
    gateway = Gateway(
        cluster,
        functools.partial(opened, cluster, with_memories=False),
        default_projections,
        default_upcasters,
        service="projector",
    )
    broker = KafkaBroker(
        cluster.kafka.split(","),
        client_id=cluster.group("projector"),
        acks="all",
        # Not idempotent: once a batch has expired, such a producer's numbers are out of order for
        # good. A state that is published twice is the same one.
        enable_idempotence=False,
        apply_types=False,  # what is consumed are records as they are
        logger=None,
    )
    projector = Projector(cluster, gateway, broker)

    @broker.subscriber(
        cluster.topic("journal"),
        batch=True,
        max_records=RECORDS_AT_ONCE,
        batch_timeout_ms=batches.IDLE_MILLISECONDS,
        group_id=cluster.group("projector"),
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=FETCH_BYTES,
        max_poll_interval_ms=HANDLING_SECONDS_MAX * 1000,
        session_timeout_ms=SESSION_SECONDS * 1000,
        heartbeat_interval_ms=SESSION_SECONDS * 1000 // 3,
        listener=projector.arrivals,
        parser=batches.as_they_are,
        decoder=batches.undecoded,
        title="journal",
        description="What became of events; see perdure.kafka.journal",
    )
    async def take(records: Sequence[Record]) -> None:
        await projector.take(records)

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with gateway.running():
            await gateway.health.patiently("Kafka", lambda: topics.ensure(cluster))
            yield

    app = _Application(broker, asgi_routes=gateway.health.routes(), lifespan=lifespan, logger=None)
    app.http = build(gateway, [StateRoutes])
    return app
