"""In which generation each partition of the log, and so each agent, is read."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import tenacity

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session
from perdure.cassandra.tables import Tables
from perdure.errors import Incompatible, NotFound, PerdureError, Refused, Unreachable
from perdure.settings import Cluster

SWITCH_SECONDS: Final = 15.0
"""How long a switch waits for what builds the new generation; then it doesn't take place."""

POLL_SECONDS: Final = 0.02
TOLD_SECONDS: Final = 1.0
"""After so long it is told that a switch waits."""


class LiveGenerations:
    """`tables.Generations` and `recorder.partition.Placement`, as the catalog has it.

    `refresh` after a generation was switched.
    """

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
        self._looking = asyncio.Lock()
        self._asked: dict[int, tuple[int, float]] = {}
        """The switch that a partition waits for: its position, and since when."""

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
        # One after the other: else one that looked earlier may be done later, and go back.
        async with self._looking:
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

    async def switch(self, partition: int, position: int, generation: int) -> None:
        """Go on where the record at a position says, once everything before it is there.

        Raises:
            Unreachable: it isn't yet; ask again.
            Refused: nothing was switched, because it was not for too long: whoever builds the
                generation may be gone.
            NotFound, Incompatible: the same, because it is no generation that could be switched to.
        """
        placed = await self._catalog.placed(partition)
        to: int | None = generation
        refusal: PerdureError = Refused(
            f"the record at {partition}:{position} was refused before",
            hint="`perdure replay` goes on and tries again",
        )
        if placed.position < position:
            try:
                await self._catalog.check_complete(generation)
                if placed.generation != generation:
                    await self._caught_up(partition, position, generation)
            except (Refused, NotFound, Incompatible) as error:
                to, refusal = None, error
        # Decided for everybody who comes to this record: for one that was held up before it, too.
        placed = await self._catalog.decide(partition, position, to)
        self._asked.pop(partition, None)
        await self.refresh()
        # Of an earlier record than the last one it was told already what became of it.
        if placed.position == position and placed.generation != generation:
            raise refusal

    async def _caught_up(self, partition: int, position: int, generation: int) -> None:
        asked, since = self._asked.get(partition, (-1, 0.0))
        if asked != position:
            since = time.monotonic()
            self._asked[partition] = position, since

        async def reached() -> bool:
            return (await self._catalog.progress(generation)).get(partition, -1) > position

        try:
            await tenacity.AsyncRetrying(
                retry=tenacity.retry_if_result(lambda there: not there),
                wait=tenacity.wait_fixed(POLL_SECONDS),
                stop=tenacity.stop_after_delay(TOLD_SECONDS),
            )(reached)
        except tenacity.RetryError as error:
            lacking = f"generation {generation} lacks records before {partition}:{position}"
            if time.monotonic() - since < SWITCH_SECONDS:
                raise Unreachable(f"{lacking} yet", hint="`perdure replay` brings them") from error
            raise Refused(
                f"{lacking}, after {SWITCH_SECONDS:.0f} s",
                hint="nothing was switched; `perdure replay` goes on and tries again",
            ) from error

    def of(self, store: str, agent: str) -> Tables:
        """The tables of an agent."""
        return self._only or self._of_partition[self._partition_of(store, agent)]

    def of_partition(self, partition: int) -> Tables:
        """The tables of all agents of a partition."""
        return self._of_partition[partition]

    def all(self) -> list[Tables]:
        """The tables of all generations that agents are in."""
        return list(self._prepared.values())
