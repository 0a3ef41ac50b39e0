"""The gateway as it runs: what it reads from, what it knows of the journal, and how it starts.

Invariants:
- It answers from the moment it runs: what needs an engine that isn't there yet says so.
- When it is told to stop, whoever waits for something to happen is answered at once.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

from perdure.errors import PerdureError, Unreachable
from perdure.gateway.journal import Journal
from perdure.gateway.positions import Positions
from perdure.gateway.sources import Sources, StoreSources
from perdure.kafka.journal import JournalRecord
from perdure.kafka.wire import store_name
from perdure.model.projection import Projections
from perdure.model.sequencing import Head
from perdure.model.upcast import Upcasters
from perdure.projector.asking import Desk
from perdure.projector.states import Source, States
from perdure.serving import Health, logger, stopping
from perdure.settings import Cluster

STORES_MAX: Final = 10_000
"""Stores whose sources are kept at hand."""

POLL_SECONDS_MAX: Final = 55.0
"""The longest a question may wait for something to happen."""

Connect = Callable[[Health], AbstractAsyncContextManager[Sources]]


class Metrics:
    """What Prometheus is told of a gateway."""

    def __init__(self, registry: CollectorRegistry, gateway: "Gateway") -> None:
        name = gateway.health.service
        self.seconds = Histogram(
            f"perdure_{name}_request_seconds",
            "Until a request was answered, by route, method and status",
            ["route", "method", "status"],
            registry=registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60),
        )

        def gauge(what: str, text: str, value: Callable[[], float]) -> None:
            Gauge(f"perdure_{name}_{what}", text, registry=registry).set_function(value)

        states, verdicts = gateway.desk.states, gateway.journal.verdicts
        gauge("states", "States kept in memory", lambda: states.count)
        gauge("state_bytes", "Bytes that kept states take, about", lambda: states.size)
        gauge("verdict_waits", "Records whose verdict is waited for", lambda: verdicts.waiting)


class Gateway:
    """What all routes work with. `connect` opens the sources; it is tried until it can."""

    def __init__(
        self,
        cluster: Cluster,
        connect: Connect,
        projections: Projections,
        upcasters: Upcasters,
        *,
        service: str = "gateway",
    ) -> None:
        self.cluster = cluster
        self.health = Health(service, ready=self._not_ready)
        self.journal = Journal(cluster, self._follow, self.refresh)
        self.positions = Positions(cluster, self.journal)
        self.desk = Desk(States(projections, upcasters), self._source, self.positions)
        self.metrics = Metrics(self.health.registry, self)
        self._connect = connect
        self._found: Sources | None = None
        self._sources: Sources | None = None
        self._failure = ""
        self._stores: OrderedDict[str, StoreSources] = OrderedDict()

    @property
    def sources(self) -> Sources:
        """What is read of the cluster.

        Raises:
            Unreachable: its engines didn't answer yet.
        """
        if self._sources is None:
            raise Unreachable(
                f"the {self.health.service} is starting", hint="/readyz says what it waits for"
            )
        return self._sources

    def of(self, store: str) -> StoreSources:
        """What is read of a store.

        Raises:
            InvalidName: it is no name of a store.
            Unreachable: the engines didn't answer yet.
        """
        found = self._stores.get(store)
        if found is None:
            found = self._stores[store] = self.sources.of(store_name(store))
            if len(self._stores) > STORES_MAX:
                self._stores.popitem(last=False)
        self._stores.move_to_end(store)
        return found

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reads the journal and connects, in the background, while the context lasts."""
        tasks = [
            asyncio.create_task(self.health.persistently("the journal's reader", self.journal.run)),
            asyncio.create_task(self.health.persistently("the tables' reader", self._open)),
            asyncio.create_task(self._end_waits(stopping())),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self) -> None:
        async with contextlib.AsyncExitStack() as stack:

            async def opened() -> Sources:
                return await stack.enter_async_context(self._connect(self.health))

            try:
                self._found = await self.health.patiently("the engines", opened)
                await self.refresh()  # What was switched while they were opened told nobody.
                self._sources = self._found
                await asyncio.Event().wait()
            except PerdureError as error:
                # Newer tables, another number of partitions: no patience helps.
                self._failure = str(error)
                logger("perdure.gateway").error("can't start", reason=str(error))
            finally:
                self._found = self._sources = None
                self._stores.clear()

    async def refresh(self) -> None:
        """Look in which generation of the tables agents are now; waits until that is known."""
        await self.health.patiently("Cassandra", self._refreshed)

    async def _refreshed(self) -> None:
        if self._found is not None:
            await self._found.refresh()

    async def _end_waits(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.journal.verdicts.end()

    def _not_ready(self) -> list[str]:
        problems = [self.journal.trouble] if self.journal.trouble else []
        if self._sources is None:
            problems.append(self._failure or "not connected to Cassandra yet")
        return problems

    def _source(self, store: str) -> Source:
        sources = self.of(store)
        return Source(store, sources.events, sources.states)

    def _follow(self, record: JournalRecord) -> None:
        if self.cluster.generation:
            return  # What is recorded now is not in what is looked at.
        if record.chain and self.desk.states.keeps(record.store, record.agent):
            head = Head(
                record.agent, record.sequence, record.epoch, bytes.fromhex(record.chain), None, {}
            )
            events = [event for entry in record.entries for event in entry.events]
            self.desk.states.follow(record.store, head, events)
