"""One SQLite file: opening, format versions, group commit, and errors in perdure's words.

Invariants:
- A write's answer is given after its transaction is on disk: WAL with `synchronous=FULL` syncs the
  log at each commit, so it survives power loss. What needs no answer that lasts (`durable=False`)
  is there for every process at once, and on disk with the next commit that is synced.
- Writes that wait at the same time share one transaction, and with it one sync.
- A failed transaction leaves nothing behind, and every write that was in it is told.
- The format version is in the file (`user_version`), and a file of another program, of a newer
  format or with a broken header is refused before anything is written.

The commit runs on the event-loop thread while commits are fast, which on most machines they are
(0.1 ms): a switch to another thread and back takes half as long as the commit itself. Where the
disk is slow, or another process holds the write lock, it runs in a thread.
"""

import asyncio
import contextlib
import functools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

from perdure.errors import (
    Corrupt,
    PerdureError,
    StoreBusy,
    StoreClosed,
    StoreFull,
    StoreReadOnly,
    Unavailable,
    UnsupportedFormat,
)

T = TypeVar("T")

APPLICATION_ID: Final = 0x70647572
"""Marks the file as perdure's in its header (bytes 68 to 71): "pdur"."""

BUSY_SECONDS: Final = 30.0
"""How long a write waits for another process's transaction before it raises StoreBusy."""

INLINE_SECONDS_MAX: Final = 0.002
"""The mean time of a commit up to which commits run on the event-loop thread."""

CACHE_KIB: Final = 16 * 1024
PAGE_BYTES: Final = 2048
LOG_PAGES: Final = 4 * 2**20 // PAGE_BYTES
"""Pages of the log at which SQLite copies them into the file: 4 MiB, as many bytes as its default
has with pages of 4 KiB."""

Job: TypeAlias = Callable[[sqlite3.Connection], object]
Migration: TypeAlias = Callable[[sqlite3.Connection], None]
Done: TypeAlias = Callable[[object], None]
_Waiting: TypeAlias = tuple[Job, Done, bool]


class Transactions(Protocol):
    """What tables ask of what holds them: reading, and writing all or nothing."""

    def reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A connection that sees what is committed, with errors in perdure's words."""
        ...

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run `job` in a transaction and give back its result."""
        ...


_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""What a damaged file may raise: the second where the name of a table in it is no text."""

_LOOK: Final = "see `perdure doctor`; the file was not changed"


