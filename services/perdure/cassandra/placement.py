"""In which generation each partition of the log, and so each agent, is read."""

from collections.abc import Callable

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session
from perdure.cassandra.tables import Tables
from perdure.settings import Cluster


class LiveGenerations:
    """`tables.Generations` as the catalog has it; `refresh` after a generation was switched."""

    def __init__(
        self,
        session: Session,
        cluster: Cluster,
        catalog: Catalog,
        partition_of: Callable[[str, str], int],
    ) -> None:
        self._session = session
        self._cluster = cluster
        self._catalog = catalog
        self._partition_of = partition_of
        self._prepared: dict[int, Tables] = {}
        self._of_partition: dict[int, Tables] = {}
        self._only: Tables | None = None

    @classmethod
    async def open(
        cls,
        session: Session,
        cluster: Cluster,
        catalog: Catalog,
        partition_of: Callable[[str, str], int],
    ) -> "LiveGenerations":
        """What is live now; `partition_of` gives the partition of a store's agent."""
        generations = cls(session, cluster, catalog, partition_of)
        await generations.refresh()
        return generations

    async def refresh(self) -> dict[int, int]:
        """Ask the catalog again; the generation of each partition."""
        placement = await self._catalog.placement()
        prepared = {}
        for number in sorted(set(placement.values())):
            prepared[number] = self._prepared.get(number) or await Tables.prepare(
                self._session, self._cluster.keyspace(number)
            )
        self._prepared = prepared
        self._of_partition = {part: prepared[number] for part, number in placement.items()}
        self._only = next(iter(prepared.values())) if len(prepared) == 1 else None
        return placement

    def of(self, store: str, agent: str) -> Tables:
        """The tables of an agent."""
        return self._only or self._of_partition[self._partition_of(store, agent)]

    def of_partition(self, partition: int) -> Tables:
        """The tables of all agents of a partition."""
        return self._of_partition[partition]

    def all(self) -> list[Tables]:
        """The tables of all generations that agents are in."""
        return list(self._prepared.values())
