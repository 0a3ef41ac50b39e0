"""The memory indexes of stores, on a Weaviate that may come later than the rest."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from perdure.cassandra.event_table import CassandraEventTable
from perdure.errors import NotFound, Unreachable
from perdure.memorizer.embedder import default_embedder
from perdure.memorizer.memory import MemoryIndex
from perdure.model.event import Event
from perdure.serving import Health
from perdure.settings import Cluster
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.schema import Collections
from perdure.weaviate.session import Session

MEMORY_TYPES = ("memory.stored", "memory.forgotten")


class Memories:
    """Makes the index of each store, in the collections of one generation."""

    def __init__(self, cluster: Cluster, health: Health, generation: int) -> None:
        self._cluster = cluster
        self._health = health
        self._generation = generation
        self._collections: Collections | None = None

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Connects in the background, while the context lasts."""
        connecting = asyncio.create_task(self._connect())
        try:
            yield
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            if self._collections is not None:
                await self._collections.session.close()

    async def _connect(self) -> None:
        async def connected() -> Session:
            return await Session.connect(self._cluster)

        session = await self._health.patiently("Weaviate", connected)
        self._collections = Collections(session, self._cluster.name, self._generation)

    def of(self, store: str, events: CassandraEventTable) -> Callable[[], MemoryIndex]:
        """Gives the index of a store. What it gives raises Unreachable until it is connected."""
        made: WeaviateIndex | None = None

        async def memory_events(agent: str, first: int, last: int) -> AsyncIterator[Event]:
            with contextlib.suppress(NotFound):
                async for batch in events.by_type(agent, MEMORY_TYPES, first=first, last=last):
                    for event in batch.events:
                        yield event

        async def sequence_of(agent: str) -> int:
            try:
                return (await events.head(agent)).sequence
            except NotFound:
                return 0

        def index() -> MemoryIndex:
            nonlocal made
            if self._collections is None:
                raise Unreachable(
                    f"Weaviate at {self._cluster.weaviate} does not answer yet",
                    hint="memories can be asked for when it is up; all else can be read",
                )
            if made is None:
                made = WeaviateIndex(
                    self._collections,
                    store,
                    memory_events=memory_events,
                    sequence_of=sequence_of,
                    embedder=default_embedder().name,
                )
            return made

        return index
