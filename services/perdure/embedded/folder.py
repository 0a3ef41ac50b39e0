"""A store on one folder: its files, and the ports on them.

::

    .perdure/
        perdure.db       events, state checkpoints, memory (SQLite; -wal and -shm beside it in use)
        checkpoints/     objects, content-addressed: ab/abcdef… (zstd)
"""

import asyncio
import datetime as dt
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from perdure.embedded.blobs import FolderBlobs
from perdure.embedded.database import Database
from perdure.embedded.event_table import SqliteEventTable
from perdure.embedded.log import SqliteLog
from perdure.embedded.memory_index import SqliteMemoryIndex
from perdure.embedded.schema import MIGRATIONS
from perdure.embedded.scratch import MemoryScratchIndex
from perdure.embedded.state_table import SqliteStateTable
from perdure.errors import NotFound, StoreReadOnly
from perdure.ports import Backend

DATABASE: Final = "perdure.db"
OBJECTS: Final = "checkpoints"
LOOK_SECONDS: Final = 0.02
"""How often a watcher looks whether another process has recorded something."""


def open_folder(
    folder: Path,
    *,
    version_of: Callable[[str], int],
    create: bool,
    clock: Callable[[], dt.datetime] | None = None,
) -> Backend:
    """Open the store of a folder, or make it. `version_of` gives the version new events are in.

    Raises:
        NotFound: there is none, and `create` is off.
        StoreReadOnly: the folder can't be made or written.
        Corrupt, UnsupportedFormat: the file is damaged, newer, or another program's.
    """
    folder = folder.absolute()
    path = folder / DATABASE
    if not create and not path.exists():
        raise NotFound(
            f"there is no store at {folder}",
            hint="check --store or PERDURE_STORE; `perdure import` and perdure.connect() make one",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreReadOnly(
            f"the folder {folder} can't be made: {error.strerror}",
            hint="choose another one with --store, PERDURE_STORE or connect(path)",
        ) from error
    database = _opened(path)
    if database.writable:
        # Always: whoever made the folder may have been killed before it came to this.
        _sync(folder)
        _sync(folder.parent)
    events = SqliteEventTable(database)

    return Backend(
        url=str(folder),
        writer=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}",
        log=SqliteLog(database, clock=clock or _now, version_of=version_of),
        events=events,
        states=SqliteStateTable(database),
        blobs=FolderBlobs(folder / OBJECTS),
        memories=SqliteMemoryIndex(database),
        scratch_memories=MemoryScratchIndex,
        changed=_watcher(events),
        close=database.close,
    )


def _opened(path: Path) -> Database:
    try:
        return Database(path, MIGRATIONS)
    except StoreReadOnly:
        if not path.exists():
            raise
        # What is there can be read all the same; a write says why it can't be.
        return Database(path, MIGRATIONS, writable=False)


def _watcher(events: SqliteEventTable) -> Callable[[int], Awaitable[None]]:
    async def changed(version: int) -> None:
        # SQLite tells no other process of a commit: a look costs a microsecond.
        while events.version() == version:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)

    return changed


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _sync(folder: Path) -> None:
    """Make a new entry of a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
