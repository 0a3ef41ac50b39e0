"""What became of each record: the newest part of the journal, in memory, and those who wait for it.

No I/O: `gateway.journal` feeds it.

Invariants:
- Memory is bounded: of what is kept by bytes, of what a listener has to take by events.
- Who waits for a record, a position or a change is woken by the very record that brings it.
- The version of a store never falls back to one that it had.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from perdure.kafka.journal import Entry, JournalRecord

KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Journal records that are kept: the verdicts of the last seconds at full load."""

HEARD_MAX: Final = 1024
"""Events that wait for one listener; who is slower reads the table instead."""

STORES_MAX: Final = 100_000
"""Stores whose versions are kept."""

_RECORDED: Final = frozenset({"recorded", "opened", "forked", "switched"})


class Verdict(NamedTuple):
    """What became of the record at `offset` of `partition`."""

    partition: int
    offset: int
    store: str
    agent: str
    entry: Entry


class Listener:
    """Hears what is recorded of one agent; `missed` when it was too slow and has to read."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._came = asyncio.Event()
        self.missed = False
        self.ended = False

    def end(self) -> None:
        """Say that nothing more comes."""
        self.ended = True
        self._came.set()

    def hear(self, event: bytes) -> None:
        """Take note of a stored event."""
        if len(self._waiting) >= HEARD_MAX:
            self._waiting.clear()
            self.missed = True
        self._waiting.append(event)
        self._came.set()

    async def take(self, wait_seconds: float) -> list[bytes]:
        """The events that came since, oldest first; waits for one at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), wait_seconds)
        self._came.clear()
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class _Wait:
    """One who waits for any of several records."""

    __slots__ = ("found", "woken")

    def __init__(self) -> None:
        self.found: list[Verdict] = []
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class Verdicts:
    """The newest verdicts, and who waits for the next."""

    def __init__(self, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[tuple[int, int], Verdict] = {}
        self._order: deque[tuple[int, list[tuple[int, int]]]] = deque()
        self._kept_bytes = 0
        self._through: dict[int, int] = {}
        self._waits: dict[tuple[int, int], set[_Wait]] = {}
        self._levels: dict[int, dict[int, set[asyncio.Event]]] = {}
        # From the clock on, so that a version of an earlier process doesn't come again.
        self._version = time.time_ns() // 1000
        self._versions: dict[str, int] = {}
        # Gone with the last one who waits for it.
        self._changes: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._listeners: dict[tuple[str, str], set[Listener]] = {}
        self.ended = False

    def end(self) -> None:
        """Answer all who wait with what there is, and who asks from now on at once."""
        self.ended = True
        for waits in self._waits.values():
            for wait in waits:
                wait.wake()
        for levels in self._levels.values():
            for events in levels.values():
                for event in events:
                    event.set()
        for change in list(self._changes.values()):
            change.set()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.end()

    def note(self, record: JournalRecord, size: int) -> None:
        """Take in a record of the journal of so many bytes."""
        keys = []
        changed = False
        for entry in record.entries:
            key = (record.partition, entry.offset)
            keys.append(key)
            changed = changed or entry.outcome in _RECORDED
            verdict = Verdict(*key, record.store, record.agent, entry)
            # The first copy: told again after a crash, a claim's epoch is no longer known.
            verdict = self._kept.setdefault(key, verdict)
            for wait in self._waits.pop(key, ()):
                wait.found.append(verdict)
                wait.wake()
        self._order.append((size, keys))
        self._kept_bytes += size
        while self._kept_bytes > self._kept_bytes_max and len(self._order) > 1:
            gone, keys = self._order.popleft()
            self._kept_bytes -= gone
            for key in keys:
                self._kept.pop(key, None)
        if record.through > self._through.get(record.partition, -1):
            self._through[record.partition] = record.through
        if changed:
            self._changed(record)

    def _changed(self, record: JournalRecord) -> None:
        self._version += 1
        self._versions[record.store] = self._version
        if (change := self._changes.pop(record.store, None)) is not None:
            change.set()
        for listener in self._listeners.get((record.store, record.agent), ()):
            for entry in record.entries:
                for event in entry.events:
                    listener.hear(bytes(event))

    def settle(self) -> None:
        """Wake those whose position is reached: once after some records were noted."""
        for partition, levels in self._levels.items():
            through = self._through.get(partition, -1)
            for offset in [offset for offset in levels if offset <= through]:
                for event in levels.pop(offset):
                    event.set()

    def lost(self) -> None:
        """Say that records were missed: whoever waits for a change looks again."""
        self._version += 1
        for store in self._versions:
            self._versions[store] = self._version
        for change in list(self._changes.values()):
            change.set()
        self._changes.clear()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.missed = True

    @property
    def waiting(self) -> int:
        """How many records are waited for."""
        return len(self._waits)

    def known(self, partition: int, offset: int) -> Verdict | None:
        """The verdict of a record, if it is kept."""
        return self._kept.get((partition, offset))

    def through(self, partition: int) -> int:
        """Up to which offset every record of a partition is decided; -1 where it isn't known."""
        return self._through.get(partition, -1)

    async def any_of(
        self, records: Sequence[tuple[int, int]], wait_seconds: float
    ) -> list[Verdict]:
        """Verdicts of some of the records (partition, offset); waits until there is one."""
        found = [self._kept[key] for key in records if key in self._kept]
        if found or self.ended:
            return found
        wait = _Wait()
        for key in records:
            self._waits.setdefault(key, set()).add(wait)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await wait.woken
            return wait.found
        finally:
            for key in records:
                waiting = self._waits.get(key)
                if waiting is not None:
                    waiting.discard(wait)
                    if not waiting:
                        del self._waits[key]

    async def reached(self, partition: int, offset: int, wait_seconds: float) -> bool:
        """Whether every record up to `offset` is decided; waits for it at most so long."""
        if self.through(partition) >= offset or self.ended:
            return self.through(partition) >= offset
        event = asyncio.Event()
        levels = self._levels.setdefault(partition, {})
        levels.setdefault(offset, set()).add(event)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), wait_seconds)
            return self.through(partition) >= offset
        finally:
            if offset in levels:
                levels[offset].discard(event)
                if not levels[offset]:
                    del levels[offset]

    def version(self, store: str) -> int:
        """A number that is another one whenever something of the store was recorded."""
        if store not in self._versions:
            if len(self._versions) >= STORES_MAX:
                # All get new numbers, and who waits looks once too often.
                self._versions.clear()
                self._version += 1
            self._versions[store] = self._version
        return self._versions[store]

    async def changed(self, store: str, version: int, wait_seconds: float) -> int:
        """The version of the store, as soon as it isn't `version`; at the latest after so long."""
        if (now := self.version(store)) != version or self.ended:
            return now
        change = self._changes.get(store)
        if change is None:
            change = self._changes[store] = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(change.wait(), wait_seconds)
        return self.version(store)

    @contextlib.contextmanager
    def listening(self, store: str, agent: str) -> Iterator[Listener]:
        """A listener to one agent, while the context lasts."""
        listener = Listener()
        key = (store, agent)
        self._listeners.setdefault(key, set()).add(listener)
        if self.ended:
            listener.end()
        try:
            yield listener
        finally:
            self._listeners[key].discard(listener)
            if not self._listeners[key]:
                del self._listeners[key]
