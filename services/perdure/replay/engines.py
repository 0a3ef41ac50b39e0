"""What a replay works with: the engines of a cluster, and the tables of its generations."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session
from perdure.cassandra.state_table import CassandraStateTable
from perdure.cassandra.streams import CassandraRecordings
from perdure.cassandra.tables import Generations, OneGeneration
from perdure.cassandra.tables import Tables as Prepared
from perdure.errors import PerdureError
from perdure.kafka import wire
from perdure.recorder.recordings import Stream
from perdure.replay.archive import opened as archive_opened
from perdure.replay.log import Log
from perdure.replay.topic import check_topic
from perdure.settings import Cluster

PAUSE_SECONDS_MAX: Final = 10.0
"""The longest pause before an engine is tried again."""

T = TypeVar("T")

Bars: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Shows progress: of a stage by its name and its total, told how much is done."""

Tell: TypeAlias = Callable[[str], None]
"""Tells an operator something."""


class Tables:
    """The tables of all agents, in one generation or in those that are live."""

    def __init__(self, session: Session, generations: Generations, topic_generation: int) -> None:
        self.generations = generations
        self.recordings = CassandraRecordings(session, generations, topic_generation)
        self._session = session
        self._events: dict[str, CassandraEventTable] = {}

    def events(self, store: str) -> CassandraEventTable:
        """The events of a store."""
        if store not in self._events:
            self._events[store] = CassandraEventTable(self._session, store, self.generations)
        return self._events[store]

    def states(self, store: str) -> CassandraStateTable:
        """The saved states of a store."""
        return CassandraStateTable(self._session, store, self.generations)

    async def load(self, store: str, agent: str) -> Stream:
        """The agent as it is stored. Raises Unavailable, Corrupt."""
        return await self.recordings.load(store, agent)

    async def chain_at(self, store: str, agent: str, sequence: int) -> bytes:
        """The hash chain after a sequence. Raises Unavailable, Corrupt."""
        return await self.events(store).chain_at(agent, sequence)


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines of a cluster, connected. `tell` is told what is waited for."""

    cluster: Cluster
    session: Session
    catalog: Catalog
    placed: LiveGenerations
    live: Tables
    log: Log
    topic_generation: int
    tell: Tell

    async def generation(self, number: int) -> Tables:
        """The tables of one generation. Raises Unavailable, Corrupt."""
        prepared = await Prepared.prepare(self.session, self.cluster.keyspace(number))
        return Tables(self.session, OneGeneration(prepared), self.topic_generation)

    def partition_of(self, store: str, agent: str) -> int:
        """The partition of an agent."""
        return wire.partition_of(wire.key_of(store, agent), self.cluster.partitions)

    async def patiently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives; it is made again for as long as an engine is away."""

        def told(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome is not None:
                self.tell(f"waiting for {what}: {state.outcome.exception()}")

        async def once() -> T:
            return await call()

        return await AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, PerdureError) and e.retriable),
            wait=wait_random_exponential(multiplier=0.1, max=PAUSE_SECONDS_MAX),
            before_sleep=told,
            reraise=True,
        )(once)


@contextlib.asynccontextmanager
async def opened(cluster: Cluster, tell: Tell) -> AsyncIterator[Engines]:
    """The engines of a cluster that has a log.

    Raises:
        NotFound: there is no such cluster.
        Incompatible, UnsupportedFormat: it is of another kind than the settings, or newer.
        Unavailable: an engine does not answer.
    """
    await check_topic(cluster, "events")
    async with contextlib.AsyncExitStack() as stack:
        session = await Session.connect(cluster)
        stack.push_async_callback(session.close)
        catalog = await Catalog.open(session, cluster)
        topic_generation = await catalog.checked_topics(cluster.partitions)
        placed = await LiveGenerations.open(
            session,
            cluster,
            catalog,
            lambda store, agent: wire.partition_of(wire.key_of(store, agent), cluster.partitions),
        )
        archive = await stack.enter_async_context(
            archive_opened(cluster.archive, cluster.topic("events"))
        )
        yield Engines(
            cluster,
            session,
            catalog,
            placed,
            Tables(session, placed, topic_generation),
            Log(cluster, archive),
            topic_generation,
            tell,
        )
