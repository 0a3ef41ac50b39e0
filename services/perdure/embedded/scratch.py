"""A memory index in main memory: the tables and the search of the store's, without its file.

Invariant: no file is made, not even a temporary one: what is indexed is never left on a disk.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from perdure.embedded import event_rows, memory_index
from perdure.embedded.database import translate
from perdure.embedded.memory_index import SqliteMemoryIndex, record_memory
from perdure.errors import StoreClosed
from perdure.model.event import Event

T = TypeVar("T")

VECTORS_BYTES_MAX: Final = 64 * 2**20
"""The most bytes of the vectors' second copy, which searching is fastest with."""

# As far as the index looks at it: names and the row ids that places are made of.
_AGENTS: Final = "CREATE TABLE agents (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)"


class ScratchDatabase:
    """`Transactions` in main memory, with the index's tables. Use from one event loop."""

    def __init__(self) -> None:
        self._closed = False
        self._connection = sqlite3.connect(
            ":memory:",
            isolation_level=None,  # transactions are begun and ended in the open
            check_same_thread=False,  # who is the last to let go of it may be another thread
        )
        self._connection.execute("PRAGMA temp_store = MEMORY")
        for statement in (_AGENTS, *memory_index.SCHEMA):
            self._connection.execute(statement)

    def reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The connection, with SQLite's errors in perdure's words.

        Raises:
            StoreClosed: it was closed.
        """
        return self._reading()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise StoreClosed("the store was closed while it was searched", hint="connect again")
        try:
            yield self._connection
        except sqlite3.Error as error:
            raise translate(error, Path(":memory:")) from error

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run `job` in a transaction and give back its result."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                result = job(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            return result

    def close(self) -> None:
        """Let go of the memory. Closing twice is harmless."""
        self._closed = True
        self._connection.close()


class MemoryScratchIndex(SqliteMemoryIndex):
    """`ScratchIndex` in main memory. Use from one event loop."""

    def __init__(self) -> None:
        self._scratch = ScratchDatabase()
        super().__init__(self._scratch, cache_bytes=VECTORS_BYTES_MAX)

    async def add(self, events: Sequence[Event]) -> None:
        """Index `memory.stored` events, of whichever agents. Adding one again changes nothing."""

        def job(connection: sqlite3.Connection) -> None:
            agents = {event.subject for event in events}
            connection.executemany(
                "INSERT OR IGNORE INTO agents (name) VALUES (?)", [(agent,) for agent in agents]
            )
            ids = {agent: event_rows.agent_id(connection, agent) for agent in agents}
            for event in events:
                record_memory(connection, ids[event.subject], event)

        if events:
            await self._scratch.write(job)

    def close(self) -> None:
        """Drop all of it. Closing twice is harmless; what is asked later raises StoreClosed."""
        self._scratch.close()
