"""Memory events as the tables have them, in windows, the last ones kept.

Invariants:
- A window is read up to the agent's head and no further, so what is kept of it stays true; what
  came since is read and added.
- What is kept is bounded in characters.
"""

import contextlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final, NamedTuple, Protocol

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


class _Window(NamedTuple):
    """What there is from the window's beginning to `read_to`; about how much that is."""

    read_to: int
    found: list[Memory | Forgetting]
    chars: int


class MemoryEvents:
    """The memory events of one store. Use from one event loop."""

    def __init__(self, events: EventsByType, keyspace_of: Callable[[str], str]) -> None:
        self._events_by_type = events
        self._keyspace_of = keyspace_of
        self._windows: OrderedDict[tuple[str, str, int], _Window] = OrderedDict()
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
        stop = min(_end(first), head)
        found = await self._window(agent, first, stop)
        return stop, [each for each in found if first <= each.sequence <= stop]

    async def memory(self, agent: str, sequence: int) -> Memory | None:
        """The memory that an event stored; None where it is no such event."""
        window = self._windows.get(self._key(agent, sequence))
        if window is not None and sequence <= window.read_to:
            found = window.found
        else:
            head = await self.head(agent)
            if not 1 <= sequence <= head:
                return None
            # To the window's end: whoever asks for one memory asks for its neighbours next.
            found = await self._window(agent, sequence, min(_end(sequence), head))
        index = bisect_left(found, sequence, key=lambda each: each.sequence)
        for each in found[index : index + 2]:
            if isinstance(each, Memory) and each.sequence == sequence:
                return each
        return None

    def _key(self, agent: str, sequence: int) -> tuple[str, str, int]:
        return self._keyspace_of(agent), agent, sequence // WINDOW_EVENTS

    async def _window(self, agent: str, sequence: int, stop: int) -> list[Memory | Forgetting]:
        """All there is in the window of a sequence, at least up to `stop`."""
        key = self._key(agent, sequence)
        while True:
            window = self._windows.get(key)
            if window is not None and stop <= window.read_to:
                self._windows.move_to_end(key)
                return window.found
            before = _end(sequence) - WINDOW_EVENTS if window is None else window.read_to
            new = await self._events(agent, max(before + 1, 1), stop)
            # Another caller may have read the same meanwhile, or room was made: then once more.
            if self._windows.get(key) is window and (window is None or window.read_to == before):
                break
        found = new if window is None else [*window.found, *new]
        chars = _CHARS_EACH if window is None else 0
        chars += sum(_CHARS_EACH + len(getattr(each, "text", "")) for each in new)
        self._windows[key] = _Window(stop, found, chars if window is None else window.chars + chars)
        self._windows.move_to_end(key)
        self._chars += chars
        while self._chars > KEPT_CHARS_MAX:
            self._chars -= self._windows.popitem(last=False)[1].chars
        return found

    async def _events(self, agent: str, first: int, last: int) -> list[Memory | Forgetting]:
        found: list[Memory | Forgetting] = []
        with contextlib.suppress(NotFound):
            async for batch in self._events_by_type.by_type(agent, TYPES, first=first, last=last):
                found += [said for event in batch.events if (said := understood(event))]
        found.sort(key=lambda each: each.sequence)
        return found


def _end(sequence: int) -> int:
    """The last sequence of a sequence's window."""
    return sequence // WINDOW_EVENTS * WINDOW_EVENTS + WINDOW_EVENTS - 1
