"""What state a store's folder is in, whatever state that is.

Invariants:
- Nothing of the store is changed: SQLite opens the file for reading only, and nobody's work is
  taken over or made to wait.
- Whatever is in the folder, or isn't, the answer is a diagnosis and no error.
"""

import os
import platform
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from perdure.checkpointer import objects
from perdure.embedded import database, folder, segments
from perdure.embedded.schema import MIGRATIONS
from perdure.embedded.segments import SEQUENCE_BITS, SEQUENCE_MAX
from perdure.errors import Corrupt, PerdureError
from perdure.model import event
from perdure.version import __version__

FORMAT_NEWEST: Final = len(MIGRATIONS)
FREE_BYTES_MIN: Final = 256 * 1024 * 1024
"""Less free space than this is told."""
WAL_BYTES_MAX: Final = 256 * 1024 * 1024
"""A log that is larger is told: something keeps it from being taken into the file."""
LEFTOVER_SECONDS: Final = 3600
"""A temporary file that is older was left by a process that was killed."""
PROBLEMS_MAX: Final = 20
"""How many problems of one kind are told one by one."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
# SQLite's file format, "The Database Header": magic, and the version for writing (2 for WAL).
_MAGIC: Final = b"SQLite format 3\x00"
_WAL_VERSION: Final = 18
# File systems without the shared memory that SQLite's WAL needs between processes.
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs"})

Kind = Literal["embedded", "missing", "empty", "foreign", "newer", "damaged", "unreadable"]
Level = Literal["ok", "note", "problem"]
Progress = Callable[[str], None]


class Check(msgspec.Struct, frozen=True):
    """Something that was looked at: what was found, and the way out where it is wrong."""

    name: str
    level: Level
    message: str
    hint: str = ""


class Versions(msgspec.Struct, frozen=True):
    """What reads the store here."""

    perdure: str
    python: str
    sqlite: str
    system: str


class Counts(msgspec.Struct, frozen=True):
    """How many there are of what a store keeps. `objects` are the checkpoint files."""

    agents: int = 0
    events: int = 0
    states: int = 0
    memories: int = 0
    vectors: int = 0
    objects: int = 0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder is, and what is wrong with it.

    `format` is the format version of its file, None where there is none. `sizes` are bytes: of the
    file, its write-ahead log, the checkpoint files, and what is free on the disk. `tables` are
    bytes by table and index, where this SQLite can tell.
    """

    store: str
    kind: Kind
    format: int | None = None
    format_newest: int = FORMAT_NEWEST
    versions: Versions
    sizes: dict[str, int] = {}
    tables: dict[str, int] = {}
    counts: Counts = Counts()
    checks: list[Check] = []
    sound: bool = True


