"""States on demand, the hot ones kept in memory.

Invariants:
- What is answered is the state after the head that was read for this very answer, or after the
  sequence that was asked for: a kept state is only where folding starts.
- A kept state is of the history that it was folded from: the chain of its head says so.
- Memory is bounded by bytes, however many agents there are.
- Of one agent and projection, one fold runs at a time; who asks meanwhile shares its result.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from perdure.checkpointer import policy
from perdure.errors import PerdureError
from perdure.model.event import Event, decode
from perdure.model.projection import DEFAULT, Projection, Projections
from perdure.model.sequencing import Head
from perdure.model.timeline import Span, Stream
from perdure.model.upcast import Upcasters
from perdure.ports import Batch, StateTable
from perdure.projector.restore import restore, save

BYTES_MAX: Final = 128 * 1024 * 1024
"""What kept states may take, counted as below: some 3,000 agents with states of 7 kB of JSON, or
one of 19 MB. A state that is not kept is folded from its last checkpoint when it is asked for."""

OBJECT_FACTOR: Final = 6
"""A state in memory takes about so many times the bytes of its JSON."""

ENTRY_BYTES: Final = 4096
"""What keeping even the smallest state takes."""


class Answer(NamedTuple):
    """A state after `sequence`, as the JSON of its projection.

    `chain` is the hash chain after it in hexadecimal, where it is at hand.
    """

    agent: str
    sequence: int
    data: bytes
    chain: str = ""


class Events(Protocol):
    """What states on demand need of `ports.EventTable`."""

    async def lineage(self, agent: str) -> list[Stream]:
        """The agent's stream, then its parent's, and so on. Raises NotFound."""
        ...

    async def head(self, agent: str) -> Head:
        """Where the stream stands. Raises NotFound."""
        ...

    def read(self, span: Span) -> AsyncIterator[Batch]:
        """The events of a span, in order, in batches of bounded bytes."""
        ...

    async def sequence_at(self, spans: Sequence[Span], time: int, *, inclusive: bool) -> int:
        """The last sequence of `spans` before the first event that is later than `time`."""
        ...


class Source(NamedTuple):
    """Where the agents of one store are read."""

    store: str
    events: Events
    states: StateTable


class _Hot:
    """A kept state of one agent and projection. `head` is that after which it is."""

    __slots__ = ("data", "encoded", "head", "lock", "size", "state", "tail")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.head: Head | None = None
        self.state: object = None
        self.data: bytes | None = None
        """The state's JSON, where somebody has asked for it."""
        self.size = ENTRY_BYTES
        self.encoded = 0
        """How many bytes the JSON had when it was last made."""
        self.tail = 0
        """Bytes folded since then."""

    def drop(self) -> None:
        """Forget the state; the next who asks restores it."""
        self.head, self.state, self.data = None, None, None
        self.encoded = self.tail = 0

    def is_larger(self, bytes_max: int | None) -> bool:
        """Whether the state's JSON is over a limit, as far as is known without making it.

        Made anew when as much was folded as it had: so the cost stays in proportion.
        """
        return bytes_max is not None and self.encoded > max(bytes_max, self.tail)


