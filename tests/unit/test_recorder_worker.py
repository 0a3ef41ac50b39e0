"""Partitions of a recorder: what is committed, what waits, and what happens when one goes away."""

import asyncio
from typing import NamedTuple

import pytest

from perdure.errors import Unreachable
from perdure.recorder import worker
from perdure.recorder.partition import Done
from perdure.recorder.worker import Worker, Workers


class Record(NamedTuple):
    """As much of a record as a worker looks at."""

    offset: int
    value: bytes = b"x"


class Reading:
    """Kafka's consumer: what it was asked for."""

    def __init__(self):
        self.asked, self.commits = [], []

    def pause(self, partition):
        """Note it."""
        self.asked.append(("pause", partition))

    def resume(self, partition):
        """Note it."""
        self.asked.append(("resume", partition))

    async def commit(self, partition, position):
        """Note it."""
        self.commits.append((partition, position))


class Steps:
    """A recorder whose steps end when they are let."""

    def __init__(self):
        self.taken, self.open, self.begun = [], asyncio.Event(), 0
        self.open.set()
        self.errors, self.refusals = [], []

    async def begin(self):
        """Look whether there can be steps; raises what it was told to."""
        self.begun += 1
        if self.refusals:
            raise self.refusals.pop(0)

    async def step(self, records):
        """One step; raises what it was told to."""
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append([record.offset for record in records])
        return Done(len(records), 0, 0, 0, 0, 0, 0.0)


class Place:
    """A worker with its surroundings."""

    def __init__(self):
        self.reading, self.steps, self.failed, self.forgotten = Reading(), Steps(), [], []
        self.workers = Workers(self.new, self.forgotten.append)

    def new(self, partition):
        """A worker for a partition."""
        return Worker(
            partition,
            recorder=self.steps,
            reading=self.reading,
            patiently=self.patiently,
            done=lambda partition, done: None,
            failed=lambda partition, error: self.failed.append(error),
        )

    async def patiently(self, what, call):
        """Call again at once, as long as it is unavailable."""
        while True:
            try:
                return await call()
            except Unreachable:
                await asyncio.sleep(0)

    async def settled(self):
        """Wait until nothing moves any more."""
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
async def place():
    """Workers, whose steps are open."""
    return Place()


def records(first, last, value=b"x"):
    """Records of these offsets."""
    return [Record(offset, value) for offset in range(first, last + 1)]


async def test_what_was_recorded_is_committed(place):
    """The position is the offset after the last record of a step that ended."""
    place.workers.put(3, records(7, 9))
    await place.settled()
    assert place.steps.taken == [[7, 8, 9]]
    assert place.reading.commits == [(3, 10)]
    assert place.workers.positions() == {3: 10}


async def test_a_failure_is_tried_again_and_never_passed(place):
    """Whatever a step raises, the same records come again, and nothing after them before that."""
    place.steps.errors = [Unreachable("away"), ValueError("nobody thought of it")]
    place.workers.put(0, records(0, 1))
    await place.settled()
    assert place.steps.taken == [[0, 1]]
    assert place.reading.commits == [(0, 2)]
    assert [str(error) for error in place.failed] == ["nobody thought of it"]


async def test_a_partition_that_falls_behind_is_paused(place, monkeypatch):
    """What waits is bounded: above it is paused, below half of it it goes on; others don't wait."""
    monkeypatch.setattr(worker, "STEP_RECORDS", 10)
    monkeypatch.setattr(worker, "BACKLOG_RECORDS", 40)
    place.steps.open.clear()
    place.workers.put(0, records(0, 9))
    await place.settled()
    place.workers.put(0, records(10, 49))
    assert place.reading.asked == []
    place.workers.put(0, records(50, 50))
    assert place.reading.asked == [("pause", 0)]
    place.workers.put(1, records(0, 0))
    place.steps.open.set()
    await place.settled()
    assert place.reading.asked == [("pause", 0), ("resume", 0)]
    assert [each for each in place.steps.taken if each != [0]] == [
        list(range(first, min(first + 10, 51))) for first in range(0, 51, 10)
    ]


async def test_large_records_make_small_steps(place, monkeypatch):
    """A step takes bytes up to a bound, and a record that is larger by itself."""
    monkeypatch.setattr(worker, "STEP_BYTES", 2_000)
    place.workers.put(0, records(0, 2, b"x" * 100) + records(3, 3, b"x" * 5_000))
    await place.settled()
    assert place.steps.taken == [[0, 1], [2], [3]]


async def test_a_partition_that_goes_away_finishes_its_step_and_begins_none(place, monkeypatch):
    """What is under way is finished and committed; what waited is others', and heads are gone."""
    monkeypatch.setattr(worker, "STEP_RECORDS", 2)
    place.steps.open.clear()
    place.workers.put(0, records(0, 5))
    await place.settled()
    leaving = asyncio.create_task(place.workers.revoked({0}, 10))
    await place.settled()
    assert not leaving.done()
    place.steps.open.set()
    await leaving
    assert place.steps.taken == [[0, 1]]
    assert place.reading.commits == [(0, 2)]
    assert place.forgotten == [0]
    place.workers.put(0, records(2, 3))
    await place.settled()
    assert place.steps.taken == [[0, 1], [2, 3]]


async def test_a_step_that_does_not_end_holds_up_no_rebalance(place):
    """While an engine is away a step can't end: it is given up, and not committed."""
    place.steps.open.clear()
    place.workers.put(0, records(0, 5))
    await place.settled()
    await place.workers.stop(0.01)
    assert place.steps.taken == []
    assert place.reading.commits == []
    place.workers.put(0, records(0, 5))
    await place.settled()
    assert place.workers.positions() == {}


async def test_a_partition_is_looked_at_when_it_is_assigned(place):
    """Before any record comes, and again until it can go on; nothing is recorded before that."""
    place.steps.refusals = [Unreachable("offsets are missing"), ValueError("nobody thought of it")]
    place.workers.assigned({3})
    place.workers.put(3, records(7, 9))
    await place.settled()
    assert place.steps.begun == 3
    assert place.steps.taken == [[7, 8, 9]]
    place.workers.put(3, records(10, 10))
    await place.settled()
    assert place.steps.begun == 3
    assert place.steps.taken[1:] == [[10]]


async def test_a_partition_that_stands_still_is_left_at_once(place):
    """What has not begun has nothing to finish: it holds up no rebalance."""
    place.steps.refusals = [Unreachable("offsets are missing")] * 1_000_000
    place.workers.assigned({3})
    await place.settled()
    async with asyncio.timeout(5):
        await place.workers.revoked({3}, 60)
    assert place.workers.positions() == {}
