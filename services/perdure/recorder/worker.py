"""The partitions of a recorder: what waits in each, and the steps in which it is recorded.

Invariants:
- A partition's records are recorded in their order, one step at a time; partitions don't wait for
  each other.
- Only what a step has recorded is committed, each partition's position by itself.
- What waits is bounded: a partition that falls behind is paused, and stays a member's.
- When a partition goes away, nothing more of it is begun, and nothing is kept of its agents.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from perdure.errors import Unavailable, Unreachable
from perdure.recorder.partition import Done, PartitionRecorder, Patience, Source

STEP_RECORDS: Final = 4000
"""Records that one step takes at most."""

STEP_BYTES: Final = 4_000_000
"""Bytes of values that one step takes at most, or one record."""

BACKLOG_BYTES: Final = 8_000_000
"""Bytes that wait in a partition before it is paused; it goes on at half of it."""

BACKLOG_RECORDS: Final = 4 * STEP_RECORDS
"""The same in records."""

COMMIT_SECONDS: Final = 0.1
"""Between two commits of a partition, at least: each is a write for the brokers, and what was
recorded since the last one is only read again."""

_RECORD_BYTES: Final = 700
"""What a record takes beside its value, about."""


T = TypeVar("T")


class Reading(Protocol):
    """What a partition asks of Kafka's consumer."""

    def pause(self, partition: int) -> None:
        """Have no more of a partition fetched for now."""
        ...

    def resume(self, partition: int) -> None:
        """Have a partition fetched again."""
        ...

    async def commit(self, partition: int, position: int) -> None:
        """Commit a position. If that fails the next one will do, or others read it again."""
        ...


class Worker:
    """One partition, for as long as it is assigned here."""

    def __init__(
        self,
        partition: int,
        *,
        recorder: PartitionRecorder,
        reading: Reading,
        patiently: Patience,
        done: Callable[[int, Done], None],
        failed: Callable[[int, Exception], None],
    ) -> None:
        self.position = -1
        """The offset after the last record that was recorded here, -1 before the first."""
        self._partition = partition
        self._recorder = recorder
        self._reading = reading
        self._patiently = patiently
        self._done = done
        self._failed = failed
        self._backlog: deque[tuple[Source, int]] = deque()
        """What waits, each with its size."""
        self._bytes = 0
        self._paused = False
        self._begun = False
        self._ending = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._committed = -1

    def put(self, records: Sequence[Source]) -> None:
        """Have records recorded, after those that were put before."""
        if self._ending.is_set():
            return
        sizes = [_RECORD_BYTES + len(record.value or b"") for record in records]
        self._backlog.extend(zip(records, sizes, strict=True))
        self._bytes += sum(sizes)
        if not self._paused and self._is_over(1.0):
            self._paused = True
            self._reading.pause(self._partition)
        self.begin()

    def begin(self) -> None:
        """Go on, or look whether it can be gone on once there is something to record."""
        if self._running is None and not self._ending.is_set():
            self._running = asyncio.create_task(self._run())

    async def end(self, seconds: float) -> None:
        """Finish the step that is under way, if it takes no longer than that, and commit it."""
        self._ending.set()
        self._backlog.clear()
        self._bytes = 0
        if self._running is not None:
            # Before it has begun nothing is under way.
            patience = seconds if self._begun else 0
            _, late = await asyncio.wait([self._running], timeout=patience)
            if late:
                self._running.cancel()
                await asyncio.wait([self._running])
        if self._committing is not None:
            _, late = await asyncio.wait([self._committing], timeout=seconds)
            for task in late:
                task.cancel()

    async def _run(self) -> None:
        try:
            if not self._begun:
                await self._surely(self._recorder.begin)
                self._begun = True
            while self._backlog:
                await self._step(self._taken())
        finally:
            self._running = None

    async def _step(self, records: Sequence[Source]) -> None:
        done = await self._surely(lambda: self._recorder.step(records))
        self.position = records[-1].offset + 1
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        self._done(self._partition, done)

    async def _surely(self, call: Callable[[], Awaitable[T]]) -> T:
        async def called() -> T:
            try:
                return await call()
            except Unavailable:
                raise
            except Exception as error:
                # Nobody thought of it. Leaving out records is no way on: the step is tried again.
                self._failed(self._partition, error)
                raise Unreachable(f"a step failed: {error!r}", hint="the log says where") from error

        return await self._patiently(f"partition {self._partition}", called)

    async def _commit(self) -> None:
        try:
            while self._committed != self.position:
                position = self.position
                await self._reading.commit(self._partition, position)
                self._committed = position
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), COMMIT_SECONDS)
        finally:
            self._committing = None

    def _taken(self) -> list[Source]:
        """The next records, as many as one step takes."""
        taken: list[Source] = []
        size = 0
        while self._backlog and len(taken) < STEP_RECORDS:
            record, own = self._backlog[0]
            if taken and size + own > STEP_BYTES:
                break
            self._backlog.popleft()
            taken.append(record)
            size += own
        self._bytes -= size
        if self._paused and not self._is_over(0.5):
            self._paused = False
            self._reading.resume(self._partition)
        return taken

    def _is_over(self, part: float) -> bool:
        return self._bytes > part * BACKLOG_BYTES or len(self._backlog) > part * BACKLOG_RECORDS


class Workers:
    """The partitions that are assigned here. `new` makes what records one."""

    def __init__(self, new: Callable[[int], Worker], forget: Callable[[int], None]) -> None:
        self._new = new
        self._forget = forget
        self._workers: dict[int, Worker] = {}
        self._stopped = False

    def put(self, partition: int, records: Sequence[Source]) -> None:
        """Have records of a partition recorded."""
        if not self._stopped:
            self._of(partition).put(records)

    def assigned(self, partitions: set[int]) -> None:
        """They are recorded here from now on: look at once whether they can be."""
        for partition in () if self._stopped else partitions:
            self._of(partition).begin()

    def _of(self, partition: int) -> Worker:
        worker = self._workers.get(partition)
        if worker is None:
            worker = self._workers[partition] = self._new(partition)
        return worker

    async def revoked(self, partitions: set[int], seconds: float) -> None:
        """Others record these from now on: finish what is under way, and forget them."""
        gone = [worker for part in partitions if (worker := self._workers.pop(part, None))]
        await asyncio.gather(*(worker.end(seconds) for worker in gone))
        for partition in partitions:
            self._forget(partition)

    async def stop(self, seconds: float) -> None:
        """Finish what is under way everywhere, and take no more."""
        self._stopped = True
        await self.revoked(set(self._workers), seconds)

    def positions(self) -> dict[int, int]:
        """The offset after the last record that was recorded here, by partition."""
        return {part: worker.position for part, worker in self._workers.items()}
