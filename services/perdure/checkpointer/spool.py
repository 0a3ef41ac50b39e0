"""Chunks of unfinished uploads on the local disk: a file each, in a folder of this process.

They are a copy: what counts is in Kafka, and is read again after a restart.

Invariants:
- The folder is locked while its process lives; one that is not was left by a killed process, and is
  removed by the next that starts.
- No more bytes are spooled than was allowed.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from perdure.errors import InvalidInput, StoreFull, Unavailable

SPOOL_BYTES_MAX: Final = 16 * 2**30
"""The most bytes of unfinished uploads that a process keeps."""

PIECE_BYTES: Final = 1 << 20
"""Bytes of a file that are in memory at a time."""

_PREFIX: Final = "perdure-uploads-"


class Spool:
    """Files of this process, in a folder of its own below `root` (where temporary files go).

    Everything here blocks: it is called in threads, of different files at the same time. Raises
    StoreFull, Unavailable. Where somebody else removed a file, there is nothing in it any more.
    """

    def __init__(self, root: Path | None = None, *, bytes_max: int = SPOOL_BYTES_MAX) -> None:
        self._root = root or Path(tempfile.gettempdir())
        self._bytes_max = bytes_max
        self._folder: Path | None = None
        self._lock = -1
        self._sizes: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._opening = threading.Lock()

    def new(self) -> int:
        """The number of a new file; there is nothing in it yet."""
        return next(self._numbers)

    def append(self, name: int, data: bytes) -> None:
        """Add to a file; all of `data` or, where this raises, nothing.

        Raises InvalidInput where somebody removed what is in it.
        """
        size = self._sizes.get(name, 0)
        try:
            with self._path(name).open("ab", buffering=0) as file:
                if file.tell() < size:
                    raise InvalidInput(
                        f"{size} bytes that were spooled are gone from {self._root}",
                        hint="save the object again",
                    )
                file.truncate(size)  # what an attempt that failed left behind
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            raise self._translated(error) from error
        self._sizes[name] = size + len(data)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more are allowed."""
        return sum(self._sizes.values()) + size <= self._bytes_max

    def pieces(self, name: int) -> Iterator[bytes]:
        """What was added to a file, from its start."""
        try:
            with self._path(name).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._translated(error) from error

    def remove(self, name: int) -> None:
        """Let go of a file; harmless where there is none."""
        if self._sizes.pop(name, None) is not None:
            with contextlib.suppress(OSError):
                self._path(name).unlink()

    def clean(self) -> None:
        """Remove what killed processes left, as far as it can be: it costs space, nothing else."""
        for folder in self._root.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                lock = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its owner lives
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)

    def close(self) -> None:
        """Remove everything."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None
        self._sizes.clear()

    def _path(self, name: int) -> Path:
        with self._opening:
            if self._folder is None:
                self.clean()
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._root))
                self._lock = os.open(folder, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._folder = folder
            return self._folder / str(name)

    def _translated(self, error: OSError) -> Unavailable:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return StoreFull(
                f"no space is left for uploads in {self._root}: {error.strerror}",
                hint="free some space, or set TMPDIR to another folder",
            )
        return Unavailable(
            f"uploads can't be kept in {self._root}: {error.strerror}",
            hint="set TMPDIR to a folder that this service may write to",
        )
