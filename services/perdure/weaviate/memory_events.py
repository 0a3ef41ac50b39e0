"""Memory events as the tables have them, in windows, the last ones kept.

Invariants:
- A window is read up to the agent's head and no further, so what is kept of it stays true; what
  came since is read and added.
- What is kept is bounded in characters.
"""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from typing import Final, Protocol

from perdure.errors import NotFound
from perdure.memorizer.memory import Memory
from perdure.model.sequencing import Head
from perdure.ports import Batch
from perdure.weaviate.objects import TYPES, Forgetting, understood

WINDOW_EVENTS: Final = 4_096
"""How many sequences a window is long: about a bucket of the tables."""

KEPT_CHARS_MAX: Final = 32 * 2**20
"""About how many characters of windows are kept."""

_CHARS_EACH: Final = 500
"""What an event takes beside its text."""


class EventsByType(Protocol):
    """What the index asks of the tables of events: `cassandra.event_table` fills it."""

    async def head(self, agent: str) -> Head:
        """Where the stream stands. Raises NotFound."""
        ...

    def by_type(
        self, agent: str, types: Collection[str], *, first: int, last: int
    ) -> AsyncIterator[Batch]:
        """The agent's own events of some types with a sequence from `first` to `last`.

        Raises NotFound.
        """
        ...


class _Window:
    __slots__ = ("chars", "found", "read_to")

    def __init__(self, read_to: int) -> None:
        self.read_to = read_to
        self.found: list[Memory | Forgetting] = []
        self.chars = 0


class MemoryEvents:
    """The memory events of one store. Use from one event loop."""

    def __init__(self, events: EventsByType) -> None:
        self._events_by_type = events
        self._windows: OrderedDict[tuple[str, int], _Window] = OrderedDict()
        self._chars = 0

    async def head(self, agent: str) -> int:
        """The agent's last sequence, 0 where there is no such agent."""
        try:
            return (await self._events_by_type.head(agent)).sequence
        except NotFound:
            return 0

    async def window(
        self, agent: str, first: int, head: int
    ) -> tuple[int, list[Memory | Forgetting]]:
        """What there is from `first` to the end of its window, and that end: at most the head.

        In order of the sequence. The head must be recorded.
        """
        number = first // WINDOW_EVENTS
        stop = min((number + 1) * WINDOW_EVENTS - 1, head)
        found = await self._window(agent, number, stop)
        return stop, [each for each in found if first <= each.sequence <= stop]

    async def memory(self, agent: str, sequence: int) -> Memory | None:
        """The memory that an event stored; None where it is no such event."""
        window = self._windows.get((agent, sequence // WINDOW_EVENTS))
        known = window.found if window is not None and sequence <= window.read_to else None
        if known is None:
            known = await self._events(agent, sequence, sequence)
        for each in known:
            if isinstance(each, Memory) and each.sequence == sequence:
                return each
        return None

    async def _window(self, agent: str, number: int, stop: int) -> list[Memory | Forgetting]:
        key = agent, number
        window = self._windows.get(key)
        if window is not None and stop <= window.read_to:
            self._windows.move_to_end(key)
            return window.found
        read_to = number * WINDOW_EVENTS - 1 if window is None else window.read_to
        found = await self._events(agent, max(read_to + 1, 1), stop)
        # Looked up again: another caller may have read the same meanwhile.
        window = self._windows.setdefault(key, _Window(number * WINDOW_EVENTS - 1))
        new = [each for each in found if each.sequence > window.read_to]
        window.found = [*window.found, *new]
        window.read_to = max(window.read_to, stop)
        chars = sum(_CHARS_EACH + len(getattr(each, "text", "")) for each in new)
        window.chars += chars
        self._chars += chars
        self._windows.move_to_end(key)
        found = window.found
        while self._chars > KEPT_CHARS_MAX:
            _, dropped = self._windows.popitem(last=False)
            self._chars -= dropped.chars
        return found

    async def _events(self, agent: str, first: int, last: int) -> list[Memory | Forgetting]:
        found: list[Memory | Forgetting] = []
        with contextlib.suppress(NotFound):
            async for batch in self._events_by_type.by_type(agent, TYPES, first=first, last=last):
                found += [said for event in batch.events if (said := understood(event))]
        found.sort(key=lambda each: each.sequence)
        return found
