"""The raw engine: what SQLite itself takes to make the same messages durable.

The same durability as perdure's: write-ahead log, `synchronous=FULL`, one transaction a commit.
Ids, times and JSON bytes are ready made: nothing is timed but SQLite.
"""

import datetime as dt
import itertools
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from perdure.cli.bench.rounds import Work
from perdure.errors import PerdureError

ROWS_A_COMMIT: Final = 100

_INSERT: Final = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"
_TABLE: Final = (
    "CREATE TABLE events (agent TEXT, sequence INTEGER, id TEXT, type TEXT, time TEXT,"
    " body BLOB, PRIMARY KEY (agent, sequence))"
)
_FULL: Final = 2  # of PRAGMA synchronous

Row = tuple[str, int, str, str, str, bytes]


class RawSqlite:
    """A table of events in a SQLite file, and nothing around it."""

    def __init__(self, path: Path, bodies: Sequence[bytes]) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_TABLE)
        check_durable(lambda query: self._connection.execute(query).fetchone()[0])
        self._bodies: Iterator[bytes] = itertools.cycle(bodies)
        self._sequence = itertools.count(1)

    def one_by_one(self, count: int) -> Work:
        """Commit rows one at a time."""
        rows = self._rows(count)
        execute = self._connection.execute
        started = time.perf_counter()
        for row in rows:
            execute("BEGIN IMMEDIATE")
            execute(_INSERT, row)
            execute("COMMIT")
        return Work(count, time.perf_counter() - started)

    def hundreds(self, count: int) -> Work:
        """Commit rows a hundred at a time."""
        rows = self._rows(count)
        hundreds = [rows[at : at + ROWS_A_COMMIT] for at in range(0, count, ROWS_A_COMMIT)]
        execute, executemany = self._connection.execute, self._connection.executemany
        started = time.perf_counter()
        for some in hundreds:
            execute("BEGIN IMMEDIATE")
            executemany(_INSERT, some)
            execute("COMMIT")
        return Work(count, time.perf_counter() - started)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _rows(self, count: int) -> list[Row]:
        now = dt.datetime.now(dt.UTC).isoformat()
        return [
            (
                "bench/raw",
                next(self._sequence),
                str(uuid.uuid4()),
                "message.added",
                now,
                next(self._bodies),
            )
            for _ in range(count)
        ]


def check_durable(ask: Callable[[str], object]) -> None:
    """Read back that a connection, asked by `ask`, has the durability that is compared.

    Raises:
        PerdureError: it hasn't: comparing would mean nothing.
    """
    journal = ask("PRAGMA journal_mode")
    synchronous = ask("PRAGMA synchronous")
    if journal != "wal" or synchronous != _FULL:
        raise PerdureError(
            f"a contender runs with journal_mode {journal} and synchronous {synchronous}, "
            f"not with wal and {_FULL} (FULL)",
            hint="measure in a folder on a local disk (--folder)",
        )
