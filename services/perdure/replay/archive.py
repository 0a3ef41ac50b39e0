"""The archive of a topic: segments as zstd files, and an index of one small file a segment.

::

    ARCHIVE/TOPIC/PPPPP/00000000.json              lines of partition PPPPP's index, counted
    ARCHIVE/TOPIC/PPPPP/OFFSET-SHA256.zst          segments, each named by one of them

Invariants:
- A segment is in the archive once its line is; the line is written after the file, both durably.
- A line is written by nobody twice: of two archivers that are at the same offset one adds its
  segment, and the other goes on after it. So segments never overlap.
"""

import asyncio
import bisect
import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, Final, TypeVar

from perdure.blobs.places import Place, place_of
from perdure.errors import (
    Corrupt,
    PerdureError,
    StoreFull,
    StoreReadOnly,
    Unavailable,
    Unreachable,
)
from perdure.replay.segments import (
    LogRecord,
    Segment,
    SegmentWriter,
    decode_line,
    encode_line,
    records,
)

THREADS: Final = 8
"""How many calls wait for the storage at the same time."""

_PIECE_BYTES: Final = 8 * 2**20
_MEMORY_BYTES: Final = 1_000_000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

T = TypeVar("T")


class Archive:
    """The archive of one topic at a URL, as fsspec takes it. Close it at the end.

    Nothing is asked of the storage before the first call. Raises: InvalidInput (a URL of no known
    kind).
    """

    def __init__(self, url: str, topic: str) -> None:
        self.topic = topic
        self.url = f"{url.rstrip('/')}/{topic}"
        self._place: Place = place_of(self.url)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="perdure-archive")
        self._index: dict[int, list[Segment]] = {}

    async def close(self) -> None:
        """Let go of threads and connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        self._place.close()

    async def segments(self, partition: int) -> list[Segment]:
        """What there is of a partition, in the order of offsets; as of now.

        Raises:
            Corrupt: a line of the index is missing or damaged.
            UnsupportedFormat: it was written by a newer version.
            Unavailable: the storage can't be read.
        """
        known = self._index.setdefault(partition, [])
        names = [n for n in await self._names(partition) if n.endswith(".json")]
        for number, name in enumerate(names):
            if name != _line_name(number):
                raise Corrupt(
                    f"line {number} of the index of partition {partition} is missing in the"
                    f" archive {self.url}",
                    hint="restore it from a copy of the archive",
                )
        new = range(len(known), len(names))
        lines = await asyncio.gather(*(self._line(partition, number) for number in new))
        known += lines
        return list(known)

    async def add(self, writer: SegmentWriter, partition: int, number: int) -> Segment | None:
        """Add a segment as line `number` of its partition's index; durable when it returns.

        None where somebody else wrote that line: nothing is added then.

        Raises:
            StoreFull, StoreReadOnly, Unavailable: the storage doesn't take it.
        """
        segment, file = await self._call(writer.finish)
        path = f"{partition:05d}/{segment.name}"
        await self._call(partial(self._write, path, file))
        line = f"{partition:05d}/{_line_name(number)}"
        try:
            await self._call(partial(self._write_once, line, encode_line(segment)))
        except FileExistsError:
            taken = await self._line(partition, number)
            if taken.name == segment.name:
                return segment  # The same, by another archiver or by this one's first try.
            await self._call(lambda: self._place.remove(path))
            return None
        return segment

    async def read(self, segment: Segment) -> AsyncIterator[list[LogRecord]]:
        """The records of a segment, in batches of bounded size; nothing before it is verified.

        Raises:
            Corrupt: the file is missing, or not the one that was written.
            Unavailable: the storage can't be read.
        """
        path = f"{segment.partition:05d}/{segment.name}"
        with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as file:
            if not await self._call(partial(self._copy, path, file)):
                raise Corrupt(
                    f"segment {path} is missing in the archive {self.url}",
                    hint="restore it from a copy of the archive",
                )
            batches = records(segment, file)
            while (batch := await self._call(lambda: next(batches, None))) is not None:
                yield batch

    async def clean(self, partition: int) -> int:
        """Remove segments of a partition that a killed archiver left without a line; how many."""
        segments = await self.segments(partition)
        named = {segment.name for segment in segments}
        end = segments[-1].last if segments else -1
        removed = 0
        for name in await self._names(partition):
            first = name.partition("-")[0]
            # What begins in what the index covers can't get a line any more.
            if (
                name.endswith(".zst")
                and name not in named
                and first.isdecimal()
                and int(first) <= end
            ):
                path = f"{partition:05d}/{name}"
                await self._call(partial(self._place.remove, path))
                removed += 1
        return removed

    async def _names(self, partition: int) -> list[str]:
        return await self._call(lambda: self._place.names(f"{partition:05d}"))

    async def _line(self, partition: int, number: int) -> Segment:
        path = f"{partition:05d}/{_line_name(number)}"

        def read() -> bytes:
            with self._place.opened(path) as file:
                return file.read()

        return decode_line(await self._call(read), f"line {path}")

    def _write(self, path: str, file: IO[bytes]) -> None:
        writing = self._place.writing(path)
        try:
            while piece := file.read(_PIECE_BYTES):
                writing.write(piece)
            writing.commit()
        finally:
            writing.discard()

    def _write_once(self, path: str, data: bytes) -> None:
        writing = self._place.writing(path, once=True)
        try:
            writing.write(data)
            writing.commit()
        finally:
            writing.discard()

    def _copy(self, path: str, file: IO[bytes]) -> bool:
        """Copy what is stored into a file; False where nothing is."""
        try:
            with self._place.opened(path) as stored:
                while piece := stored.read(_PIECE_BYTES):
                    file.write(piece)
        except FileNotFoundError:
            return False
        file.seek(0)
        return True

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (PerdureError, FileExistsError):
            raise
        except Exception as error:  # drivers have trees of errors of their own
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Unavailable:
        number = error.errno if isinstance(error, OSError) else None
        told = f"{self.url}: {os.strerror(number) if number else error}"
        if number in _FULL:
            return StoreFull(
                f"no space is left for the archive {told}",
                hint="free some space; what is archived is not harmed, and archiving goes on there",
            )
        if number in _DENIED or isinstance(error, PermissionError):
            return StoreReadOnly(
                f"the archive is denied: {told}", hint="give this user the right to read and write"
            )
        if isinstance(error, FileNotFoundError):
            return Unavailable(
                f"there is no place for the archive {told}",
                hint="make the bucket, or mend the setting archive",
            )
        return Unreachable(
            f"the archive can't be reached at {told}",
            hint="what is archived is not harmed; look at the storage",
        )


def following(segments: list[Segment], position: int) -> list[Segment]:
    """Of segments in order, those that hold a position or what comes after it."""
    return segments[bisect.bisect_left(segments, position, key=lambda segment: segment.last) :]


@contextlib.asynccontextmanager
async def opened(url: str, topic: str) -> AsyncIterator[Archive]:
    """The archive of a topic, while the context lasts."""
    archive = Archive(url, topic)
    try:
        yield archive
    finally:
        await archive.close()


def _line_name(number: int) -> str:
    return f"{number:08d}.json"
