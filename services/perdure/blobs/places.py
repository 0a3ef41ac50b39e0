"""Where objects lie, and how one is written there so that it is whole or not there.

Invariants:
- What can be read under a path is complete and durable. In a folder it was written under another
  name, synced, renamed, and its folder synced; in an object store the one request that ends a
  write makes it visible.
- What a killed writer left behind is removed only once nobody can be writing it any more.

Everything here blocks: it is called in threads.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, runtime_checkable

from perdure.errors import InvalidInput

PART_BYTES: Final = 8 * 2**20
"""What an object store is sent in one request, and what of an object is in memory at a time.

S3 takes 10,000 parts of an object: 80 GB.
"""

_WRITING: Final = ".writing-"


class Writing(Protocol):
    """An object that is being written; it isn't there before `commit` returned."""

    def write(self, piece: bytes) -> None:
        """Add to it."""
        ...

    def commit(self) -> None:
        """Make it what is read under its path, in place of what was there."""
        ...

    def discard(self) -> None:
        """Leave everything as it was. Never raises; harmless after `commit`."""
        ...


class Place(Protocol):
    """A root under which objects have paths of two parts, such as `ab/abcdef…`.

    Raises what its driver raises: FileNotFoundError where something isn't there.
    """

    def size(self, path: str) -> int:
        """How many bytes the object has."""
        ...

    def opened(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """The object as it is now, to be read in pieces; of a later one nothing is mixed in."""
        ...

    def writing(self, path: str, *, once: bool = False) -> Writing:
        """Begin to write an object.

        With `once` it takes nobody's place: `commit` raises FileExistsError where one is there.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder, by name and in order; nothing where there is no such folder."""
        ...

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""
        ...

    def settle(self, path: str) -> None:
        """Make sure that an object which can be read is durable as well."""
        ...

    def is_there(self) -> bool:
        """Whether the place itself, a bucket for example, can be found."""
        ...

    def clean(self, older_seconds: float) -> int:
        """Remove what writers left unfinished that long ago; how many."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def place_of(url: str) -> Place:
    """The place that a URL names: `file:///folder`, `s3://bucket/prefix`, or what fsspec knows.

    Keys, regions and endpoints of object stores come from where their own clients look for them,
    such as the variables AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.

    Raises:
        InvalidInput: fsspec knows no such URL, or the package for it is not installed.
    """
    import fsspec  # type: ignore[import-untyped] # it ships no types

    try:
        # Not from fsspec's cache: what one cluster closes another one may be using.
        filesystem, root = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise InvalidInput(
            f"checkpoint storage {url!r} needs a package that is not installed: {error}",
            hint="install it beside perdure",
        ) from error
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"checkpoint storage {url!r} is of no known kind: {error}",
            hint="for example file:///var/lib/perdure/blobs or s3://bucket/prefix",
        ) from error
    if "file" in filesystem.protocol:
        return Folder(Path(root))
    return ObjectStore(filesystem, root)


class Folder:
    """A folder of this machine, or one that several machines share.

    Not written through fsspec, which doesn't sync what it writes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: set[Path] = set()

    def size(self, path: str) -> int:
        """How many bytes the object has."""
        return (self._root / path).stat().st_size

    def opened(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """The object as it is now."""
        return (self._root / path).open("rb")

    def writing(self, path: str, *, once: bool = False) -> Writing:
        """Begin to write an object."""
        final = self._root / path
        self._make(final.parent)
        try:
            return _FolderWriting(final, once=once)
        except FileNotFoundError:
            # Removed since it was made.
            self._synced.clear()
            self._make(final.parent)
            return _FolderWriting(final, once=once)

    def names(self, folder: str) -> list[str]:
        """What is in a folder, by name and in order."""
        try:
            found = [path.name for path in (self._root / folder).iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.startswith(_WRITING))

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""
        (self._root / path).unlink(missing_ok=True)

    def settle(self, path: str) -> None:
        """Whoever renamed it may not have synced the folder yet."""
        _sync((self._root / path).parent)

    def is_there(self) -> bool:
        """A folder is made when it is first written to."""
        return True

    def clean(self, older_seconds: float) -> int:
        """Remove temporary files that are old and that nobody holds."""
        removed = 0
        before = time.time() - older_seconds
        for temporary in self._root.glob(f"*/{_WRITING}*"):
            with contextlib.suppress(OSError):
                if temporary.stat().st_mtime >= before:
                    continue
                with temporary.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while a writer lives
                    temporary.unlink()
                    removed += 1
        return removed

    def close(self) -> None:
        """A folder has none."""

    def _make(self, folder: Path) -> None:
        """Make a folder that survives power loss; each is synced once by each opener."""
        if folder in self._synced:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (folder.parent, folder.parent.parent):
            _sync(parent)
        self._synced.add(folder)


class _FolderWriting:
    def __init__(self, final: Path, *, once: bool) -> None:
        self._final = final
        self._once = once
        descriptor, name = tempfile.mkstemp(prefix=_WRITING, dir=final.parent)
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        # Held as long as the writer lives: who cleans up sees that it is being written.
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]

    def commit(self) -> None:
        os.fsync(self._file)
        if self._once:
            os.link(self._temporary, self._final)  # unlike a rename, it replaces nothing
            self._temporary.unlink()
        else:
            self._temporary.replace(self._final)
        self._file.close()
        _sync(self._final.parent)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


class _DriverFile(Protocol):
    """What fsspec's files offer, as far as it is used here."""

    closed: bool

    def write(self, piece: bytes) -> int: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class _Driver(Protocol):
    """What fsspec's file systems offer, as far as it is used here. They have no types."""

    def info(self, path: str) -> Mapping[str, object]: ...
    def exists(self, path: str) -> bool: ...
    def ls(self, path: str, *, detail: bool) -> list[str]: ...
    def rm_file(self, path: str) -> None: ...
    def open(self, path: str, mode: str, *, block_size: int, **options: str) -> Any: ...  # noqa: ANN401


@runtime_checkable
class _S3(Protocol):
    """What the driver for S3 has beside that."""

    loop: object
    _s3: object

    def list_multipart_uploads(self, bucket: str) -> Iterable[Mapping[str, object]]: ...
    def abort_mpu(self, bucket: str, key: str, upload: str) -> None: ...
    def close_session(self, loop: object, client: object) -> None: ...


class ObjectStore:
    """An object store that fsspec has a driver for.

    A small object is one request; of a larger one the parts are sent as they come and become an
    object with the request that completes it.
    """

    def __init__(self, filesystem: _Driver, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def size(self, path: str) -> int:
        """How many bytes the object has."""
        return int(str(self._filesystem.info(f"{self._root}/{path}")["size"]))

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[BinaryIO]:
        """The object as it is now: every part is asked for with the tag of the first."""
        with self._filesystem.open(
            f"{self._root}/{path}", "rb", block_size=PART_BYTES, cache_type="none"
        ) as file:
            yield file

    def writing(self, path: str, *, once: bool = False) -> Writing:
        """Begin to write an object."""
        where = f"{self._root}/{path}"
        file = self._filesystem.open(where, "xb" if once else "wb", block_size=PART_BYTES)
        taken = (lambda: self._filesystem.exists(where)) if once else (lambda: False)
        return _ObjectWriting(file, taken)

    def names(self, folder: str) -> list[str]:
        """What is in a folder, by name and in order."""
        try:
            found = self._filesystem.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rpartition("/")[2] for path in found)

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(f"{self._root}/{path}")

    def settle(self, path: str) -> None:
        """What can be read from an object store is durable."""

    def is_there(self) -> bool:
        """Whether the bucket is there."""
        return bool(self._filesystem.exists(self._root.partition("/")[0]))

    def clean(self, older_seconds: float) -> int:
        """Give up uploads in parts that nobody completed, where the driver can list them."""
        driver = self._filesystem
        if not isinstance(driver, _S3):
            return 0
        bucket, _, prefix = f"{self._root}/".partition("/")
        removed = 0
        for upload in driver.list_multipart_uploads(bucket):
            key, begun = str(upload["Key"]), upload["Initiated"]
            age = time.time() - (begun.timestamp() if isinstance(begun, datetime) else time.time())
            if key.startswith(prefix) and age > older_seconds:
                driver.abort_mpu(bucket, key, str(upload["UploadId"]))
                removed += 1
        return removed

    def close(self) -> None:
        """Close the driver's session, if it has one that is open."""
        driver = self._filesystem
        if isinstance(driver, _S3) and driver._s3 is not None:  # noqa: SLF001 - or it would connect
            driver.close_session(driver.loop, driver._s3)  # noqa: SLF001


class _ObjectWriting:
    def __init__(self, file: _DriverFile, taken: Callable[[], bool]) -> None:
        self._file = file
        self._taken = taken
        self._committed = False

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def commit(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            if self._taken():
                raise FileExistsError(error.errno, "another one was first") from error
            raise
        self._committed = True

    def discard(self) -> None:
        if self._committed:
            return
        # Parts that can't be given up now are found by `clean` later.
        with contextlib.suppress(Exception):
            self._file.discard()
        self._file.closed = True  # or the garbage collector closes it, which would complete it


def _sync(folder: Path) -> None:
    """Make the entries of a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
