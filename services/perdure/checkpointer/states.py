"""State checkpoints of agents that others write, saved when they are worth it.

Invariants:
- What is saved was restored from the tables alone; a saved state is never needed, so whatever goes
  wrong costs time and nothing else.
- Counting never waits: what is due waits in a queue of bounded length, and of an agent once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol, TypeVar

from perdure.checkpointer import policy
from perdure.checkpointer.tails import Key, Tails
from perdure.errors import NotFound, PerdureError, ProjectionFailed
from perdure.model.projection import DEFAULT
from perdure.model.timeline import Stream
from perdure.model.upcast import Upcasters
from perdure.ports import StateTable
from perdure.projector import restore

QUEUE_MAX: Final = 10_000
"""How many agents may wait for their state to be saved; the oldest are left out beyond it."""

WORKERS: Final = 2
"""How many states are in memory at a time."""

T = TypeVar("T")


class Patience(Protocol):
    """Calls again for as long as an engine is away."""

    def __call__(self, what: str, call: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
        """What the call gives once it doesn't raise Unavailable any more."""
        ...


class Events(restore.Events, Protocol):
    """What saving states needs of `ports.EventTable`."""

    async def lineage(self, agent: str) -> list[Stream]:
        """The agent's stream, then its parent's, and so on. Raises NotFound."""
        ...


class Tables(NamedTuple):
    """Where the agents of one store are read, and their states are kept."""

    events: Events
    states: StateTable


class Look(NamedTuple):
    """What looking at an agent came to: `saved` bytes of a state, 0 where it wasn't worth it."""

    key: Key
    saved: int
    error: PerdureError | None = None


class StateCheckpoints:
    """Looks at agents that may be due, and saves their state if they are."""

    def __init__(
        self,
        tails: Tails,
        tables: Callable[[Key], Tables],
        upcasters: Upcasters,
        *,
        patiently: Patience,
        looked: Callable[[Look], None],
    ) -> None:
        self._tails = tails
        self._tables = tables
        self._upcasters = upcasters
        self._patiently = patiently
        self._looked = looked
        self._queue: OrderedDict[Key, bool] = OrderedDict()
        self._more = asyncio.Condition()
        self._busy = 0

    @property
    def waiting(self) -> int:
        """How many agents wait for a look, or are being looked at."""
        return len(self._queue) + self._busy

    async def look(self, key: Key, *, at_rest: bool) -> None:
        """Put an agent into the queue; it is looked at by `work`."""
        async with self._more:
            # At rest a smaller tail is worth it: what was said last holds.
            self._queue[key] = at_rest
            while len(self._queue) > QUEUE_MAX:
                self._queue.popitem(last=False)
            self._more.notify()

    async def work(self) -> None:
        """Look at agents until cancelled, `WORKERS` at a time."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def all_done(self) -> None:
        """Wait until nobody waits for a look."""
        async with self._more:
            await self._more.wait_for(lambda: not self.waiting)

    async def _work(self) -> None:
        while True:
            async with self._more:
                await self._more.wait_for(lambda: self._queue)
                key, at_rest = self._queue.popitem(last=False)
                self._busy += 1
            try:
                self._looked(await self._look(key, at_rest=at_rest))
            finally:
                self._busy -= 1
                async with self._more:
                    self._more.notify_all()

    async def _look(self, key: Key, *, at_rest: bool) -> Look:
        async def once() -> Look:
            try:
                return await self._saved(key, at_rest=at_rest)
            except ProjectionFailed as error:
                # Unavailable by its kind, but trying again doesn't help.
                return Look(key, 0, error)

        try:
            return await self._patiently("the tables of states", once)
        except NotFound:
            return Look(key, 0)
        except PerdureError as error:
            return Look(key, 0, error)

    async def _saved(self, key: Key, *, at_rest: bool) -> Look:
        events, states = self._tables(key)
        lineage = await events.lineage(key.agent)
        newest = lineage[0]
        restored = await restore.restore(
            events,
            states,
            self._upcasters,
            projection=DEFAULT,
            lineage=lineage,
            at=newest.sequence,
        )
        size, tail = restored.saved, restored.folded
        # What is before a fork is its parent's to save.
        worth = policy.due(tail, size, at_rest=at_rest) and newest.forked_at < newest.sequence
        if worth:
            size, tail = (
                await restore.save(
                    states,
                    self._upcasters,
                    projection=DEFAULT,
                    agent=key.agent,
                    sequence=restored.sequence,
                    state=restored.state,
                ),
                0,
            )
        self._tails.looked_at(key, tail_bytes=tail, state_bytes=size)
        return Look(key, size if worth else 0)
