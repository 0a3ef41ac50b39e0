"""Copying the topic of events into the archive, from where the archive ends.

Invariants:
- Nothing is skipped silently: offsets that the topic lost before they were archived are told.
- Any number of archivers may run at once: what one of them adds, the others go on after.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from aiokafka import ConsumerRecord

from perdure.errors import Incompatible
from perdure.replay.archive import Archive
from perdure.replay.segments import Segment, SegmentWriter, as_logged
from perdure.replay.topic import Bounds, OffsetsGoneError, TopicReader

SEGMENT_SECONDS: Final = 3600.0
"""Age at which a segment is complete, however small it is."""


class Missing(NamedTuple):
    """Offsets of a partition, from `first` to `last`, that are nowhere any more."""

    partition: int
    first: int
    last: int


def gaps(partition: int, segments: Sequence[Segment], start: int = 0) -> list[Missing]:
    """The offsets from `start` to the archive's end that no segment covers.

    >>> gaps(3, [])
    []
    """
    found, expected = [], start
    for segment in segments:
        if segment.first > expected:
            found.append(Missing(partition, expected, segment.first - 1))
        expected = max(expected, segment.last + 1)
    return found


class Archiver:
    """Copies partitions of a topic. `added` and `missing` are told of what happens."""

    def __init__(
        self,
        archive: Archive,
        reader: TopicReader,
        partitions: Sequence[int],
        *,
        added: Callable[[Segment], None],
        missing: Callable[[Missing], None],
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self._archive = archive
        self._reader = reader
        self._partitions = partitions
        self._added = added
        self._missing = missing
        self._segment_seconds = segment_seconds
        self._writers: dict[int, SegmentWriter] = {}
        self._began: dict[int, float] = {}
        self._lines: dict[int, int] = {}
        self._next: dict[int, int] = {}

    async def lag(self) -> int:
        """How many offsets the topic has that the archive hasn't."""
        bounds = await self._reader.bounds(self._partitions)
        ends = [await self._end(partition) for partition in self._partitions]
        return sum(
            max(0, bounds[partition].end - max(end, bounds[partition].first))
            for partition, end in zip(self._partitions, ends, strict=True)
        )

    async def copy(self, progress: Callable[[int], None]) -> None:
        """Copy what the topic has now; `progress` is told how many offsets are done.

        Raises:
            Incompatible: the topic ends before the archive does.
            Corrupt, Unavailable: see `Archive`.
        """
        try:
            bounds = await self._start()
            begun = dict(self._next)
            ends = {partition: bounds[partition].end for partition in self._partitions}
            while any(self._next[partition] < end for partition, end in ends.items()):
                await self._step()
                progress(sum(self._next.values()) - sum(begun.values()))
            await self._flush_all()
        finally:
            self._close()

    async def follow(self, stop: asyncio.Event) -> None:
        """Copy what comes, until told to stop; what was read by then is archived at the end.

        Raises as `copy` does.
        """
        try:
            await self._start()
            while not stop.is_set():
                await self._step()
                now = time.monotonic()
                for partition, began in list(self._began.items()):
                    if now - began >= self._segment_seconds:
                        await self._flush(partition)
            await self._flush_all()
        finally:
            self._close()

    async def _start(self) -> dict[int, Bounds]:
        bounds = await self._reader.bounds(self._partitions)
        for partition in self._partitions:
            await self._archive.clean(partition)
            await self._begin(partition, bounds[partition])
        self._reader.start(self._next)
        return bounds

    async def _begin(self, partition: int, bounds: Bounds) -> None:
        """Go on where the archive of a partition ends, or the topic begins."""
        end = await self._end(partition)
        if end > bounds.end:
            raise Incompatible(
                f"the archive {self._archive.url} has partition {partition} up to offset"
                f" {end - 1}, and the topic ends at {bounds.end - 1}: it is another one",
                hint="set archive to a new place, or restore the topic",
            )
        if bounds.first > end:
            self._missing(Missing(partition, end, bounds.first - 1))
        self._next[partition] = max(end, bounds.first)

    async def _end(self, partition: int) -> int:
        segments = await self._archive.segments(partition)
        self._lines[partition] = len(segments)
        return segments[-1].last + 1 if segments else 0

    async def _step(self) -> None:
        try:
            found = await self._reader.fetch()
        except OffsetsGoneError:
            # Deleted while it was waited for: what was read is archived, then it goes on behind.
            await self._flush_all()
            await self._start()
            return
        for partition, records in found.items():
            await self._take(partition, records)
        for partition in self._partitions:
            # Marks of Kafka's own take offsets, too.
            position = await self._reader.position(partition)
            self._next[partition] = max(self._next[partition], position)
            if partition in self._writers:
                self._writers[partition].cover(position)

    async def _take(self, partition: int, records: list[ConsumerRecord[bytes, bytes]]) -> None:
        taken = 0
        while taken < len(records):
            writer = self._writers.get(partition)
            if writer is None:
                first = self._next[partition]
                if records[taken].offset < first:
                    return  # Archived by somebody else meanwhile: reading goes on behind it.
                writer = self._writers[partition] = SegmentWriter(
                    self._archive.topic, partition, first
                )
                self._began[partition] = time.monotonic()
            taken += await asyncio.to_thread(_fill, writer, records[taken:])
            self._next[partition] = writer.next
            if writer.full:
                await self._flush(partition)

    async def _flush_all(self) -> None:
        for partition in list(self._writers):
            await self._flush(partition)

    async def _flush(self, partition: int) -> None:
        """Add what was read of a partition to the archive."""
        writer = self._writers.pop(partition)
        del self._began[partition]
        try:
            segment = await self._archive.add(writer, partition, self._lines[partition])
        finally:
            writer.close()
        if segment is not None:
            self._lines[partition] += 1
            self._added(segment)
            return
        # Another archiver was here first: go on after what it added.
        bounds = await self._reader.bounds([partition])
        await self._begin(partition, bounds[partition])
        self._reader.seek(partition, self._next[partition])

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._began.clear()


def _fill(writer: SegmentWriter, records: list[ConsumerRecord[bytes, bytes]]) -> int:
    """Add records until the segment is complete; how many."""
    for count, record in enumerate(records, 1):
        writer.add(as_logged(record))
        if writer.full:
            return count
    return len(records)
