"""The recorder's own core over the log, into the tables of another generation.

What the recorder decides is a function of the log, so that what is built here equals what is live.

Invariants:
- A partition's records are recorded in their order. Partitions go on beside each other; a fork
  waits until its parent, which may be in another partition, is as far as the fork point.
- A position is noted after everything before it is in the tables: whoever goes on there after a
  kill leaves nothing out, and what is written twice is the same.
- Nothing is written behind the record that switches to what is built here: from there on it is the
  recorder's.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from perdure.errors import InvalidInput
from perdure.kafka import wire
from perdure.kafka.journal import JournalRecord
from perdure.kafka.switching import generation_of
from perdure.recorder.heads import Heads
from perdure.recorder.partition import DeadLetter, PartitionRecorder, Patience, Source
from perdure.recorder.recordings import Recordings
from perdure.replay.log import Log

NOTE_SECONDS: Final = 1.0
"""How often a position is noted: what a kill has done again."""


class _Wait(NamedTuple):
    """A partition at a fork whose parent isn't as far.

    `time`: when the fork was written, in milliseconds since 1970; `change`: the number of the last
    change after which its parent was looked for in vain.
    """

    time: int
    change: int


class Counts(NamedTuple):
    """What was replayed: records, events that were recorded, records that could not be."""

    records: int
    events: int
    dead: int


def nothing() -> None:
    """What is called where nobody wants to know."""


class Nobody:
    """`recorder.partition.Journal` of a replay: what became of records was told when it did."""

    async def tell(self, partition: int, records: Sequence[tuple[bytes, JournalRecord]]) -> None:
        """Nobody is told."""

    async def put_aside(self, letters: Sequence[DeadLetter]) -> None:
        """They are dead letters already."""


class Rebuild:
    """Partitions of the log on their way into `recordings`.

    `positions` is where to begin. `note(partition, position)` keeps how far it is. A partition ends
    with a record that switches it to `generation`, if `switched(partition, offset)` says that it
    did: that waits until it is known. With `until`, milliseconds since 1970, it ends before its
    first record of that time or later, or at its end in `ends`.
    """

    def __init__(
        self,
        log: Log,
        recordings: Recordings,
        positions: Mapping[int, int],
        *,
        generation: int,
        note: Callable[[int, int], Awaitable[None]],
        switched: Callable[[int, int], Awaitable[bool]],
        patiently: Patience,
        until: int | None = None,
        ends: Mapping[int, int] | None = None,
    ) -> None:
        self.positions = dict(positions)
        """Of each partition: the offset before which everything is in the tables."""
        self.counts = Counts(0, 0, 0)
        self.moved: Callable[[], None] = nothing
        """Called whenever one of them has changed."""
        self._log = log
        self._recordings = recordings
        self._generation = generation
        self._note = note
        self._switched = switched
        self._patiently = patiently
        self._until = until
        self._ends = ends or {}
        self._heads = Heads()
        self._change = asyncio.Condition()
        self._changes = 0
        """How often a partition moved or ended, or came to a fork that waits."""
        self._waits: dict[int, _Wait] = {}
        self.ended: set[int] = set()
        """Partitions that go on elsewhere, or that are complete."""
        self._partitions = len(positions)

    async def run(self) -> None:
        """Replay what there is and what comes, until cancelled; with `until`, up to there.

        Raises:
            NotFound, Incompatible, Corrupt, Unavailable: see `Log.read`.
        """
        async with asyncio.TaskGroup() as group:
            for partition in self.positions:
                group.create_task(self._replay(partition))

    async def reached(self, ends: Mapping[int, int]) -> None:
        """Wait until everything before these offsets is in the tables."""

        def there() -> bool:
            return all(
                self.positions[partition] >= end or partition in self.ended
                for partition, end in ends.items()
            )

        async with self._change:
            await self._change.wait_for(there)

    async def _replay(self, partition: int) -> None:
        recorder = PartitionRecorder(
            partition,
            self._partitions,
            recordings=self._recordings,
            journal=Nobody(),
            heads=self._heads,
            patiently=self._patiently,
        )

        async def follow() -> None:
            noted, noted_at = self.positions[partition], time.monotonic()
            async with contextlib.aclosing(self._log.read(partition, noted)) as batches:
                async for records, after in batches:
                    wanted, ended = before(records, self._until)
                    for part in switches(wanted, self._generation):
                        await self._record(recorder, partition, part)
                        position = part[-1].offset + 1
                        if generation_of(part[-1]) == self._generation:
                            await self._note(partition, position)
                            await self._move(partition, position)
                            if await self._switched(partition, position - 1):
                                return
                    if ended:
                        return
                    now = time.monotonic()
                    if after != noted and (not records or now - noted_at >= NOTE_SECONDS):
                        await self._note(partition, after)
                        noted, noted_at = after, now
                    await self._move(partition, after)
                    if partition in self._ends and after >= self._ends[partition]:
                        return

        await self._patiently(f"partition {partition} of the log", follow)
        self.ended.add(partition)
        await self._changed()

    async def _move(self, partition: int, position: int) -> None:
        if position != self.positions[partition]:
            self.positions[partition] = position
            await self._changed()
            self.moved()

    async def _changed(self) -> None:
        async with self._change:
            self._changes += 1
            self._change.notify_all()

    async def _record(
        self, recorder: PartitionRecorder, partition: int, records: Sequence[Source]
    ) -> None:
        for part, fork in divided(records):
            if fork is not None:
                await self._parent_there(partition, *fork, part[0].timestamp)
            done = await recorder.step(part)
            self.counts = Counts(
                self.counts.records + done.records,
                self.counts.events + done.events,
                self.counts.dead + done.dead,
            )

    async def _parent_there(
        self, partition: int, store: str, fork: wire.Fork, written: int
    ) -> None:
        """Wait until a fork's parent is as far as the fork point, if it ever gets there."""
        other = wire.partition_of(wire.key_of(store, fork.parent), self._partitions)
        if other == partition or other not in self.positions:
            return
        # What the parent had when it was forked was in the log before the fork was; and where its
        # partition goes on elsewhere, it is in the tables already.
        end = (await self._log.bounds([other]))[other].end
        await self._changed()  # What is before the fork is in the tables: others may wait for it.
        try:
            while self.positions[other] < end and other not in self.ended:
                change = self._changes
                stream = await self._patiently(
                    "reading the tables", lambda: self._recordings.load(store, fork.parent)
                )
                if stream.head.sequence >= fork.at:
                    return
                if not await self._changed_since(partition, _Wait(written, change)):
                    return  # Its parent is none: it was recorded so.
        finally:
            self._waits.pop(partition, None)

    async def _changed_since(self, partition: int, wait: _Wait) -> bool:
        """Wait for a change after which a fork's parent may be there; False if there is none."""

        def is_over() -> bool:
            return self._changes != wait.change or self._is_stuck(partition)

        async with self._change:
            self._waits[partition] = wait
            self._change.notify_all()  # It may be the last one that others wait for.
            await self._change.wait_for(is_over)
            return self._changes != wait.change

    def _is_stuck(self, partition: int) -> bool:
        """Whether all wait for a parent, this partition at the fork that was written first.

        Whatever a parent had when it was forked was written before the fork, and so before all
        forks at which the others stand: it would be in the tables.
        """
        going = self.positions.keys() - self.ended
        waits = [self._waits.get(each) for each in going]
        if any(wait is None or wait.change != self._changes for wait in waits):
            return False
        return min(going, key=lambda each: (self._waits[each].time, each)) == partition