class States:
    """The states of any agents, of all registered projections."""

    def __init__(
        self, projections: Projections, upcasters: Upcasters, *, bytes_max: int = BYTES_MAX
    ) -> None:
        self._projections = projections
        self._upcasters = upcasters
        self._bytes_max = bytes_max
        self._hot: OrderedDict[tuple[str, str, str], _Hot] = OrderedDict()
        self._bytes = 0
        self._asked: set[str] = set()
        """The projections that anything is kept of."""

    @property
    def count(self) -> int:
        """How many states are kept."""
        return len(self._hot)

    @property
    def size(self) -> int:
        """How many bytes the kept states take, about."""
        return self._bytes

    async def latest(self, source: Source, agent: str, projection: str = DEFAULT.name) -> Answer:
        """The state after all that is recorded when this is called.

        Raises:
            NotFound: there is no such agent, or no such projection is registered.
            Corrupt, MissingUpcaster, ProjectionFailed: see `restore`.
        """
        return await self.newest(source, agent, projection)

    async def newest(
        self,
        source: Source,
        agent: str,
        projection: str = DEFAULT.name,
        *,
        bytes_max: int | None = None,
    ) -> Answer:
        """As `latest`; but the data of a state of more than `bytes_max` bytes is left out."""
        known = self._projections.get(projection)
        key = (source.store, agent, projection)
        # First: names that nobody has aren't kept.
        if bytes_max is None:
            head, _ = await asyncio.gather(source.events.head(agent), self._encode(key, known))
        else:
            head = await source.events.head(agent)
        hot = self._kept(key)
        if hot.data is None or not _same(hot.head, head):
            async with hot.lock:
                try:
                    await self._bring(hot, source, known, agent, head)
                    if hot.data is None and not hot.is_larger(bytes_max):
                        hot.data = known.encode(hot.state)
                        hot.encoded = len(hot.data)
                except BaseException:
                    hot.drop()  # Half folded, a user's state may be anything.
                    raise
                finally:
                    self._weigh(key, hot)
        # Nothing is awaited from here on: head and data are of one moment.
        at = head if hot.head is None else hot.head
        large = hot.data is None or (bytes_max is not None and len(hot.data) > bytes_max)
        return Answer(agent, at.sequence, b"" if large else hot.data or b"", at.chain.hex())

    async def at(
        self, source: Source, agent: str, sequence: int, projection: str = DEFAULT.name
    ) -> Answer:
        """The state after a sequence that the agent has; see `latest`."""
        known = self._projections.get(projection)
        lineage = await source.events.lineage(agent)
        restored = await restore(
            source.events,
            source.states,
            self._upcasters,
            projection=known,
            lineage=lineage,
            at=sequence,
        )
        return Answer(agent, sequence, known.encode(restored.state))

    def keeps(self, store: str, agent: str) -> bool:
        """Whether any state of an agent is kept."""
        return any((store, agent, projection) in self._hot for projection in self._asked)

    def follow(self, store: str, head: Head, stored: Sequence[bytes | msgspec.Raw]) -> None:
        """Fold events that were just recorded into the agent's kept states, as far as that goes.

        `stored` are the events' bytes, `head` the one after them. States that they don't follow on,
        and those that somebody is working on, are brought forward when they are asked for.
        """
        for projection in self._asked:
            key = (store, head.agent, projection)
            hot = self._hot.get(key)
            if hot is None or hot.head is None or hot.lock.locked():
                continue
            before = hot.head.sequence
            if before >= head.sequence:
                continue
            try:
                new = [event for event in map(decode, stored) if event.sequence > before]
                sequences = [event.sequence for event in new]
                if sequences != list(range(before + 1, head.sequence + 1)) or _reverts(new):
                    continue
                known = self._projections.get(projection)
                hot.state = known.fold(hot.state, self._upcasters.lift(new))
            except PerdureError:
                hot.drop()  # What is wrong is told to who asks.
            else:
                hot.head, hot.data = head, None
                hot.tail += sum(len(bytes(data)) for data in stored)
            self._weigh(key, hot)

    async def _encode(self, key: tuple[str, str, str], projection: Projection[Any]) -> None:
        """Make the JSON of a kept state, while the tables are asked whether it is the newest.

        It is, as a rule, where somebody tells what is recorded (`follow`).
        """
        hot = self._hot.get(key)
        if hot is None or hot.head is None or hot.data is not None or hot.lock.locked():
            return
        with contextlib.suppress(PerdureError):  # told where the state turns out to be the answer
            hot.data = projection.encode(hot.state)
            hot.encoded = len(hot.data)
            self._weigh(key, hot)

    async def _bring(
        self, hot: _Hot, source: Source, projection: Projection[Any], agent: str, head: Head
    ) -> None:
        """Make the kept state the one after `head`, or after a later one."""
        if hot.head is not None and hot.head.sequence > head.sequence:
            head = await source.events.head(agent)  # It has moved meanwhile, and the state with it.
        if _same(hot.head, head):
            return
        if hot.head is not None and await self._folded(hot, source, projection, agent, head):
            return
        lineage = await source.events.lineage(agent)
        restored = await restore(
            source.events,
            source.states,
            self._upcasters,
            projection=projection,
            lineage=lineage,
            at=head.sequence,
        )
        hot.head, hot.state, hot.data, hot.tail = head, restored.state, None, 0
        if lineage[0].forked_at < head.sequence and policy.due(
            restored.folded, restored.saved, at_rest=True
        ):
            # Where it can't be kept, the next one folds again: no reason to fail this one.
            with contextlib.suppress(PerdureError):
                await save(
                    source.states,
                    self._upcasters,
                    projection=projection,
                    agent=agent,
                    sequence=head.sequence,
                    state=restored.state,
                )

    async def _folded(
        self, hot: _Hot, source: Source, projection: Projection[Any], agent: str, head: Head
    ) -> bool:
        """Fold what is new onto the kept state; False where that is not what the new state is."""
        before = hot.head.sequence if hot.head is not None else 0
        if head.sequence <= before:
            return False  # Another history than the one it was folded from.
        state, size = hot.state, 0
        async for batch in source.events.read(Span(agent, before + 1, head.sequence)):
            if _reverts(batch.events):
                return False
            state = projection.fold(state, self._upcasters.lift(batch.events))
            size += batch.size
        hot.head, hot.state, hot.data = head, state, None
        hot.tail += size
        return True

    def _kept(self, key: tuple[str, str, str]) -> _Hot:
        hot = self._hot.get(key)
        if hot is None:
            hot = self._hot[key] = _Hot()
            self._asked.add(key[2])
            self._bytes += hot.size
        self._hot.move_to_end(key)
        return hot

    def _weigh(self, key: tuple[str, str, str], hot: _Hot) -> None:
        if self._hot.get(key) is not hot:
            return
        if hot.data is not None:
            hot.tail = 0
        data = 0 if hot.data is None else len(hot.data)
        size = ENTRY_BYTES + data + (hot.encoded + hot.tail) * OBJECT_FACTOR
        self._bytes += size - hot.size
        hot.size = size
        while self._bytes > self._bytes_max and self._hot:
            _, gone = self._hot.popitem(last=False)
            self._bytes -= gone.size


def _same(kept: Head | None, head: Head) -> bool:
    return kept is not None and kept.sequence == head.sequence and kept.chain == head.chain


def _reverts(events: Sequence[Event]) -> bool:
    return any(event.type == "agent.reverted" for event in events)