class Database:
    """A SQLite file with one writer connection and one reader connection.

    Use it from one event loop. `migrations[n]` lifts format `n` to `n + 1`; the first one makes the
    tables of a new file.
    """

    def __init__(
        self,
        path: Path,
        migrations: list[Migration],
        *,
        writable: bool = True,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self.path = path
        self.writable = writable
        self.busy_seconds = busy_seconds
        self.changes = 0
        """Goes up whenever what is known of the tables may be outdated: another process wrote, or
        a transaction was rolled back."""
        self._lock = threading.Lock()
        self._queue: list[_Waiting] = []
        self._scheduled = False
        self._threads: ThreadPoolExecutor | None = None
        self._commit_seconds = 0.0
        self._data_version = -1
        self._syncing = False
        """Whether the writer syncs the log at a commit."""
        self._closed = False
        self._writer: sqlite3.Connection | None = None
        existed = path.exists()
        if not writable and not existed:
            raise StoreReadOnly(f"{path} is not there and can't be made", hint="check the path")
        with _translated(path):
            self._reader = _connect(path, busy_seconds, writable=writable)
            try:
                self._check_format(len(migrations), writable=writable)
                if writable:
                    self._writer = _connect(path, busy_seconds)
                    _write_ahead(self._writer, busy_seconds)
                    # FULL, not NORMAL: a commit that was acknowledged must survive power loss.
                    self._writer.execute("PRAGMA synchronous = FULL")
                    self._syncing = True
                    self._writer.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
                    self._migrate(migrations)
                    self._writer.execute("PRAGMA busy_timeout = 0")
                self._check_tables(migrations)
                self._reader.execute("PRAGMA query_only = ON")
            except BaseException:
                self._reader.close()
                if self._writer is not None:
                    self._writer.close()
                raise

    @property
    def format(self) -> int:
        """The format version of the file."""
        return _format_of(self.read())

    def read(self) -> sqlite3.Connection:
        """The reader connection; it sees everything that is committed, by any process.

        Raises:
            StoreClosed: the database was closed.
        """
        if self._closed:
            raise StoreClosed(f"the store at {self.path.parent} is closed", hint="connect again")
        return self._reader

    def reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The reader connection, with SQLite's errors in perdure's words."""
        return self._reading()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection = self.read()
        try:
            yield connection
        except _ERRORS as error:
            raise translate(error, self.path) from error

    def version(self) -> int:
        """A number that differs whenever any process has committed something since."""
        return int(self.read().execute("PRAGMA data_version").fetchone()[0])

    async def write(self, job: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `job` in a transaction and give back its result once that is on disk.

        With `durable` off, power loss may undo it, as a whole and with nothing that was answered
        before; a killed process does not.

        A job raises a PerdureError only before its first statement that writes: the transaction
        goes on for the others that share it.

        Raises:
            Unavailable: the transaction could not be made durable; nothing of it is kept.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: object) -> None:
            settle(future, result)

        self.submit(job, done, durable=durable)
        return await future

    def submit(self, job: Job, done: Done, *, durable: bool = True) -> None:
        """Run `job` as `write` does; `done` gets its result, or the exception, on the event loop.

        For who has many to answer: it spares each of them a turn of the loop.
        """
        if self._closed:
            raise StoreClosed(f"the store at {self.path.parent} is closed", hint="connect again")
        if self._writer is None:
            raise StoreReadOnly(f"{self.path} was opened for reading only", hint="open it to write")
        self._queue.append((job, done, durable))
        if not self._scheduled:
            # Not at once: what is written in the same turn of the loop joins the transaction.
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._flush, loop)

    def write_now(self, job: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run `job` as `write` does, at once; None where it would wait for others or the disk."""
        if self._scheduled or self._closed or self._commit_seconds > INLINE_SECONDS_MAX:
            return None
        results = self._transact([job], wait=False)
        return None if results is None else results[0]  # type: ignore[return-value]  # the job's

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        queue, self._queue = self._queue, []
        jobs = [job for job, _, _ in queue]
        durable = any(durable for _, _, durable in queue)
        # A file that was closed meanwhile answers at once, and has no threads any more.
        inline = self._commit_seconds <= INLINE_SECONDS_MAX or self._writer is None
        try:
            results = self._transact(jobs, wait=False, durable=durable) if inline else None
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            results = [error] * len(jobs)
        except BaseException as error:
            # Ctrl-C outside of asyncio's care: nobody may be left waiting for ever.
            self._answer(queue, [error] * len(jobs), loop)
            raise
        if results is not None:
            self._answer(queue, results, loop)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "perdure-commit")

        def transact() -> None:
            answers: list[object]
            try:
                answers = self._transact(jobs, wait=True, durable=durable) or []
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                answers = [error] * len(jobs)
            # A loop that was closed meanwhile has nobody left who waits for the answer.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._answer, queue, answers, loop)

        self._threads.submit(transact)

    def _answer(
        self,
        queue: "list[_Waiting]",
        results: list[object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # First what comes next: an answer that fails must not leave later writes waiting for ever.
        self._scheduled = bool(self._queue)
        if self._scheduled:
            loop.call_soon(self._flush, loop)
        for (_, done, _), result in zip(queue, results, strict=True):
            done(result)

    def _transact(
        self, jobs: list[Job], *, wait: bool, durable: bool = True
    ) -> list[object] | None:
        """Run jobs in one transaction; None where the write lock is taken and `wait` is off."""
        with self._lock:
            connection = self._writer
            if connection is None:
                raise StoreClosed(f"the store at {self.path.parent} is closed")
            if not self._begin(connection, wait=wait, durable=durable):
                return None
            try:
                results = self._run(connection, jobs)
                started = time.perf_counter()
                connection.execute("COMMIT")
                spent = time.perf_counter() - started
            except BaseException as error:
                self.changes += 1
                if connection.in_transaction:
                    # On a disk that fails, this fails too: the error to tell is the first one.
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise translate(error, self.path) from error
                raise
            # The disk's part alone: the jobs' part takes the interpreter's lock in any thread.
            if durable:
                self._commit_seconds += (spent - self._commit_seconds) / 16
            return results

    def _begin(self, connection: sqlite3.Connection, *, wait: bool, durable: bool) -> bool:
        """Take the write lock; False where another process has it and `wait` is off."""
        try:
            if durable != self._syncing:  # Can't be set once the transaction has begun.
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._syncing = durable
            if wait:
                connection.execute(f"PRAGMA busy_timeout = {int(self.busy_seconds * 1000)}")
            try:
                connection.execute("BEGIN IMMEDIATE")
            finally:
                if wait:
                    connection.execute("PRAGMA busy_timeout = 0")
        except sqlite3.Error as error:
            if not wait and _is_busy(error):
                return False
            raise translate(error, self.path) from error
        return True

    def _run(self, connection: sqlite3.Connection, jobs: list[Job]) -> list[object]:
        """The results of the jobs; of one that refused, its error."""
        seen = connection.execute("PRAGMA data_version").fetchone()[0]
        if seen != self._data_version:
            self._data_version = seen
            self.changes += 1
        results: list[object] = []
        for job in jobs:
            try:
                results.append(job(connection))
            except PerdureError as error:
                if len(jobs) == 1:
                    raise
                results.append(error)
        return results

    def _check_format(self, newest: int, *, writable: bool) -> None:
        # In one snapshot: another process may be making the tables right now.
        self._reader.execute("BEGIN")
        try:
            tables = int(self._reader.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
            version = int(self._reader.execute("PRAGMA user_version").fetchone()[0])
            application = int(self._reader.execute("PRAGMA application_id").fetchone()[0])
        finally:
            self._reader.execute("ROLLBACK")
        if tables and application != APPLICATION_ID:
            raise UnsupportedFormat(
                f"{self.path} is a SQLite file of another program", hint="choose another folder"
            )
        if version > newest:
            raise UnsupportedFormat(
                f"{self.path} has format version {version}, this perdure reads up to {newest}",
                hint="update perdure (pip install -U perdure); the file was not touched",
            )
        if version < newest and not writable:
            raise StoreReadOnly(
                f"{self.path} has format version {version}, and lifting it to {newest} writes",
                hint="copy the folder to a place where you may write, and open the copy",
            )

    def _migrate(self, migrations: list[Migration]) -> None:
        connection = self._writer
        if connection is None or _format_of(connection) == len(migrations):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Read again under the lock: another process may have migrated meanwhile.
            for version in range(_format_of(connection), len(migrations)):
                migrations[version](connection)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _check_tables(self, migrations: list[Migration]) -> None:
        # One wrong bit in a table's description can make all of its rows read as nothing.
        odd = odd_tables(self._reader, tuple(migrations))
        if odd:
            raise Corrupt(
                f"the tables of {self.path} are not those of its format: {', '.join(odd)}",
                hint=_LOOK,
            )

    async def close(self) -> None:
        """Refuse new writes, wait for those under way, close the file. Twice is harmless."""
        if self._closed:
            return
        under_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._scheduled:
            self.submit(lambda _: None, lambda result: settle(under_way, result))
        else:
            under_way.set_result(None)
        # Before waiting: what was written meanwhile would come to a file that is no longer open.
        self._closed = True
        try:
            with contextlib.suppress(PerdureError):
                await under_way
        finally:
            if self._threads is not None:
                self._threads.shutdown()
            self._reader.close()
            with self._lock:
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None


def _format_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def odd_tables(connection: sqlite3.Connection, migrations: tuple[Migration, ...]) -> list[str]:
    """The tables and indexes that are missing, or described otherwise than `migrations` make them.

    Tables of others beside them don't matter.
    """
    there = _descriptions(connection)
    return [name for name, sql in _made_by(migrations).items() if there.get(name) != sql]


@functools.cache
def _made_by(migrations: tuple[Migration, ...]) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for migrate in migrations:
            migrate(connection)
        return _descriptions(connection)


def _descriptions(connection: sqlite3.Connection) -> dict[str, str]:
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    return dict(connection.execute(query))


def settle(future: "asyncio.Future[T]", result: object) -> None:
    """Give a future its result, or raise the exception in whoever awaits it."""
    if future.done():
        return  # Its waiter was cancelled; what was written stays written.
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)  # type: ignore[arg-type]  # what the job gave back


def _connect(path: Path, busy_seconds: float, *, writable: bool = True) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?mode={'rwc' if writable else 'ro'}"
    if not writable and not path.with_name(f"{path.name}-wal").exists():
        # Nobody has it open to write, and SQLite can't make the files by which it would notice.
        name += "&immutable=1"
    connection = sqlite3.connect(
        name,
        uri=True,
        isolation_level=None,  # transactions are begun and ended in the open
        check_same_thread=False,  # the writer is handed between threads, under a lock
        timeout=busy_seconds,
        cached_statements=256,
    )
    try:
        # Of a file that is yet to be made: a store has some twenty tables and indexes, and most
        # stay small.
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()  # the file is opened with the first statement, and may refuse then
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Turn WAL mode on, which stays on in the file.

    Of two processes that make a store at the same time, one is told "busy" at once: SQLite does not
    wait for this lock. So it is waited for with one that it does wait for.
    """
    end = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.Error as error:
            if not _is_busy(error) or time.monotonic() > end:
                raise
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        else:
            return


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise translate(error, path) from error


def _is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: sqlite3.Error) -> int:
    """The primary result code: extended codes carry it in their lowest byte."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def translate(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> PerdureError:
    """A SQLite error in perdure's words (result codes: sqlite.org, "Result and Error Codes").

    >>> translate(sqlite3.DatabaseError("file is not a database"), Path("x.db")).hint
    'see `perdure doctor`; the file was not changed'
    """
    code = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeDecodeError) else _code(error)
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(
            f"no space is left for {path}",
            hint="nothing of this write was kept; free some space and try again",
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return StoreReadOnly(
            f"{path} can't be opened for writing: {error}",
            hint="check that the folder exists and that you may write in it",
        )
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreBusy(
            f"another process keeps {path} locked",
            hint="try again; `perdure doctor` shows the state of the store",
        )
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or (
        isinstance(error, sqlite3.DatabaseError)
        and not isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError)
    ):
        return Corrupt(
            f"{path} is damaged or no perdure store: {error}",
            hint=_LOOK,
        )
    if code == sqlite3.SQLITE_IOERR:
        return Unavailable(
            f"the disk failed on {path}: {error}",
            hint="nothing of this write was acknowledged; check the disk and its free space",
        )
    return Unavailable(f"SQLite failed on {path}: {error}", hint="see `perdure doctor`")