def before(records: Sequence[Source], until: int | None) -> tuple[Sequence[Source], bool]:
    """The records before the first one of a time (milliseconds) or later; whether there is one."""
    if until is not None:
        for index, record in enumerate(records):
            if record.timestamp >= until:
                return records[:index], True
    return records, False


def switches(records: Sequence[Source], generation: int) -> Iterator[Sequence[Source]]:
    """Records in parts, each of which ends where it is switched to a generation, or at the end."""
    first = 0
    for index, record in enumerate(records, 1):
        if generation_of(record) == generation:
            yield records[first:index]
            first = index
    if first < len(records):
        yield records[first:]


def divided(
    records: Sequence[Source],
) -> Iterator[tuple[Sequence[Source], tuple[str, wire.Fork] | None]]:
    """Records in parts that begin with a fork, if any; with the fork's store, and the fork."""
    first, fork = 0, None
    for index, record in enumerate(records):
        found = fork_of(record)
        if found is not None:
            if index > first:
                yield records[first:index], fork
            first, fork = index, found
    if first < len(records):
        yield records[first:], fork


def fork_of(record: Source) -> tuple[str, wire.Fork] | None:
    """The store and the fork of a record that makes one; None of any other."""
    for name, value in record.headers:
        if name == "ce_parentchain":
            break
        if name.lower() == "content-type" and value and b"cloudevents" in value:
            if b"parentchain" in (record.value or b""):
                break
            return None
    else:
        return None
    try:
        incoming = wire.decode(record.key, record.value, record.headers, record.timestamp)
    except InvalidInput:
        return None
    return None if incoming.fork is None else (incoming.store, incoming.fork)
