"""Partitions that are replayed beside each other: who waits for whom, and for how long."""

import asyncio

import pytest
from tests.unit.test_recorder_simulation import TIME, Gated, Record, Tables

from perdure.kafka import wire
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append
from perdure.replay.rebuild import Rebuild
from perdure.replay.topic import Bounds

PARTITIONS = 3
NAMES = [
    [
        name
        for number in range(60)
        if wire.partition_of(wire.key_of("default", name := f"a/{number}"), PARTITIONS) == partition
    ]
    for partition in range(PARTITIONS)
]
"""Names of agents, by the partition where they are."""

TURNS = 2_000
SECONDS_MAX = 5


class Recordings(Gated):
    """The simulation's tables, whose answers come with the loop's next turn."""

    async def wait(self):  # noqa: D102 - said above
        await asyncio.sleep(0)


class Log:
    """A log of so many partitions; each is read as far as it is let."""

    def __init__(self):
        self.records = [[] for _ in range(PARTITIONS)]
        self.open = [asyncio.Event() for _ in range(PARTITIONS)]

    def put(self, partition, record, time=0):
        """Append a record, written at a time."""
        records = self.records[partition]
        records.append(Record(len(records), record.key, record.value, record.headers, time))

    def fork(self, agent, parent, at, *, time=0):
        """Append a fork."""
        draft = event("agent.forked", f"fork-{agent}", {"parent": parent, "at": at})
        append = Append(agent, (draft,), "w", 1, by_id=False)
        self.put(partition_of(agent), wire.encode_fork(append, bytes(32)), time)

    def event(self, agent, id, *, time=0):
        """Append an event of an id."""
        append = Append(agent, (event("note", id),), "w", by_id=True)
        self.put(partition_of(agent), wire.encode(append), time)

    async def bounds(self, partitions):
        """See `replay.log.Log`."""
        return {each: Bounds(0, len(self.records[each])) for each in partitions}

    async def read(self, partition, position):
        """See `replay.log.Log`."""
        await self.open[partition].wait()
        yield self.records[partition][position:], len(self.records[partition])
        await asyncio.Event().wait()


def event(kind, id, data=None):
    """An event of somebody who counts none."""
    return NewEvent(type=kind, data=data, id=id, time=TIME, version=1, writer=id, writer_sequence=1)


def partition_of(agent):
    """Where an agent is."""
    return wire.partition_of(wire.key_of("default", agent), PARTITIONS)


async def nothing(*_):
    """Nothing is kept, and nothing was switched."""
    return False


class Building:
    """A rebuild of a log, and the tables that it makes."""

    def __init__(self, log):
        self.tables = Tables()
        self.rebuild = Rebuild(
            log,
            Recordings(self),
            dict.fromkeys(range(PARTITIONS), 0),
            generation=2,
            note=nothing,
            switched=nothing,
            patiently=lambda what, call: call(),
            ends={each: len(records) for each, records in enumerate(log.records)},
        )

    def ids(self, agent):
        """The ids of an agent's own events."""
        events = sorted((seq, id) for (id,), _, seq in self.tables.of("id", agent))
        return [id for _, id in events]


async def test_a_fork_waits_for_its_parent_however_long_nothing_moves():
    """Nobody gives it up while the partition of its parent may still bring it."""
    log, parent, fork = Log(), NAMES[0][0], NAMES[1][0]
    for number in range(3):
        log.event(parent, f"e{number}")
    log.fork(fork, parent, 3)
    log.event(fork, "e2")
    building = Building(log)
    for partition in (1, 2):
        log.open[partition].set()
    running = asyncio.create_task(building.rebuild.run())
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert building.ids(fork) == []
    assert building.rebuild.ended == {2}
    log.open[0].set()
    async with asyncio.timeout(SECONDS_MAX):
        await running
    # The parent's event is not recorded again.
    assert building.ids(fork) == [f"fork-{fork}"]


@pytest.mark.parametrize("first", [0, 1])
async def test_forks_of_what_never_was_hold_up_nobody(first):
    """They are built once all wait; a fork of what was waits for its parent behind them."""
    log, parent, fork = Log(), NAMES[0][0], NAMES[2][0]
    for partition, other in ((0, 1), (1, 0)):
        # Each waits for the end of the other's partition.
        log.fork(NAMES[partition][1], NAMES[other][2], 9, time=100 + (partition != first))
        log.event(NAMES[partition][1], "own", time=110)
    for number in range(3):
        log.event(parent, f"e{number}", time=200)
    log.fork(fork, parent, 3, time=300)
    log.event(fork, "e2", time=301)
    building = Building(log)
    for opened in log.open:
        opened.set()
    async with asyncio.timeout(SECONDS_MAX):
        await building.rebuild.run()
    for partition in (0, 1):
        name = NAMES[partition][1]
        assert building.ids(name) == [f"fork-{name}", "own"]
    assert building.ids(fork) == [f"fork-{fork}"]


async def test_a_fork_sees_what_its_parent_has_before_a_fork_in_one_batch():
    """What is in the tables counts, also while the parent's partition itself waits in a batch."""
    log, parent, fork = Log(), NAMES[0][0], NAMES[1][0]
    log.event(parent, "e0")
    log.fork(NAMES[0][1], NAMES[2][0], 1)
    log.event(NAMES[2][0], "late")
    log.fork(fork, parent, 1)
    building = Building(log)
    log.open[0].set()
    log.open[1].set()
    running = asyncio.create_task(building.rebuild.run())
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert building.ids(fork) == [f"fork-{fork}"]
    log.open[2].set()
    async with asyncio.timeout(SECONDS_MAX):
        await running
    assert building.ids(NAMES[0][1]) == [f"fork-{NAMES[0][1]}"]
