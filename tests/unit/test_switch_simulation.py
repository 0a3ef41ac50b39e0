"""The switch to another generation against the recorder's model, with everything that can go wrong.

What `test_recorder_simulation` does to recorders is done while generations are built from the same
log and gone over to: recorders crash at the switch, zombies come to it late, whoever builds the
generation is not caught up in time. What is read is always what the model says.
"""

import asyncio
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.unit.test_recorder_simulation import (
    STEP_RECORDS,
    Gated,
    Recorder,
    RecorderMachine,
    Tables,
    Told,
)

from perdure.cassandra import placement
from perdure.cassandra.catalog import Placed
from perdure.cassandra.placement import LiveGenerations
from perdure.errors import NotFound, Unreachable
from perdure.kafka import switching, wire
from perdure.kafka.batches import Arrivals
from perdure.recorder.heads import Heads
from perdure.recorder.partition import PartitionRecorder
from perdure.replay.rebuild import Nobody
from perdure.settings import Cluster

CLUSTER = Cluster()
NOBODYS = 9


class View:
    """The world as one process sees it: `tables` are those of a generation that it has found."""

    def __init__(self, machine, tables):
        self._machine, self._tables = machine, tables

    def __getattr__(self, name):
        return getattr(self._machine, name)

    @property
    def tables(self):
        """The tables in which it reads and writes."""
        return self._tables()

    @property
    def committed(self):
        """The group's position."""
        return self._machine.committed

    @committed.setter
    def committed(self, position):
        self._machine.committed = position


class Catalog:
    """`cassandra.catalog.Catalog` as one process asks it; its row is the machine's."""

    def __init__(self, machine, gates):
        self._machine, self._gates = machine, gates

    async def placement(self):  # noqa: D102 - the catalog's
        await self._gates.wait()
        found = {0: self._machine.placed.generation}
        await self._gates.wait()
        return found

    async def placed(self, partition):  # noqa: D102 - the catalog's
        await self._gates.wait()
        found = self._machine.placed
        await self._gates.wait()
        return found

    async def progress(self, number):  # noqa: D102 - the catalog's
        await self._gates.wait()
        return {0: self._machine.marks[number]}

    async def check_complete(self, number):  # noqa: D102 - the catalog's
        await self._gates.wait()
        if number not in self._machine.marks:
            raise NotFound("no such generation")

    async def decide(self, partition, position, generation):  # noqa: D102 - the catalog's
        while (placed := await self.placed(partition)).position < position:
            # The row is changed on condition that it is as it was.
            if self._machine.placed.position == placed.position:
                after = placed.generation if generation is None else generation
                self._machine.placed = Placed(after, position)
                self._machine.decided[position] = after
                await self._gates.wait()
        return placed


class Replayer:
    """What builds a generation: it takes the log from its start, and stops at its switch."""

    def __init__(self, machine, generation):
        self._machine, self.generation = machine, generation
        self.position = 0
        self.view = View(machine, lambda: machine.generations[generation])
        self._gates = Gated(self.view)
        self._recorder = PartitionRecorder(
            0,
            1,
            recordings=self._gates,
            journal=Nobody(),
            heads=Heads(),
            patiently=lambda what, call: call(),
        )

    @property
    def waits(self):
        """Whether it stands behind a switch to it that took place, or that nobody decided yet."""
        last = self._machine.log[self.position - 1] if self.position else None
        if last is None or switching.generation_of(last) != self.generation:
            return False
        placed = self._machine.placed
        return placed.position < last.offset or placed.generation == self.generation

    def take(self, count):
        """Replay some records, and note how far it is."""
        for _ in range(count):
            if self.waits or self.position == len(self._machine.log):
                return
            record = self._machine.log[self.position]
            self._machine.loop.run_until_complete(self._through(record))
            self.position += 1

    def note(self):
        """Say how far it is."""
        self._machine.marks[self.generation] = self.position

    async def _through(self, record):
        step = asyncio.ensure_future(self._recorder.step([record]))
        while not step.done():
            await asyncio.sleep(0)
            while self._gates.waits:
                self._gates.waits.pop().set_result(None)
        step.result()


