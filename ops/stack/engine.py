"""What the stack knows of an engine: how many members, how one is started, when it is ready."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Launch:
    """How one member is started."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it needs beside the caller's environment."""


class Engine(Protocol):
    """One kind of server; its members are numbered from 1."""

    name: str
    count: int
    """How many members there are."""
    together: bool
    """Whether the members start at once (they need each other) or one after the other (each joins
    those before it)."""
    ready_seconds: float
    """How long one member may take from its start until it is ready."""

    def address(self, number: int) -> str:
        """Where clients reach a member: `127.0.0.1:9092`."""
        ...

    def listens(self, number: int) -> list[tuple[str, int]]:
        """The addresses and ports a member listens on."""
        ...

    def prepare(self, number: int, folder: Path) -> Launch:
        """Write a member's configuration into its folder, whose data stay as they are."""
        ...

    def ready(self, number: int, *, running: int) -> bool:
        """Whether a member answers clients now, and works together with the others that run.

        `running` is how many do, itself among them.
        """
        ...


def loopback(number: int) -> str:
    """The address of the member with this number.

    Linux answers on all of 127.0.0.0/8; on macOS `ifconfig lo0 alias 127.0.0.2` comes first.
    """
    return f"127.0.0.{number}"