class _Examination:
    """Collects what is found in one folder."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.folder = path
        self.path = path / folder.DATABASE
        self.objects = path / folder.OBJECTS
        self.progress = progress
        self.alone = False
        """Whether it was read in the belief that no process has it open."""
        self.wal_mode = False
        self.kind: Kind = "embedded"
        self.format: int | None = None
        self.sizes: dict[str, int] = {}
        self.tables: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.checks: list[Check] = []

    def ok(self, name: str, message: str) -> None:
        self.checks.append(Check(name, "ok", message))

    def note(self, name: str, message: str, hint: str = "") -> None:
        self.checks.append(Check(name, "note", message, hint))

    def problem(self, name: str, message: str, hint: str) -> None:
        self.checks.append(Check(name, "problem", message, hint))

    def is_not(self, kind: Kind, message: str, hint: str) -> None:
        self.kind = kind
        self.problem("store", message, hint)

    def result(self) -> Diagnosis:
        return Diagnosis(
            store=str(self.folder),
            kind=self.kind,
            format=self.format,
            versions=Versions(
                perdure=__version__,
                python=platform.python_version(),
                sqlite=sqlite3.sqlite_version,
                system=platform.platform(),
            ),
            sizes=self.sizes,
            tables=self.tables,
            counts=Counts(**self.counts),
            checks=self.checks,
            sound=all(check.level != "problem" for check in self.checks),
        )


def examine(path: Path, progress: Progress = lambda _what: None) -> Diagnosis:
    """Look at everything in a store's folder. `progress` is told what is being looked at.

    >>> found = examine(Path("nowhere"))
    >>> found.kind, found.sound, found.checks[0].hint
    ('missing', False, 'check --store and PERDURE_STORE; `perdure import` makes a store')
    """
    examination = _Examination(path.absolute(), progress)
    _examine(examination)
    if examination.alone and _wal(examination.path).exists():
        # Somebody has opened it meanwhile, and may have changed the file under our eyes.
        examination = _Examination(path.absolute(), progress)
        _examine(examination)
    return examination.result()


def _examine(found: _Examination) -> None:
    try:
        if _is_there(found):
            _look_at_place(found)
            _look_at_file(found)
    except OSError as error:
        found.is_not(
            "unreadable",
            f"{error.filename or found.folder} can't be read: {error.strerror}",
            "give this user the right to read the folder and what is in it",
        )


def _wal(path: Path) -> Path:
    """The write-ahead log of a file: there while a process has it open, or after a crash."""
    return path.with_name(f"{path.name}-wal")


def _is_there(found: _Examination) -> bool:
    """Whether there is a file to look at."""
    if not found.folder.exists():
        found.is_not(
            "missing",
            f"there is no folder {found.folder}",
            "check --store and PERDURE_STORE; `perdure import` makes a store",
        )
    elif not found.folder.is_dir():
        found.is_not(
            "foreign", f"{found.folder} is a file", "a store is a folder: name the folder it is in"
        )
    elif not found.path.exists():
        others = sorted(entry.name for entry in found.folder.iterdir())
        if not others:
            found.is_not("empty", "the folder is empty", "the next agent makes a store of it")
        elif folder.OBJECTS in others:
            found.is_not(
                "damaged",
                f"{folder.DATABASE} is missing beside {folder.OBJECTS}/",
                "restore it from a backup: the events are in it",
            )
        else:
            found.is_not(
                "foreign",
                f"the folder holds no store, but {', '.join(others[:3])}"
                + (" and more" if len(others) > 3 else ""),
                "choose another folder",
            )
    else:
        return True
    return False


def _look_at_place(found: _Examination) -> None:
    for name, path in (
        ("database", found.path),
        ("wal", _wal(found.path)),
    ):
        found.sizes[name] = path.stat().st_size if path.exists() else 0
    found.sizes["checkpoints"] = sum(
        file.stat().st_size for file in found.objects.rglob("*") if file.is_file()
    )
    found.sizes["free"] = shutil.disk_usage(found.folder).free
    if found.sizes["free"] < FREE_BYTES_MIN:
        found.problem(
            "free space",
            f"only {found.sizes['free']:,} bytes are free",
            "free some space: without any, agents can't record",
        )
    else:
        found.ok("free space", "there is enough")
    unwritable = [
        path for path in (found.folder, found.path, found.objects) if path.exists() and
        not os.access(path, os.W_OK)
    ]  # fmt: skip
    if unwritable:
        found.problem(
            "permissions",
            f"{unwritable[0]} can't be written by this user",
            "agents can't record here: give this user the right to write, or mount it writable",
        )
    else:
        found.ok("permissions", "the folder can be read and written")
    system = _file_system(found.folder)
    if system in _REMOTE:
        found.problem(
            "file system",
            f"the folder is on {system}, a network file system",
            "several processes on it can damage the file: move the store to a local disk",
        )
    if found.sizes["wal"] > WAL_BYTES_MAX:
        found.note(
            "write-ahead log",
            f"it has {found.sizes['wal']:,} bytes",
            "a process reads for very long, or was killed: it shrinks when the last process closes",
        )


def _file_system(path: Path) -> str:
    """The type of file system a path is on, where the system tells (Linux: proc(5), mounts)."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = "", ""
    here = f"{path.resolve()}/"
    for mount in mounts.splitlines():
        parts = mount.split(" ")
        if len(parts) > 2:
            point = parts[1].replace("\\040", " ")
            if here.startswith(f"{point.rstrip('/')}/") and len(point) >= len(best):
                best, kind = point, parts[2]
    return kind