class SwitchMachine(RecorderMachine):
    """The recorder's machine, with generations that are built and gone over to."""

    def __init__(self):
        self.generations = {1: Tables()}
        self.placed = Placed(1, -1)
        self.marks = {}
        self.replayers = []
        self.decided = {}
        super().__init__()
        self.patches += [
            mock.patch.object(placement.Tables, "prepare", self._prepared),
            # Who isn't caught up when a recorder comes to the switch never is.
            mock.patch.object(placement, "TOLD_SECONDS", 0),
            mock.patch.object(placement, "SWITCH_SECONDS", 0),
        ]
        for patch in self.patches[-3:]:
            patch.start()

    async def _prepared(self, session, keyspace):
        await session.wait()
        return self.generations[int(keyspace.rpartition("_g")[2])]

    @property
    def tables(self):
        """What is read: the tables of the generation where the partition is."""
        return self.generations[self.placed.generation]

    @tables.setter
    def tables(self, _):
        """The machine's own are the first generation's."""

    def new_recorder(self):
        """A recorder that starts now, and looks for itself where the partition is."""
        live = None

        def placed(gates):
            nonlocal live
            live = LiveGenerations(gates, CLUSTER, Catalog(self, gates), lambda *_: 0)
            return live

        return Recorder(View(self, lambda: live.of_partition(0)), self.heads_max, placed)

    @rule(which=st.integers(0, 3))
    def work_through(self, which):
        """A recorder comes to the end of what it has, while the others stand still."""
        recorder = self._all()[which % len(self._all())]
        while recorder.has_work or recorder.task:
            recorder.start(self.loop, STEP_RECORDS)
            recorder.advance(0)
            self._settle()

    @precondition(lambda self: len(self.generations) < 4)
    @rule()
    def build(self):
        """Somebody begins a replay."""
        number = max(self.generations) + 1
        self.generations[number] = Tables()
        self.replayers.append(Replayer(self, number))
        self.marks[number] = 0

    @precondition(lambda self: self.replayers)
    @rule(which=st.integers(0, 2), count=st.integers(1, 30), noted=st.booleans())
    def replay(self, which, count, noted):
        """A replay goes on for a while; it may be killed before it says how far it is."""
        replayer = self.replayers[which % len(self.replayers)]
        replayer.take(count)
        if noted:
            replayer.note()

    @precondition(lambda self: self.replayers)
    @rule(which=st.integers(0, 2))
    def switch(self, which):
        """A replay asks to go over to what it builds, wherever it and the recorders are."""
        self._switch_to(self.replayers[which % len(self.replayers)].generation)

    @precondition(lambda self: self.replayers)
    @rule(which=st.integers(0, 2))
    def switch_caught_up(self, which):
        """The same of one that is as far as it can be, and says so."""
        replayer = self.replayers[which % len(self.replayers)]
        self._switch_to(replayer.generation)
        replayer.take(len(self.log))
        replayer.note()

    @rule()
    def switch_to_none(self):
        """Somebody asks to go over to what is no generation."""
        self._switch_to(NOBODYS)

    def _switch_to(self, generation):
        value, headers = switching.encode(generation, id="s", time="2026-11-01T00:00:00Z")
        self._put(wire.Wire(None, value, headers))
        self.model.told[-1] = Told("switched", [])

    def _finish(self):
        super()._finish()
        # A replay that goes on builds the same, and one that was gone over to is what is read.
        for replayer in self.replayers:
            replayer.take(len(self.log))
            if replayer.position == len(self.log) and replayer.generation != self.placed.generation:
                for agent in self.model.events:
                    built, live = (
                        [(sequence, data) for sequence, _, data in tables.rows(agent)]
                        for tables in (replayer.view.tables, self.tables)
                    )
                    assert built == live

    def _compare(self):
        super()._compare()
        first = {}
        for record in self.journal:
            for entry in record.entries:
                first.setdefault(entry.offset, entry)
        asked = {
            record.offset: generation
            for record in self.log
            if (generation := switching.generation_of(record)) is not None
        }
        assert self.decided.keys() == asked.keys()
        for offset, generation in asked.items():
            switched = self.decided[offset] == generation
            assert (first[offset].outcome == "switched") is switched

    def _compare_entry(self, entry, told):
        # Who comes to a switch after later ones finds no more whether it took place.
        if told.outcome == "switched":
            assert entry.outcome in {"switched", "refused"}
        else:
            super()._compare_entry(entry, told)


SwitchMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestSwitch = SwitchMachine.TestCase
TestSwitch.__doc__ = "Whoever comes to a switch, and whenever: what is read is the model's."


async def test_who_looked_earlier_and_is_done_later_does_not_go_back(monkeypatch):
    """Partitions of one process that switch at once: what was found last is what counts."""
    answers = [asyncio.Event(), asyncio.Event()]
    placements = iter([({0: 2, 1: 1}, answers[0]), ({0: 2, 1: 2}, answers[1])])

    class Slow:
        async def placement(self):
            found, answered = next(placements)
            await answered.wait()
            return found

    async def prepared(_, keyspace):
        return keyspace

    monkeypatch.setattr(placement.Tables, "prepare", prepared)
    live = LiveGenerations(None, CLUSTER, Slow(), lambda *_: 0)
    looks = [asyncio.ensure_future(live.refresh()) for _ in answers]
    for answered in reversed(answers):
        answered.set()
        await asyncio.sleep(0)
    await asyncio.gather(*looks)
    assert live.of_partition(1) == CLUSTER.keyspace(2)


async def test_who_gets_partitions_looks_where_they_are():
    """At first, after some came, or when told; what could not be looked at is looked at again."""
    arrivals, looks, working = Arrivals(), [], True

    async def look():
        looks.append(working)
        if not working:
            raise Unreachable("away")

    await arrivals.looked(look)
    await arrivals.looked(look)
    await arrivals.on_partitions_revoked({1})
    await arrivals.on_partitions_assigned(set())
    await arrivals.looked(look)
    assert len(looks) == 1
    await arrivals.looked(look, anyway=True)
    assert len(looks) == 2
    working = False
    await arrivals.on_partitions_assigned({1})
    with pytest.raises(Unreachable):
        await arrivals.looked(look)
    working = True
    await arrivals.looked(look)
    await arrivals.looked(look)
    assert len(looks) == 4
