"""What the recorder keeps of each agent, and where: the values, and the port that Cassandra fills.

An agent's events lie in buckets of bounded size, counted 0, 1, 2 …; each bucket holds the head as
it stood after the bucket's last event. A *position* is the offset of a record of `perdure.events`
in its partition: one record is one append, recorded whole, in one bucket, or not at all.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from perdure.model.event import Event
from perdure.model.sequencing import Head, Recorded, first_chain
from perdure.model.timeline import Revert


class Stream(msgspec.Struct, frozen=True):
    """What is known of one agent: its head, and the newest of its buckets.

    `head.writers` names those that wrote in this bucket, no others: `Recordings.last_of` knows of
    writers in buckets before it. `position` is that of the last append that is in, -1 before the
    first. `first` is the sequence with which the bucket starts, `chain_before` the chain before it;
    `events` and `bytes` (of stored events) are what the bucket holds. `created` says whether the
    agent has rows yet.
    """

    head: Head
    position: int
    bucket: int
    first: int
    chain_before: bytes
    events: int
    bytes: int
    parent: str | None = None
    forked_at: int = 0
    reverts: tuple[Revert, ...] = ()
    created: bool = False


class Row(NamedTuple):
    """An event to store; `position` is its append's."""

    recorded: Recorded
    position: int


class Written(NamedTuple):
    """What is stored of one append: the stream's last sequence before it, and its events' bytes."""

    before: int
    events: list[bytes]


class Recordings(Protocol):
    """The store side of the recorder.

    Every write carries the position of its append as its time, so that of two writes to one place
    the one from later in the log wins, in whatever order they come, and the same one again changes
    nothing. Each method raises Unavailable (retriable) where the store can't serve now.
    """

    async def load(self, store: str, agent: str) -> Stream:
        """The agent as it is stored, `fresh` where there is none.

        Its `position` is -1 where what is stored carries another generation of the topic than
        today's. That is 1 in every cluster: a topic that was made anew is refused, not counted on.
        """
        ...

    async def write(
        self, store: str, agent: str, before: Stream, after: Stream, rows: Sequence[Row]
    ) -> None:
        """Store rows and the head after them: all or nothing, durable when it returns.

        `before` is what `load` gave or the last `write` left; `after.position` is the last
        append's. Where `after.bucket` is not `before.bucket`, `before.head.writers` are kept for
        `last_of`, and all rows belong to the new bucket. Without rows it stores the head alone,
        such as a raised epoch.
        """
        ...

    async def by_id(
        self, store: str, agent: str, stream: Stream, ids: Collection[str]
    ) -> dict[str, Event]:
        """Of these ids, the events that have them; up to a fork those of its parents too.

        Looks back over a bounded number of events: `buckets.ID_BUCKETS` of each stream.
        """
        ...

    async def by_writer(
        self, store: str, agent: str, stream: Stream, wanted: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], Event]:
        """Of these (writer, writer's sequence), the agent's own events that are stored."""
        ...

    async def last_of(self, store: str, agent: str, writers: Collection[str]) -> dict[str, int]:
        """The last sequence of these writers in buckets before the newest.

        Those that wrote in none are left out.
        """
        ...

    async def written_at(
        self, store: str, agent: str, stream: Stream, positions: Collection[int]
    ) -> dict[int, Written]:
        """What appends at these positions found and brought; nothing if refused, or known."""
        ...


def fresh(agent: str) -> Stream:
    """An agent that nothing is known of.

    >>> fresh("airline/mia").head.sequence
    0
    """
    chain = first_chain(agent)
    return Stream(
        head=Head(agent, 0, 0, chain, None, {}),
        position=-1,
        bucket=0,
        first=1,
        chain_before=chain,
        events=0,
        bytes=0,
    )


def forked(agent: str, parent: str, at: int, chain: bytes) -> Stream:
    """A new agent that goes on from `parent` at `at`, where the parent's chain is `chain`.

    >>> forked("airline/twin", "airline/mia", 4, bytes(32)).first
    5
    """
    return Stream(
        head=Head(agent, at, 1, chain, None, {}),
        position=-1,
        bucket=0,
        first=at + 1,
        chain_before=chain,
        events=0,
        bytes=0,
        parent=parent,
        forked_at=at,
    )