def _look_at_file(found: _Examination) -> None:
    with found.path.open("rb") as file:
        header = file.read(_WAL_VERSION + 1)
    found.wal_mode = header[_WAL_VERSION:] == b"\x02"
    if not header and not found.sizes["wal"]:
        found.is_not(
            "empty",
            f"{folder.DATABASE} is empty: nothing was ever recorded in it, or it was emptied",
            "restore it from a backup if agents lived here; else the next agent makes it a store",
        )
        return
    if header and not header.startswith(_MAGIC):
        found.is_not(
            "damaged",
            f"{folder.DATABASE} is no SQLite file, or its first bytes are damaged",
            "restore it from a backup; was it changed by another program?",
        )
        return
    try:
        connection = _open(found)
    except sqlite3.Error as error:
        _sqlite_failed(found, error)
        return
    try:
        _look_inside(found, connection)
    except sqlite3.Error as error:
        _sqlite_failed(found, error)
    finally:
        connection.close()


def _open(found: _Examination) -> sqlite3.Connection:
    """A connection for reading only, which leaves no file behind.

    Where nobody has the file open, or nobody can write, SQLite is told that it doesn't change
    (`immutable`): it needs to make no shared memory for others then.
    """
    found.alone = not _wal(found.path).exists() or not os.access(found.folder, os.W_OK)
    connection = sqlite3.connect(
        f"file:{quote(str(found.path))}?mode=ro{'&immutable=1' if found.alone else ''}",
        uri=True,
        isolation_level=None,
        timeout=5,
    )
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _sqlite_failed(found: _Examination, error: sqlite3.Error) -> None:
    problem = database.translate(error, found.path)
    if isinstance(problem, Corrupt):
        found.is_not(
            "damaged",
            problem.message,
            "restore the folder from a backup; `sqlite3 perdure.db .recover` may save the rest",
        )
    else:
        found.is_not("unreadable", problem.message, "check the disk and the rights of this user")


def _look_inside(found: _Examination, connection: sqlite3.Connection) -> None:
    version = _number(connection, "PRAGMA user_version")
    application = _number(connection, "PRAGMA application_id")
    tables = _number(connection, "SELECT count(*) FROM sqlite_master")
    if tables and application != database.APPLICATION_ID:
        found.is_not(
            "foreign",
            f"{folder.DATABASE} is a SQLite file of another program",
            "choose another folder for the store",
        )
        return
    if not tables:
        found.is_not("empty", "the store has no tables yet", "the next agent makes them")
        return
    found.format = version
    if version > FORMAT_NEWEST:
        found.is_not(
            "newer",
            f"it has format version {version}, this perdure reads up to {FORMAT_NEWEST}",
            "update perdure: pip install -U perdure",
        )
        return
    if version < FORMAT_NEWEST:
        found.note(
            "format",
            f"it has format version {version}, the newest is {FORMAT_NEWEST}",
            "the next agent that opens it lifts it; keep a backup until then",
        )
    else:
        found.ok("format", f"version {version}")
    if version == FORMAT_NEWEST and (odd := database.odd_tables(connection, tuple(MIGRATIONS))):
        found.kind = "damaged"
        found.problem(
            "tables",
            f"these are not as format {version} has them: {', '.join(odd)}",
            "another program changed the file, or a perdure that was never released wrote it: "
            "restore it from a backup",
        )
        return
    if found.wal_mode:
        found.ok("journal", "write-ahead log")
    else:
        found.note("journal", "no write-ahead log", "the next agent that opens it sets it to one")
    if not _quick_check(found, connection):
        return
    _count(found, connection)
    found.progress("sizes of tables")
    found.tables |= dict(_table_sizes(connection))
    _look_at_objects(found, _referenced(found, connection))


def _quick_check(found: _Examination, connection: sqlite3.Connection) -> bool:
    found.progress("integrity of the file")
    rows = connection.execute(f"PRAGMA quick_check({PROBLEMS_MAX})").fetchall()
    messages = [str(row[0]) for row in rows]
    if messages == ["ok"]:
        found.ok("integrity", "SQLite finds no damage")
        return True
    found.kind = "damaged"
    for message in messages:
        found.problem(
            "integrity",
            f"SQLite: {' '.join(message.split())}",
            "restore the folder from a backup; `perdure verify` names the events that are damaged",
        )
    return False


