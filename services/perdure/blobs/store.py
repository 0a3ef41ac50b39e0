"""The port `Blobs` on a folder, S3, or what else fsspec knows: `ab/abcdef…` below one root.

Invariants:
- An object is there whole and durably, or not there, whatever happens while it is written.
- Of an object in pieces, no more than two parts are in memory.
- A path is made of a digest that was checked to be 64 hexadecimal digits, and of nothing else.
"""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO, Final, TypeVar

from perdure.blobs.places import PART_BYTES, place_of
from perdure.errors import (
    Corrupt,
    InvalidInput,
    NotFound,
    PerdureError,
    StoreFull,
    StoreReadOnly,
    Unavailable,
    Unreachable,
)

LEFTOVER_SECONDS: Final = 24 * 3600
"""Age from which on what a writer left unfinished is taken for a killed one's."""

THREADS: Final = 8
"""How many calls wait for the storage at the same time."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

T = TypeVar("T")


class FsspecBlobs:
    """`ports.Blobs` at a URL, and the same in pieces for objects that don't fit into memory.

    Nothing is asked of the storage before the first call.

    Raises: InvalidInput (a URL of no known kind).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._place = place_of(url)
        # Its own, so that a storage that hangs doesn't hold up other work in threads.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="perdure-blobs")

    async def put(self, digest: str, data: bytes) -> int:
        """Keep `data` under `digest`; the bytes stored. Idempotent; durable when it returns.

        Raises: InvalidInput (no digest), StoreFull, StoreReadOnly, Unavailable.
        """
        path = _path(digest)
        # Compared, not only found: what was damaged is mended, not acknowledged.
        if not await self._call(digest, lambda: self._has(path, data)):
            await self.put_stream(digest, _pieces(data))
        return len(data)

    async def put_stream(self, digest: str, pieces: AsyncIterable[bytes]) -> int:
        """Keep what the pieces make together under `digest`; the bytes stored.

        It takes the place of what is there. When this raises, also because `pieces` did,
        everything is as before.

        Raises: InvalidInput (no digest), StoreFull, StoreReadOnly, Unavailable.
        """
        path = _path(digest)
        writing = await self._write(digest, lambda: self._place.writing(path))
        size = 0
        try:
            async for piece in pieces:
                await self._write(digest, partial(writing.write, piece))
                size += len(piece)
            await self._write(digest, writing.commit)
        except BaseException:
            # Not awaited: a cancelled task gives up its parts as well.
            self._threads.submit(writing.discard)
            raise
        kept = await self.size(digest)
        if kept != size:
            raise Unavailable(
                f"object {digest} has {kept} bytes in {self._url} where {size} were written",
                hint="write it again; does the storage keep what it acknowledged?",
            )
        return size

    async def get(self, digest: str) -> bytes:
        """The bytes kept under `digest`.

        Raises: NotFound, InvalidInput (no digest), Corrupt, Unavailable.
        """
        return b"".join([piece async for piece in self.stream(digest)])

    async def stream(self, digest: str) -> AsyncIterator[bytes]:
        """The bytes kept under `digest`, in pieces of `PART_BYTES` at most.

        Raises: NotFound, InvalidInput (no digest), Corrupt, Unavailable.
        """
        path = _path(digest)
        with ExitStack() as stack:
            file: BinaryIO = await self._call(
                digest, lambda: stack.enter_context(self._place.opened(path))
            )
            while piece := await self._call(digest, lambda: file.read(PART_BYTES)):
                yield piece

    async def size(self, digest: str) -> int:
        """How many bytes are kept under `digest`.

        Raises: NotFound, InvalidInput (no digest), Unavailable.
        """
        path = _path(digest)
        return await self._call(digest, lambda: self._place.size(path))

    async def clean(self, older_seconds: float = LEFTOVER_SECONDS) -> int:
        """Remove what killed writers left unfinished; how many. Raises Unavailable."""
        return await self._call("", lambda: self._place.clean(older_seconds))

    async def close(self) -> None:
        """Let go of threads and connections; what is being written is given up."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        self._place.close()

    def _has(self, path: str, data: bytes) -> bool:
        try:
            if self._place.size(path) != len(data):
                return False
            view = memoryview(data)
            with self._place.opened(path) as file:
                while piece := file.read(PART_BYTES):
                    if view[: len(piece)] != piece:
                        return False
                    view = view[len(piece) :]
            self._place.settle(path)
        except FileNotFoundError:
            return False
        return not view

    async def _call(self, digest: str, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except PerdureError:
            raise
        except Exception as error:  # drivers have trees of errors of their own
            raise await self._translated(digest, error) from error

    async def _write(self, digest: str, call: Callable[[], T]) -> T:
        try:
            return await self._call(digest, call)
        except NotFound as error:
            raise Unavailable(
                f"object {digest} can't be written to {self._url}: {error.__cause__}",
                hint="is the storage where the setting `blobs` says?",
            ) from error

    async def _translated(self, digest: str, error: Exception) -> PerdureError:
        if isinstance(error, FileNotFoundError):
            return await asyncio.to_thread(self._missing, digest)
        number = error.errno if isinstance(error, OSError) else None
        told = f"{self._url}: {os.strerror(number) if number else error}"
        if number in _FULL:
            return StoreFull(
                f"no space is left for object {digest} in {told}",
                hint="free some space; nothing that was kept before is harmed",
            )
        if number in _READ_ONLY or isinstance(error, PermissionError):
            return StoreReadOnly(
                f"object {digest} is denied in {told}",
                hint="give this service the right to read and write there",
            )
        if number in {errno.EISDIR, errno.EIO}:
            return Corrupt(
                f"object {digest} can't be read from {told}",
                hint="restore an older checkpoint; `perdure verify` lists the damaged ones",
            )
        return Unreachable(
            f"checkpoint storage can't be reached at {told}",
            hint="nothing that was kept before is harmed; look at the storage",
        )

    def _missing(self, digest: str) -> PerdureError:
        try:
            found = self._place.is_there()
        except Exception:  # noqa: BLE001 - as above: whatever the driver raises, it isn't reached
            found = False
        if not found:
            return Unavailable(
                f"there is no bucket for checkpoint storage {self._url}",
                hint="make it, or mend the setting `blobs`",
            )
        return NotFound(
            f"object {digest} is not in {self._url}",
            hint="was the storage copied without it? `perdure verify` lists what is missing",
        )


def _path(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"{digest[:80]!r} is no digest", hint="give 64 hexadecimal digits of SHA-256"
        )
    return f"{digest[:2]}/{digest}"


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), PART_BYTES):
        yield bytes(view[start : start + PART_BYTES])
