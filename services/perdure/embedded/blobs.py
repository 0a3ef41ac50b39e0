"""Checkpoint storage in one folder: `ab/abcdef…`, a file for each object, named by its content.

Invariants:
- A file under its final name is complete and on disk: it was written under another name, synced,
  renamed, and its folder synced. A crash leaves a temporary file, never half an object.
- A path is made of a digest that was checked to be 64 hexadecimal digits, and of nothing else.
- A temporary file is removed only when nobody can be writing it: it is old, and not locked.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Final

from perdure.errors import (
    Corrupt,
    InvalidInput,
    NotFound,
    StoreFull,
    StoreReadOnly,
    Unavailable,
)

LEFTOVER_SECONDS: Final = 3600
"""Age from which on a temporary file that nobody holds is taken for a killed writer's."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = ".writing-"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class FolderBlobs:
    """The port `Blobs` on one folder, which is made when the first object is kept.

    Keeping the first one also removes what killed writers left behind: opening doesn't look, which
    would take a tenth of a second where there are 100,000 objects.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._synced: set[Path] = set()
        self._cleaned = False

    async def put(self, digest: str, data: bytes) -> int:
        """Keep `data` under `digest`; the bytes stored. Idempotent; durable when it returns.

        Raises: InvalidInput (no digest), StoreFull, StoreReadOnly, Unavailable.
        """
        return await asyncio.to_thread(self._put, self._path(digest), data)

    async def get(self, digest: str) -> bytes:
        """The bytes kept under `digest`. Raises NotFound, InvalidInput, Unavailable."""
        return await asyncio.to_thread(self._get, self._path(digest), digest)

    async def size(self, digest: str) -> int:
        """How many bytes are kept under `digest`. Raises NotFound, InvalidInput, Unavailable."""
        return await asyncio.to_thread(self._size, self._path(digest), digest)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(
                f"{digest[:80]!r} is no digest", hint="give 64 hexadecimal digits of SHA-256"
            )
        return self._folder / digest[:2] / digest

    def _put(self, path: Path, data: bytes) -> int:
        try:
            with contextlib.suppress(FileNotFoundError):
                # Compared, not only found: what was damaged on disk is mended, not acknowledged.
                # Its content is on disk; whoever wrote it may not have synced the folder yet.
                if path.read_bytes() == data:
                    _sync(path.parent)
                    return len(data)
            self._make(path.parent)
            _write(path, data)
            if not self._cleaned:
                self._cleaned = True
                _remove_leftovers(self._folder, time.time() - LEFTOVER_SECONDS)
        except OSError as error:
            raise _translated(error, self._folder) from error
        return len(data)

    def _make(self, folder: Path) -> None:
        """Make a folder that survives power loss; each is synced once by each opener."""
        if folder in self._synced:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (folder.parent, folder.parent.parent):
            _sync(parent)
        self._synced.add(folder)

    def _get(self, path: Path, digest: str) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise _missing(path, digest) from error
        except OSError as error:
            raise _unreadable(error, path, digest) from error

    def _size(self, path: Path, digest: str) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError as error:
            raise _missing(path, digest) from error
        except OSError as error:
            raise _unreadable(error, path, digest) from error


def _write(path: Path, data: bytes) -> None:
    # In the same folder: a rename across file systems would be a copy.
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123
            # Held while this process lives: who cleans up sees that it is being written.
            fcntl.flock(file, fcntl.LOCK_EX)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file)
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the entries of a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path, older_than: float) -> None:
    """Best effort: a leftover costs space and nothing else."""
    for temporary in folder.glob(f"??/{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if temporary.stat().st_mtime >= older_than:
                continue
            with temporary.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while a writer lives
                temporary.unlink()


def _missing(path: Path, digest: str) -> NotFound:
    return NotFound(
        f"object {digest} is not in {path.parent.parent}",
        hint="was the folder copied without it? `perdure verify` lists what is missing",
    )


def _unreadable(error: OSError, path: Path, digest: str) -> Unavailable | Corrupt:
    if error.errno in {errno.EISDIR, errno.EIO}:
        return Corrupt(
            f"object {digest} can't be read from {path}: {error.strerror}",
            hint="restore an older checkpoint; `perdure verify` lists the damaged ones",
        )
    return Unavailable(
        f"object {digest} can't be read from {path}: {error.strerror}",
        hint="give this user the right to read the store's folder",
    )


def _translated(error: OSError, folder: Path) -> Unavailable:
    if error.errno in _FULL:
        return StoreFull(
            f"no space is left for a checkpoint in {folder}: {error.strerror}",
            hint="free some space; nothing that was kept before is harmed",
        )
    if error.errno in _READ_ONLY:
        return StoreReadOnly(
            f"a checkpoint can't be written to {folder}: {error.strerror}",
            hint="give this user the right to write there, or choose another store",
        )
    return Unavailable(
        f"a checkpoint can't be written to {folder}: {error.strerror}",
        hint="nothing that was kept before is harmed; look at the disk",
    )
