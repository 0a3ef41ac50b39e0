"""The server-side ports that the gateway serves: of each store, and those that all stores share."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from perdure.checkpointer.storage import Manifest
from perdure.memorizer.memory import MemoryIndex
from perdure.model.timeline import Span
from perdure.ports import AgentSummary, Batch, Finding, StateTable
from perdure.projector import states


class Events(states.Events, Protocol):
    """`ports.EventTable` without what the journal is asked for, and what only a server needs."""

    def agents(self, prefix: str, *, after: str = "") -> AsyncIterator[list[AgentSummary]]:
        """See `ports.EventTable`; those whose name is greater than `after`."""
        ...

    def verify(self, agent: str) -> AsyncIterator[tuple[int, list[Finding]]]:
        """See `ports.EventTable`."""
        ...

    def read_stored(self, span: Span) -> AsyncIterator[list[bytes]]:
        """As `read`, but each event as its stored bytes."""
        ...

    def by_type(
        self, agent: str, types: Collection[str], *, first: int, last: int
    ) -> AsyncIterator[Batch]:
        """The agent's own events of some types, in order; found by an index."""
        ...

    async def chain_at(self, agent: str, sequence: int) -> bytes:
        """The hash chain after one of the agent's own events, or before its first; 32 bytes."""
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
    """What is read of one store. `memories` raises Unreachable while Weaviate isn't there yet."""

    events: Events
    states: StateTable
    memories: Callable[[], MemoryIndex]


@dataclass(frozen=True, slots=True)
class Sources:
    """What is read of a cluster: `of` gives the sources of a store by its name.

    `refresh` looks again in which generation of the tables agents are.
    """

    of: Callable[[str], StoreSources]
    objects: Objects
    manifest: Manifest
    refresh: Callable[[], Awaitable[object]]
