"""Where and with what a benchmark was run."""

import datetime as dt
import os
import platform
import sqlite3
from pathlib import Path

import msgspec

from perdure.cli.bench import peers
from perdure.version import __version__


class Machine(msgspec.Struct, frozen=True):
    """Facts that a ratio may depend on."""

    date: str
    system: str
    processors: int
    load: float
    filesystem: str
    python: str
    sqlite: str
    """Empty where it has no part in what is measured."""
    perdure: str
    peers: dict[str, str]


def facts(folder: Path) -> Machine:
    """The facts of this machine; `folder` is where is measured."""
    return Machine(
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.machine()}",
        processors=os.cpu_count() or 0,
        load=round(os.getloadavg()[0], 2),
        filesystem=_filesystem(folder),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        sqlite=sqlite3.sqlite_version,
        perdure=__version__,
        peers=peers.versions(),
    )


def _filesystem(folder: Path) -> str:
    """The kind of the file system that a folder is on, where the system tells (Linux)."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    path, best, kind = str(folder.resolve()) + "/", "", "unknown"
    for mount in mounts:
        _, point, this, *_ = mount.split(" ")
        point = point.rstrip("/") + "/"
        if path.startswith(point) and len(point) >= len(best):
            best, kind = point, this
    return kind
