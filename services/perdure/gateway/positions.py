"""Whether what was written at a position can be read: from the journal, for those who ask."""

import asyncio

from perdure.errors import InvalidData
from perdure.gateway.journal import Journal
from perdure.kafka.wire import key_of, partition_of
from perdure.settings import Cluster


class Positions:
    """Fills `projector.asking.Freshness`."""

    def __init__(self, cluster: Cluster, journal: Journal) -> None:
        self._partitions = cluster.partitions
        self._journal = journal

    async def recorded(self, store: str, agent: str, position: str, wait_seconds: float) -> bool:  # noqa: ARG002 - offsets are of all stores
        """Whether what was written at a position can be read; waits at most so long.

        A position is `AGENT@SEQUENCE`, or `AGENT@PARTITION:OFFSET` of a write that was not recorded
        yet when it was answered.

        Raises:
            InvalidData: it is no position of this agent.
            PerdureError: the write was refused, as what it was refused with.
        """
        name, _, place = position.rpartition("@")
        partition, colon, offset = place.partition(":")
        if name == agent and place.isdecimal():
            return True  # A sequence is given when it can be read.
        if name != agent or not colon or not (partition.isdecimal() and offset.isdecimal()):
            raise InvalidData(
                f"position {position!r} is not one of agent {agent}",
                hint="give the position of an event of this agent",
            )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while (left := deadline - loop.time()) > 0 and not self._journal.verdicts.ended:
            found = await self._journal.decided([(int(partition), int(offset))], left)
            if found:
                found[0].entry.answers()
                return True
        return False

    async def caught_up(self, store: str, agent: str, wait_seconds: float) -> bool:
        """Whether all that was acknowledged before the call can be read; waits at most so long."""
        partition = partition_of(key_of(store, agent), self._partitions)
        return await self._journal.caught_up(partition, wait_seconds)
