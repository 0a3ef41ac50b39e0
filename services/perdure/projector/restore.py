"""State on demand.

Invariants:
- A state restored from any checkpoint equals the state folded from event 1.
- What is read is the timeline at the asked point: undone events don't count, a fork's parent does
  up to the fork.
- Memory is bounded by the state and one batch, at any length of the history.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from perdure.errors import Corrupt
from perdure.model.projection import Projection
from perdure.model.timeline import Lineage, Span, after, timeline
from perdure.model.upcast import Upcasters
from perdure.ports import Batch, SavedState, StateTable

S = TypeVar("S")


class Events(Protocol):
    """What restoring needs of `ports.EventTable`."""

    def read(self, span: Span) -> AsyncIterator[Batch]:
        """The events of a span, in order, in batches of bounded bytes."""
        ...


class Restored(NamedTuple, Generic[S]):
    """A state after `sequence`, and what getting it took.

    `saved` is the size in bytes of the checkpoint it started from, 0 without one; `folded` the
    stored bytes of the events that were folded onto it.
    """

    state: S
    sequence: int
    saved: int
    folded: int


def saved_key(projection: Projection[S], upcasters: Upcasters) -> str:
    """What a saved state of a projection is kept under: all code that the state depends on.

    >>> from perdure.model.projection import DEFAULT
    >>> saved_key(DEFAULT, Upcasters()) == DEFAULT.key
    True
    """
    return f"{projection.key}+{upcasters.key}" if upcasters.key else projection.key


async def restore(
    events: Events,
    states: StateTable,
    upcasters: Upcasters,
    *,
    projection: Projection[S],
    lineage: Lineage,
    at: int,
) -> Restored[S]:
    """The state of a projection after the sequence `at` (0: before the first event).

    Raises:
        Corrupt: an event that is needed is damaged or missing.
        MissingUpcaster: an event's version can't be lifted to the current one.
        ProjectionFailed: the projection's function raised.
    """
    spans = timeline(lineage, at)
    saved = await states.nearest(projection.name, saved_key(projection, upcasters), spans)
    state, size = projection.initial(lineage[0].agent), 0
    if saved is not None:
        # What can't be decoded (the state's type was changed) is folded again: it is never needed.
        with contextlib.suppress(Corrupt):
            state, size = projection.decode(saved.data), len(saved.data)
            spans = after(spans, saved.agent, saved.sequence) or []
    folded = 0
    for span in spans:
        async for batch in events.read(span):
            state = projection.fold(state, upcasters.lift(batch.events))
            folded += batch.size
    return Restored(state, at, size, folded)


async def refold(
    events: Events,
    upcasters: Upcasters,
    *,
    projection: Projection[S],
    lineage: Lineage,
    at: int,
) -> S:
    """The state folded from event 1, without any checkpoint: what every other way must equal."""
    state = projection.initial(lineage[0].agent)
    for span in timeline(lineage, at):
        async for batch in events.read(span):
            state = projection.fold(state, upcasters.lift(batch.events))
    return state


async def save(
    states: StateTable,
    upcasters: Upcasters,
    *,
    projection: Projection[S],
    agent: str,
    sequence: int,
    state: S,
) -> int:
    """Keep a state after one of the agent's own events; its size in bytes.

    Raises:
        InvalidData: the state is not one that can be kept.
        Unavailable: the store can't take it now.
    """
    data = projection.encode(state)
    key = saved_key(projection, upcasters)
    await states.save(SavedState(agent, sequence, projection.name, key, data))
    return len(data)
