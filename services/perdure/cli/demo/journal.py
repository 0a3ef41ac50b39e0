"""The agent's own record of what was acknowledged to it: the independent witness of the demo.

A plain file of JSON lines, written without perdure by the process that is killed, one line right
after each acknowledgement. What a process has written is the system's to keep when the process is
killed, so no flush to disk is needed here.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

JOURNAL: Final = "acknowledged.jsonl"


class Acknowledged(msgspec.Struct, frozen=True, omit_defaults=True, tag="acknowledged"):
    """An answer that the agent got: the event has this sequence. `process` counts from 1.

    The sequence is 0 of what the log of a cluster has acknowledged and is not recorded yet. A
    checkpoint is acknowledged with the digest of its content instead of an event's id.
    """

    process: int
    agent: str
    sequence: int
    id: str | None = None
    digest: str | None = None


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """A process has opened all its agents, where they stood; it took so many seconds."""

    process: int
    agents: int
    seconds: float


class Journal:
    """The writing end: each line goes to the file, and to whoever listens to standard output."""

    def __init__(self, path: Path, process: int) -> None:
        self.process = process
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def acknowledge(
        self, agent: str, sequence: int, *, id: str | None = None, digest: str | None = None
    ) -> None:
        """Note an answer, in one write each, so that a kill leaves no half of a line."""
        line = msgspec.json.encode(Acknowledged(self.process, agent, sequence, id, digest)) + b"\n"
        os.write(self._file, line)
        os.write(1, line)


def read(path: Path) -> list[Acknowledged]:
    """Everything that was acknowledged, in the order in which it was."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Acknowledged) for line in path.read_bytes().splitlines()]