def _count(found: _Examination, connection: sqlite3.Connection) -> None:
    found.progress("counting")
    for name in ("agents", "states", "memories", "vectors"):
        found.counts[name] = _number(connection, f"SELECT count(*) FROM {name}")
    found.counts["events"] = _number(
        connection,
        f"SELECT coalesce(sum((position & {SEQUENCE_MAX}) - first + 1), 0) FROM segments",
    )


def _table_sizes(connection: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """Bytes by table and index; nothing where SQLite was built without `dbstat`."""
    try:
        yield from connection.execute(
            "SELECT name, pgsize FROM dbstat WHERE aggregate = TRUE ORDER BY pgsize DESC"
        ).fetchall()
    except sqlite3.OperationalError:
        return


def _referenced(found: _Examination, connection: sqlite3.Connection) -> dict[str, str]:
    """The objects that events name: their digests, and where the first of these events stands."""
    referenced: dict[str, str] = {}
    damaged: list[str] = []
    total = max(1, _number(connection, "SELECT count(*) FROM segments"))
    names = dict(connection.execute("SELECT id, name FROM agents"))
    rows = connection.execute(f"SELECT {segments.COLUMNS} FROM segments ORDER BY position")
    for number, row in enumerate(rows):
        if number % 256 == 0:
            found.progress(f"events ({number * 100 // total} %)")
        agent = names.get(row[0] >> SEQUENCE_BITS) if isinstance(row[0], int) else None
        if agent is None:
            damaged.append(f"a row of events belongs to no agent (row {row[0]})")
            continue
        try:
            body = segments.plain(segments.from_row(row), agent)
            # Most rows hold no checkpoint, and need not be read as events.
            if b'"checkpoint.saved"' in body:
                for saved in event.decode_all(body):
                    _refer(referenced, saved)
        except PerdureError as error:
            damaged.append(error.message)
    for message in damaged[:PROBLEMS_MAX]:
        found.problem("events", message, "`perdure verify` names each damaged event")
    if not damaged:
        found.ok("events", "the checksum of every row is right")
    return referenced


def _refer(referenced: dict[str, str], saved: event.Event) -> None:
    if saved.type == "checkpoint.saved" and isinstance(saved.data, dict):
        digest = saved.data.get("digest")
        if isinstance(digest, str):
            referenced.setdefault(digest, f"{saved.data.get('name')!r} of {saved.position}")


def _look_at_objects(found: _Examination, referenced: dict[str, str]) -> None:
    files = sorted(path for path in found.objects.rglob("*") if path.is_file())
    kept = {path.name: path for path in files if _DIGEST.fullmatch(path.name)}
    found.counts["objects"] = len(kept)
    broken = [
        ("missing", f"{where} is not in {folder.OBJECTS}/")
        for digest, where in referenced.items()
        if digest not in kept
    ]
    for number, (digest, path) in enumerate(kept.items()):
        if number % 16 == 0:
            found.progress(f"checkpoints ({number} of {len(kept)})")
        try:
            objects.check(path.read_bytes(), digest)
        except Corrupt as error:
            where = referenced.get(digest, "no event")
            broken.append(("damaged", f"{where}: {error.message}"))
    for kind, message in broken[:PROBLEMS_MAX]:
        found.problem(
            "checkpoints",
            f"{kind}: {message}",
            "restore the file from a backup, or restore an older checkpoint of the same name",
        )
    if len(broken) > PROBLEMS_MAX:
        found.problem("checkpoints", f"{len(broken) - PROBLEMS_MAX} more", "see `perdure verify`")
    if not broken and kept:
        found.ok("checkpoints", f"{len(kept)} objects, each with the content it was saved with")
    unused = [kept[digest] for digest in kept if digest not in referenced]
    if unused:
        size = sum(path.stat().st_size for path in unused)
        found.note(
            "checkpoints",
            f"{len(unused)} objects ({size:,} bytes) are named by no event",
            "a process was stopped while it saved them: they take space, nothing else",
        )
    _look_at_leftovers(found, [path for path in files if path.name not in kept])


def _look_at_leftovers(found: _Examination, others: list[Path]) -> None:
    old = [path for path in others if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS]
    if old:
        found.note(
            "leftovers",
            f"{len(old)} files in {folder.OBJECTS}/ are no checkpoints, such as {old[0].name}",
            "a process was killed while it wrote: perdure removes its own when the store is opened",
        )


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])
