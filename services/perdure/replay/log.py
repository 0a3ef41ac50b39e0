"""The log from its first record on: from the archive what the topic has no more, then the topic.

Invariants:
- Offsets come in their order, and none is left out: what is neither in the archive nor in the topic
  is an error that names it.
"""

import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NamedTuple

from aiokafka import ConsumerRecord

from perdure.errors import Incompatible, NotFound
from perdure.recorder.partition import Source
from perdure.replay.archive import Archive, following
from perdure.replay.segments import LogRecord
from perdure.replay.topic import Bounds, OffsetsGoneError, reading
from perdure.settings import Cluster


class Batch(NamedTuple):
    """Consecutive records of a partition; everything before the offset `next` has been read.

    Without records there is nothing new for now.
    """

    records: Sequence[Source]
    next: int


class Log:
    """The topic of events of a cluster, and its archive."""

    def __init__(self, cluster: Cluster, archive: Archive) -> None:
        self._cluster = cluster
        self._archive = archive

    async def bounds(self, partitions: Iterable[int]) -> dict[int, Bounds]:
        """What the topic holds now. Raises Unreachable."""
        async with reading(self._cluster, "events") as reader:
            return await reader.bounds(list(partitions))

    async def check(self, positions: dict[int, int]) -> None:
        """Check that everything from these positions on can be read.

        Raises:
            NotFound: something is neither in the archive nor in the topic.
            Corrupt, Unavailable: the archive can't be read.
        """
        for partition, bound in (await self.bounds(positions)).items():
            position = positions[partition]
            if position < bound.first:
                for segment in following(await self._archive.segments(partition), position):
                    if segment.first > position or position >= bound.first:
                        break
                    position = segment.last + 1
                if position < bound.first:
                    raise await self._gap(partition, position, bound.first)

    async def read(self, partition: int, position: int) -> AsyncGenerator[Batch, None]:
        """Everything of a partition from a position on, without end: waits for what comes.

        Raises:
            NotFound: something is neither in the archive nor in the topic.
            Incompatible: the topic ends before the position: it is another one.
            Corrupt, Unavailable: the archive or the topic can't be read.
        """
        async with reading(self._cluster, "events") as reader:
            while True:
                bounds = (await reader.bounds([partition]))[partition]
                if position > bounds.end:
                    raise Incompatible(
                        f"{self._cluster.topic('events')} ends at {partition}:{bounds.end}, and"
                        f" everything before {partition}:{position} is replayed: it is another one",
                        hint="perdure replay --restart begins anew",
                    )
                if position < bounds.first:
                    archived = self._archived(partition, position, bounds.first)
                    async with contextlib.aclosing(archived) as batches:
                        async for batch in batches:
                            yield batch
                            position = batch.next
                    continue
                reader.start({partition: position})
                # Deleted while it was waited for: it may be in the archive by now.
                with contextlib.suppress(OffsetsGoneError):
                    while True:
                        found = await reader.fetch()
                        position = await reader.position(partition)
                        yield Batch(found.get(partition, []), position)

    async def _archived(
        self, partition: int, position: int, until: int
    ) -> AsyncGenerator[Batch, None]:
        """The archive from a position on, at least up to the offset `until`."""
        for segment in following(await self._archive.segments(partition), position):
            if segment.first > position or position >= until:
                break
            async for records in self._archive.read(segment):
                own = [
                    self._as_consumed(partition, record)
                    for record in records
                    if record.offset >= position
                ]
                if own:
                    yield Batch(own, own[-1].offset + 1)
            position = segment.last + 1
            yield Batch([], position)
        if position < until:
            raise await self._gap(partition, position, until)

    def _as_consumed(self, partition: int, record: LogRecord) -> Source:
        """A record as the topic's consumer would give it."""
        topic = self._cluster.topic("events")
        place = topic, partition, record.offset, record.timestamp, record.timestamp_type
        found: Source = ConsumerRecord(
            *place, record.key, record.value, None, -1, -1, record.headers
        )
        return found

    async def _gap(self, partition: int, position: int, until: int) -> NotFound:
        later = [
            segment.first
            for segment in following(await self._archive.segments(partition), position)
            if segment.first > position
        ]
        last = min([until, *later]) - 1
        return NotFound(
            f"offsets {position} to {last} of partition {partition} are neither in the archive"
            f" {self._archive.url} nor in the topic {self._cluster.topic('events')}",
            hint="set archive to where `perdure archive` kept them; without them nothing can be"
            " rebuilt that equals what was recorded",
        )
