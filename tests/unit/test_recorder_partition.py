"""A partition whose tables fail: what is one agent's becomes a dead letter, all else is waited for.

The tables are those of the simulation, with failures where they are wanted.
"""

import asyncio
import datetime as dt

import pytest
from tests.unit.test_recorder_simulation import Open, Record, Tables

from perdure.errors import Corrupt, Incompatible, Unavailable
from perdure.kafka import wire
from perdure.model.event import NewEvent, decode
from perdure.model.sequencing import Append
from perdure.recorder import core
from perdure.recorder.extent import Extent, check_extent, check_same
from perdure.recorder.heads import Heads
from perdure.recorder.partition import PartitionRecorder

TIME = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


class Failing(Open):
    """Tables that raise what `world.errors` holds for a call, once each."""

    def fail(self, call, agent):
        """Raise the next error of a call for an agent, if there is one."""
        errors = self.world.errors.get((call, agent))
        if errors and (error := errors.pop(0)) is not None:
            raise error

    async def load(self, store, agent):
        """Load, or fail."""
        self.fail("load", agent)
        return await super().load(store, agent)

    async def write(self, store, agent, before, after, rows):
        """Write, or fail."""
        self.fail("write", agent)
        await super().write(store, agent, before, after, rows)


class World:
    """Tables, the journal, and a recorder that notes for what it waits."""

    def __init__(self):
        self.tables, self.journal, self.letters = Tables(), [], []
        self.errors, self.waited = {}, []
        self.extent = Extent(None, 0, 3)
        self.heads = Heads()
        self.recorder = self.begun()

    def begun(self):
        """A recorder that knows nothing yet."""
        gates = Failing(self)
        return PartitionRecorder(
            0,
            1,
            recordings=gates,
            journal=gates,
            heads=self.heads,
            patiently=self.patiently,
            extents=self,
        )

    async def check(self, partition):
        """The log, as it is said to be."""
        check_extent("events", partition, "recorder", self.extent)

    async def check_position(self, partition, position):
        """The same."""
        check_same("events", partition, position + 1, self.extent.end)

    async def patiently(self, what, call):
        """Call again as long as it is unavailable, and note why."""
        while True:
            try:
                return await call()
            except Unavailable as error:
                self.waited.append(f"{what}: {error}")
                await asyncio.sleep(0)

    def outcomes(self):
        """What was told of each record."""
        return {entry.offset: entry.outcome for record in self.journal for entry in record.entries}

    def data(self, agent):
        """The data of an agent's events, as they are stored."""
        return [decode(value).data for _, _, value in self.tables.rows(agent)]


@pytest.fixture
def world():
    """A partition of its own."""
    return World()


def record(offset, agent, data=None):
    """A record of the log."""
    draft = NewEvent(type="note", data=data, id=f"e{offset}", time=TIME, version=1)
    sent = wire.encode(Append(agent, (draft,), "w"))
    return Record(offset, sent.key, sent.value, sent.headers, 0)


@pytest.mark.parametrize("call", ["load", "write"])
async def test_tables_that_are_not_those_of_the_code_are_waited_for(world, call):
    """A lagging or dropped table is no matter of an agent: nothing is put aside, and it is told."""
    lost = Incompatible("Cassandra can't run a request: no such table", hint="make it")
    world.errors = {(call, "a/one"): [lost, lost], (call, "a/two"): [lost]}
    await world.recorder.step([record(0, "a/one", 0), record(1, "a/two", 1)])
    assert world.outcomes() == {0: "recorded", 1: "recorded"}
    assert world.letters == []
    assert (world.data("a/one"), world.data("a/two")) == ([0], [1])
    assert len(world.waited) == 3
    assert "no such table" in world.waited[0]


async def test_what_is_damaged_of_one_agent_holds_up_no_other(world):
    """Records of an agent whose rows are damaged become dead letters; the others are recorded."""
    world.errors = {("load", "a/one"): [Corrupt("its rows are damaged")]}
    await world.recorder.step([record(0, "a/one", 0), record(1, "a/two", 1)])
    assert world.outcomes() == {0: "dead-letter", 1: "recorded"}
    assert world.letters == [0]
    assert world.data("a/one") == []


@pytest.mark.parametrize("error", [Corrupt("damaged"), ZeroDivisionError("unthought of")])
async def test_a_failure_between_two_writes_makes_no_dead_letter(world, monkeypatch, error):
    """What was written of a step is never told as dead: all of the step is given again."""
    monkeypatch.setattr(core, "WRITE_BYTES", 10)
    records = [record(number, "a/one", number) for number in range(3)]
    world.errors = {("write", "a/one"): [None, error]}
    with pytest.raises(type(error)):
        await world.recorder.step(records)
    assert world.data("a/one") == [0]
    assert (world.journal, world.letters) == ([], [])
    world.heads.drop(0)
    await world.recorder.step(records)
    assert world.data("a/one") == [0, 1, 2]
    assert world.outcomes() == dict.fromkeys(range(3), "recorded")
    assert world.letters == []


@pytest.mark.parametrize(
    ("extent", "said"),
    [
        (Extent(5, 7, 9), "offsets 5 to 6 of events, partition 0, are gone"),
        (Extent(None, 2, 9), "offsets 0 to 1 of events, partition 0, are gone"),
        (Extent(9, 9, 9), None),
        (Extent(5, 5, 9), None),
        (Extent(7, 5, 9), None),
        (Extent(None, 0, 0), None),
        (Extent(5, 0, 4), "events ends at 0:4, and everything before 0:5 is recorded"),
    ],
)
async def test_a_log_goes_on_where_it_was_recorded_last(world, extent, said):
    """Offsets that went before they were recorded stop a partition, and so does another log."""
    world.extent = extent
    if said is None:
        await world.recorder.begin()
        assert world.waited == []
        return
    with pytest.raises(Incompatible, match=said) as caught:
        await world.check(0)
    assert caught.value.hint
    beginning = asyncio.create_task(world.recorder.step([record(8, "a/one", 8)]))
    await asyncio.sleep(0.01)
    assert not beginning.done()
    assert world.journal == []
    assert said in world.waited[-1]
    world.extent = Extent(8, 8, 9)
    await beginning
    assert world.outcomes() == {8: "recorded"}


async def test_records_of_another_log_are_not_taken_for_repeats(world):
    """Where an agent was recorded further on than the log goes, its records are not answered."""
    await world.recorder.step([record(0, "a/one", 0), record(4, "a/one", 4)])
    world.heads.drop(0)
    world.extent, told = Extent(None, 0, 2), len(world.journal)
    stepping = asyncio.create_task(world.begun().step([record(0, "a/one", "new")]))
    await asyncio.sleep(0.01)
    assert not stepping.done()
    assert "events ends at 0:2, and everything before 0:5 is recorded" in world.waited[-1]
    assert len(world.journal) == told
    world.extent = Extent(None, 0, 5)  # another recorder was ahead: it is the same log
    await stepping
    assert world.data("a/one") == [0, 4]
