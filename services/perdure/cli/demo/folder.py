"""The folder that the demo leaves: made, recognised, and cleared for the next time.

Invariants:
- Nothing is ever deleted in a folder without the demo's marker, nor any file the demo didn't make.
- The marker is there before anything else and is never deleted, so that a demo that was broken off
  at any point can be started again.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

import perdure
from perdure.cli.demo.journal import JOURNAL
from perdure.embedded.folder import DATABASE, OBJECTS
from perdure.errors import InvalidInput, PerdureError, StoreBusy

MARKER: Final = "demo.json"


class Marker(msgspec.Struct, frozen=True):
    """What says that a folder is a demo's: the agents that it makes there."""

    made_by: str
    agents: list[str]


@contextmanager
def claimed(folder: Path, agents: list[str]) -> Iterator[None]:
    """Hold the folder for one demo: it is made, or was a demo's before.

    Raises:
        InvalidInput: something else is there.
        StoreBusy: another demo is at work in it.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file", hint="choose another folder with --store")
    marker = folder / MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.is_file():
        raise InvalidInput(
            f"the folder {folder} is not empty and not a demo's: it is left as it is",
            hint="choose another one with --store",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with marker.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(
                f"another demo is at work in {folder}",
                hint="wait for it, or choose another folder with --store",
            ) from error
        if os.fstat(file.fileno()).st_size == 0:
            mark(folder, agents)
        yield


def mark(folder: Path, agents: list[str]) -> None:
    """Note which agents a demo makes in a folder."""
    marker = Marker(f"perdure {perdure.__version__}", agents)
    (folder / MARKER).write_bytes(msgspec.json.encode(marker))


def made(folder: Path) -> set[str]:
    """The agents that a demo made in a folder.

    Raises:
        InvalidInput: its marker can't be read.
    """
    try:
        return set(msgspec.json.decode((folder / MARKER).read_bytes(), type=Marker).agents)
    except msgspec.MsgspecError as error:
        raise InvalidInput(
            f"{folder / MARKER} is no demo's marker: {error}",
            hint="choose another folder with --store",
        ) from error


async def clear(folder: Path, agents: list[str], *, fresh: bool) -> bool:
    """Delete what an earlier demo left; whether there was anything.

    Raises:
        InvalidInput: somebody has worked in it: it holds agents that the demo did not make
            (`fresh` deletes them too).
    """
    if not any((folder / name).exists() for name in (DATABASE, OBJECTS, JOURNAL)):
        return False
    if not fresh:
        await _refuse_others(folder)
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", JOURNAL):
        (folder / name).unlink(missing_ok=True)
    if (folder / OBJECTS).exists():
        shutil.rmtree(folder / OBJECTS)
    mark(folder, agents)
    return True


def size(folder: Path) -> int:
    """Bytes of the store's own files: events, states, memory and checkpoints."""
    files = [path for path in folder.glob(f"{DATABASE}*") if path.is_file()]
    files += [path for path in (folder / OBJECTS).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


async def _refuse_others(folder: Path) -> None:
    if not (folder / DATABASE).exists():
        return
    try:
        known = made(folder)
        async with perdure.connect(folder, create=False) as store:
            others = [line.agent async for line in store.agents() if line.agent not in known]
    except PerdureError as error:
        raise InvalidInput(
            f"the earlier demo in {folder} can't be read: {error}",
            hint="--fresh deletes it; or choose another folder with --store",
        ) from error
    if others:
        raise InvalidInput(
            f"{folder} holds agents that the demo did not make: {', '.join(others[:3])}"
            + (" …" if len(others) > 3 else ""),
            hint="--fresh deletes them too; or choose another folder with --store",
        )
