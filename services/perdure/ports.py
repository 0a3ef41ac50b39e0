"""What a store must offer. The embedded store and the cluster fill the same ports.

Everything above these protocols (agents, restoring, checkpointing, memory, the services) is written
once, against them. Sequences start at 1; times are in UTC; agents are given by name.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from perdure.memorizer.memory import MemoryIndex, ScratchIndex
from perdure.model.event import Event
from perdure.model.sequencing import Append, Head
from perdure.model.timeline import Span, Stream

Ack: TypeAlias = Literal["sent", "durable", "recorded"]
"""What a write waits for: `sent` to be handed on, `durable` to survive any crash, `recorded` to
have its sequence and to be readable. A store may do more than it is asked for."""


class Batch(NamedTuple):
    """Consecutive events of one stream, and how many bytes of JSON they take in the store."""

    events: Sequence[Event]
    size: int


class AgentSummary(msgspec.Struct, frozen=True):
    """One line of a list of agents. `time` is ISO 8601 of the last event, None before the first."""

    agent: str
    sequence: int
    epoch: int
    time: str | None
    parent: str | None = None
    forked_at: int = 0


class SavedState(msgspec.Struct, frozen=True):
    """A state checkpoint: the state of `projection`, in the code of `key`, after `sequence`.

    `data` is what the projection encoded, not compressed.
    """

    agent: str
    sequence: int
    projection: str
    key: str
    data: bytes


class Finding(msgspec.Struct, frozen=True):
    """Something that `verify` found: what is damaged, and what to do about it."""

    subject: str
    problem: str
    hint: str = ""


class EventLog(Protocol):
    """The write side: who may write, and in which order it counts."""

    async def claim(self, agent: str) -> Head:
        """Open an agent for exclusive writing: raises its epoch by one and creates it if need be.

        Holds when it returns: every later append with an older epoch, by any process, raises
        WriterFenced. Durable at the latest with the first append of the new epoch.
        """
        ...

    def append(self, append: Append, ack: Ack) -> Awaitable[list[Event]]:
        """Record events, all or none, and answer each; as safe as `ack` says when it returns.

        Decides by `model.sequencing.decide`. Appends of one caller are recorded in the order in
        which they were called. The data of the events has been through `event.prepared`. Where
        events are not recorded yet, the answers are `event.Sent`.

        Raises: Refused (nothing recorded), Unavailable (nothing acknowledged).
        """
        ...

    async def fork(self, append: Append, parent: str, at: int) -> tuple[Head, Event]:
        """Create `append.agent` as a fork of `parent` at `at`, open it, and record its first event.

        All of it, or nothing. Raises AgentExists where the name is taken, NotFound where the
        parent or its sequence isn't there.
        """
        ...

    async def settle(self, agent: str) -> None:
        """Tell that no more is to come for now: what was recorded may be stored more compactly."""
        ...


class EventTable(Protocol):
    """The read side of streams. Reading never claims, blocks or changes an agent."""

    async def lineage(self, agent: str) -> list[Stream]:
        """The agent's stream, then its parent's, and so on. Raises NotFound."""
        ...

    async def caught_up(self, agent: str, position: str | None) -> None:
        """Wait until a position of the agent's can be read: that of an answer to an append.

        With None: until all that was acknowledged before the call can be read, whoever wrote it.

        Raises: Refused (the write at this position was), Unavailable (it takes too long),
        InvalidData (this store gives no such positions).
        """
        ...

    async def head(self, agent: str) -> Head:
        """Where the stream stands, without its writers. Raises NotFound."""
        ...

    def read(self, span: Span) -> AsyncIterator[Batch]:
        """The events of a span, in order, in batches of bounded bytes.

        Raises Corrupt where an event is missing or damaged: a gap is never skipped.
        """
        ...

    async def sequence_at(self, spans: Sequence[Span], time: int, *, inclusive: bool) -> int:
        """The last sequence of `spans` before the first event that is later than `time`.

        `time` is in microseconds since 1970; 0 where the very first event is later.
        """
        ...

    def agents(self, prefix: str) -> AsyncIterator[list[AgentSummary]]:
        """The agents whose name starts with `prefix`, by name, in batches."""
        ...

    def verify(self, agent: str) -> AsyncIterator[tuple[int, list[Finding]]]:
        """Check the agent's own stream: yields how many events it looked at, and what is wrong."""
        ...

    def version(self) -> int:
        """A number that changes whenever something was recorded, by any process."""
        ...


class StateTable(Protocol):
    """State checkpoints: a cache of folds. Losing one loses time, never data."""

    async def nearest(self, projection: str, key: str, spans: Sequence[Span]) -> SavedState | None:
        """The latest saved state whose (agent, sequence) lies in one of the spans.

        A damaged one is passed over (`verify` reports it).
        """
        ...

    async def save(self, saved: SavedState) -> None:
        """Keep a state; older ones may be thinned out. Saving the same again is harmless."""
        ...

    async def check(self, agent: str) -> list[Finding]:
        """Which saved states of the agent are damaged."""
        ...


class Blobs(Protocol):
    """Checkpoint storage: immutable byte strings, named by the SHA-256 of their content."""

    async def put(self, digest: str, data: bytes) -> int:
        """Keep `data` under `digest`; the bytes stored. Idempotent; durable when it returns."""
        ...

    async def get(self, digest: str) -> bytes:
        """The bytes kept under `digest`. Raises NotFound."""
        ...

    async def size(self, digest: str) -> int:
        """How many bytes are kept under `digest`. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """The ports of one store, as an adapter fills them.

    `writer` names this process in what it records; `scratch_memories` makes an empty index that
    the store knows nothing of; `changed` waits until something was recorded, by any process, after
    the version (of `EventTable.version`) that it is given. `keeps_states` says that the store makes
    state checkpoints by itself, so that agents needn't. `ack` is what writes wait for that don't
    say.
    """

    url: str
    writer: str
    log: EventLog
    events: EventTable
    states: StateTable
    blobs: Blobs
    memories: MemoryIndex
    scratch_memories: Callable[[], ScratchIndex]
    changed: Callable[[int], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    keeps_states: bool = False
    ack: Ack = "recorded"
