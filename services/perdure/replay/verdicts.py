"""What the recorder decided about records that were just sent, as the journal tells it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from perdure.errors import Corrupt
from perdure.kafka import journal
from perdure.kafka.journal import Entry
from perdure.replay.topic import TopicReader, reading
from perdure.settings import Cluster


class Decision(NamedTuple):
    """What became of a record of the events."""

    partition: int
    offset: int
    entry: Entry


class Verdicts:
    """The journal from the moment at which it was opened. Made by `following`."""

    def __init__(self, reader: TopicReader) -> None:
        self._reader = reader

    async def decisions(self, wanted: set[tuple[int, int]]) -> AsyncIterator[Decision]:
        """Decisions about records (partition, offset) as they come, until all are there.

        Raises:
            Unreachable: Kafka does not answer.
        """
        open_ends = set(wanted)
        while open_ends:
            for partition, records in (await self._reader.fetch()).items():
                for record in records:
                    with contextlib.suppress(Corrupt):
                        for entry in journal.decode(record.value).entries:
                            if (partition, entry.offset) in open_ends:
                                open_ends.discard((partition, entry.offset))
                                yield Decision(partition, entry.offset, entry)


@contextlib.asynccontextmanager
async def following(cluster: Cluster) -> AsyncIterator[Verdicts]:
    """The journal from now on. Raises Unreachable."""
    async with reading(cluster, "journal") as reader:
        bounds = await reader.bounds(range(cluster.partitions))
        reader.start({partition: bound.end for partition, bound in bounds.items()})
        yield Verdicts(reader)


async def decided(
    verdicts: Verdicts, wanted: set[tuple[int, int]], seconds: float
) -> dict[tuple[int, int], Entry]:
    """What is decided about records (partition, offset) within so many seconds."""
    found: dict[tuple[int, int], Entry] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for partition, offset, entry in verdicts.decisions(wanted):
                found[partition, offset] = entry
    return found
