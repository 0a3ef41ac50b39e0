"""The memory indexes of stores, on a Weaviate that may come later than the rest."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.tables import Generations
from perdure.errors import Unreachable
from perdure.memorizer.choice import chosen_embedder
from perdure.memorizer.memory import MemoryIndex
from perdure.serving import Health
from perdure.settings import Cluster
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.schema import Collections
from perdure.weaviate.session import Session


class Memories:
    """Makes the index of each store."""

    def __init__(self, cluster: Cluster, health: Health) -> None:
        self._cluster = cluster
        self._health = health
        self._collections: Collections | None = None

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Connects in the background, while the context lasts."""
        connecting = asyncio.create_task(self._health.persistently("memory", self._connect))
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
        self._collections = Collections(session)

    def of(
        self, store: str, events: CassandraEventTable, generations: Generations
    ) -> Callable[[], MemoryIndex]:
        """Gives the index of a store. What it gives raises Unreachable until it is connected."""
        made: WeaviateIndex | None = None

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
                    events,
                    keyspace_of=lambda agent: generations.of(store, agent).keyspace,
                    embedder=chosen_embedder(self._cluster.embedder).name,
                )
            return made

        return index
