"""The server-side ports that the gateway serves: of each store, and those that all stores share."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from perdure.checkpointer.storage import Manifest
from perdure.memorizer.memory import MemoryIndex
from perdure.ports import AgentSummary, Finding, StateTable
from perdure.projector import states


class Events(states.Events, Protocol):
    """`ports.EventTable` without what the journal is asked for, and what only a server needs."""

    def agents(self, prefix: str, *, after: str = "") -> AsyncIterator[list[AgentSummary]]:
        """See `ports.EventTable`; those whose name is greater than `after`."""
        ...

    def verify(self, agent: str) -> AsyncIterator[tuple[int, list[Finding]]]:
        """See `ports.EventTable`."""
        ...

    async def chain_at(self, agent: str, sequence: int) -> bytes:
        """The hash chain after an event, 32 bytes. Raises NotFound."""
        ...


class Objects(Protocol):
    """`ports.Blobs` for reading, in pieces."""

    async def size(self, digest: str) -> int:
        """How many bytes are kept under a digest. Raises NotFound."""
        ...

    def stream(self, digest: str) -> AsyncIterator[bytes]:
        """The bytes kept under a digest, in pieces of bounded size. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class StoreSources:
    """What is read of one store."""

    events: Events
    states: StateTable
    memories: MemoryIndex


@dataclass(frozen=True, slots=True)
class Sources:
    """What is read of a cluster: `of` gives the sources of a store by its name."""

    of: Callable[[str], StoreSources]
    objects: Objects
    manifest: Manifest
