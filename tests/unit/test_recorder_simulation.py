"""The recorder against its model: crashes at every step, zombies, rebalances, duplicates, poison.

Several recorders work on one partition, on tables where of two writes to one cell the later one (by
its place in the log) wins, as in Cassandra. Each of their waits is a point at which any other may
go on, or at which the recorder ends. The model is `decide` over the log, a record at a time.
"""

import asyncio
import datetime as dt
import hashlib
from typing import NamedTuple
from unittest import mock

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from perdure.errors import InvalidInput, Refused
from perdure.kafka import wire
from perdure.model.event import NewEvent, decode
from perdure.model.sequencing import Append, Head, decide, first_chain, link
from perdure.model.timeline import Revert
from perdure.recorder import buckets, core
from perdure.recorder.heads import Heads
from perdure.recorder.partition import PartitionRecorder
from perdure.recorder.recordings import Written, fresh

TIME = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
AGENTS = ("a/one", "a/two", "a/three")
WRITERS = ("w1", "w2")
STEP_RECORDS = 6


class Record(NamedTuple):
    """A record of the log, as Kafka gives it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: list
    timestamp: int


class Told(NamedTuple):
    """What the model says became of a record."""

    outcome: str
    events: list
    error: str = ""
    epoch: int = 0


class Model:
    """The log, decided one record after the other."""

    def __init__(self):
        self.events = {agent: [] for agent in AGENTS}
        self.heads = {agent: Head(agent, 0, 0, first_chain(agent), None, {}) for agent in AGENTS}
        self.created = set()
        self.ids = {}
        self.parents = {}
        self.reverts = dict.fromkeys(AGENTS, ())
        self.told = []

    def by_id(self, agent, event_id):
        """The event of an id, that of the agent or of those it was forked from."""
        found = self.ids.get((agent, event_id))
        shared = 2**60
        while found is None and agent in self.parents:
            agent, at = self.parents[agent]
            shared = min(shared, at)
            found = self.ids.get((agent, event_id))
        return None if found is None or found.sequence > shared else found

    def by_writer(self, agent, writer, number):
        """The event that a writer gave this number."""
        for event, _ in self.events[agent]:
            if (event.writer, event.writer_sequence) == (writer, number):
                return event
        return None

    def last_of(self, agent, writer):
        """Nothing: the heads of the model name all writers."""
        return 0

    def take(self, record):
        """Decide one more record."""
        try:
            incoming = wire.decode(record.key, record.value, record.headers, record.timestamp)
        except InvalidInput as error:
            return Told("dead-letter", [], type(error).__name__)
        agent = incoming.append.agent
        head = self.heads[agent]
        if incoming.kind == "claim":
            self.heads[agent] = msgspec.structs.replace(head, epoch=head.epoch + 1)
            self.created.add(agent)
            return Told("opened", [], epoch=head.epoch + 1)
        if incoming.kind == "fork":
            if agent in self.created:
                return Told("refused", [], "AgentExists")
            parent, at, chain = incoming.fork
            told = self._record(Head(agent, at, 1, chain, None, {}), incoming.append)
            if told.outcome == "refused":
                return told
            self.parents[agent] = (parent, at)
            return Told("forked", told.events, epoch=1)
        return self._record(head, incoming.append)

    def _record(self, head, append):
        agent = append.agent
        for index, event in enumerate(append.events):
            if event.type == "agent.reverted" and event.data["to"] > head.sequence + index:
                return Told("refused", [], "SequenceConflict")
        verdict = decide(
            head, [append], self, now=TIME, new_id=lambda: "", version_of=lambda kind: 1
        )
        [outcome] = verdict.outcomes
        if isinstance(outcome, Refused):
            return Told("refused", [], type(outcome).__name__)
        self.heads[agent] = verdict.head
        for event, data, _ in verdict.new:
            self.created.add(agent)
            self.events[agent].append((event, data))
            self.ids[agent, event.id] = event
            if event.type == "agent.reverted":
                self.reverts[agent] += (Revert(event.sequence, event.data["to"]),)
        return Told("recorded", outcome)


class Tables:
    """Cells with the time of their write: the later one wins, and one of the same time agrees."""

    def __init__(self):
        self.cells = {}

    def put(self, cells):
        """A write of several cells at once."""
        for key, written, value in cells:
            there = self.cells.get(key)
            if there is not None and there[0] == written:
                assert there[1] == value, f"{key} at {written}: {there[1]} and {value}"
            if there is None or there[0] <= written:
                self.cells[key] = (written, value)

    def of(self, *prefix):
        """What lies under a prefix: the rest of each key, its time and its value."""
        size = len(prefix)
        for key, (written, value) in list(self.cells.items()):
            if key[:size] == prefix:
                yield key[size:], written, value

    def rows(self, agent):
        """The stored events of an agent in their order: sequence, position, stored bytes."""
        return sorted((key[0], written, value) for key, written, value in self.of("event", agent))


class Ended(Exception):
    """The recorder's process ended here."""


class Gated:
    """`Recordings` and `Journal` of one recorder: each call waits before and after its effect."""

    def __init__(self, world):
        self.world = world
        self.waits = []

    async def wait(self):
        """A point at which others may go on, or at which the recorder ends."""
        future = asyncio.get_running_loop().create_future()
        self.waits.append(future)
        await future

    async def load(self, store, agent):  # noqa: D102 - the port's
        await self.wait()
        tables = self.world.tables
        heads = sorted((key[0], value) for key, _, value in tables.of("head", agent))
        if not heads:
            return fresh(agent)
        bucket, head = heads[-1]
        writers = {key[0]: value for key, _, value in tables.of("writer", agent, bucket)}
        return msgspec.structs.replace(
            head, head=msgspec.structs.replace(head.head, writers=writers)
        )

    async def write(self, store, agent, before, after, rows):  # noqa: D102 - the port's
        assert len({row.position for row in rows} | {after.position}) <= len(rows) + 1
        await self.wait()
        tables, at = self.world.tables, after.position
        if before.bucket != after.bucket:
            tables.put(
                [
                    (("last", agent, writer), before.position, number)
                    for writer, number in before.head.writers.items()
                ]
            )
            await self.wait()
        writers = {}
        cells = []
        for (event, data, _), position in rows:
            cells.append((("event", agent, event.sequence), position, data))
            cells.append((("id", agent, event.id), position, event.sequence))
            writers[event.writer] = event.writer_sequence
        head = msgspec.structs.replace(after.head, writers={})
        cells.append((("head", agent, after.bucket), at, msgspec.structs.replace(after, head=head)))
        cells += [
            (("writer", agent, after.bucket, writer), at, number)
            for writer, number in writers.items()
        ]
        tables.put(cells)
        await self.wait()

    async def by_id(self, store, agent, stream, ids):  # noqa: D102 - the port's
        await self.wait()
        found, shared = {}, 2**60
        while agent is not None:
            events = {row[0]: decode(row[2]) for row in self.world.tables.rows(agent)}
            for key, _, sequence in self.world.tables.of("id", agent):
                if key[0] in ids and key[0] not in found and sequence <= shared:
                    found[key[0]] = events[sequence]
            agent, at = stream.parent, stream.forked_at
            shared = min(shared, at)
            if agent is not None:
                stream = await self.load(store, agent)
        return found

    async def by_writer(self, store, agent, stream, wanted):  # noqa: D102 - the port's
        await self.wait()
        events = [decode(data) for _, _, data in self.world.tables.rows(agent)]
        return {
            (event.writer, event.writer_sequence): event
            for event in events
            if (event.writer, event.writer_sequence) in wanted
        }

    async def last_of(self, store, agent, writers):  # noqa: D102 - the port's
        await self.wait()
        return {
            key[0]: number
            for key, _, number in self.world.tables.of("last", agent)
            if key[0] in writers
        }

    async def written_at(self, store, agent, stream, positions):  # noqa: D102 - the port's
        await self.wait()
        rows = self.world.tables.rows(agent)
        return {
            position: Written(
                max([row[0] for row in rows if row[1] < position], default=stream.forked_at),
                [data for _, written, data in rows if written == position],
            )
            for position in positions
        }

    async def tell(self, partition, records):  # noqa: D102 - the port's
        await self.wait()
        self.world.journal.extend(record for _, record in records)
        await self.wait()

    async def put_aside(self, letters):  # noqa: D102 - the port's
        await self.wait()
        self.world.letters.extend(letter.source.offset for letter in letters)
        await self.wait()


class Recorder:
    """One recorder's process: it reads on from where the group had committed."""

    def __init__(self, world, heads_max, placement=None):
        self.world = world
        self.gates = Gated(world)
        self.recorder = PartitionRecorder(
            0,
            1,
            recordings=self.gates,
            journal=self.gates,
            heads=Heads(bytes_max=2_000 * heads_max),
            patiently=lambda what, call: call(),
            placement=placement and placement(self.gates),
        )
        self.position = world.committed
        self.end = None  # a zombie has fetched up to here, and gets no more
        self.task = None

    @property
    def has_work(self):
        """Whether it has a record left to take."""
        end = len(self.world.log) if self.end is None else self.end
        return self.position < end

    def start(self, loop, count):
        """Begin a step, if none is under way."""
        end = len(self.world.log) if self.end is None else self.end
        batch = self.world.log[self.position : min(end, self.position + count)]
        if self.task is None and batch:
            self.task = loop.create_task(self.step(batch))

    async def step(self, batch):
        """Record some records, and commit them."""
        await self.recorder.step(batch)
        self.position = batch[-1].offset + 1
        await self.gates.wait()
        if self.end is None:  # a commit of who lost the partition is refused
            self.world.committed = max(self.world.committed, self.position)

    def advance(self, which):
        """Let one of its waits end."""
        if self.gates.waits:
            future = self.gates.waits.pop(which % len(self.gates.waits))
            if not future.done():
                future.set_result(None)


class RecorderMachine(RuleBasedStateMachine):
    """Any interleaving of producers, recorders, crashes and rebalances."""

    def __init__(self):
        super().__init__()
        self.patches = [
            mock.patch.object(buckets, "BUCKET_EVENTS", 5),
            mock.patch.object(core, "BUCKET_EVENTS", 5),
            mock.patch.object(core, "WRITE_BYTES", 600),
            mock.patch.object(core, "JOURNAL_BYTES", 900),
        ]
        for patch in self.patches:
            patch.start()
        self.loop = asyncio.new_event_loop()
        self.log, self.journal, self.letters = [], [], []
        self.tables = Tables()
        self.model = Model()
        self.committed = 0
        self.counts = dict.fromkeys(WRITERS, 0)
        self.sent = []
        self.names = 0
        self.zombies = []
        self.owner = None

    @initialize(heads_max=st.sampled_from([1, 2, 100]))
    def begin(self, heads_max):
        """One recorder, which keeps so many heads."""
        self.heads_max = heads_max
        self.owner = self.new_recorder()

    def new_recorder(self):
        """A recorder that starts now."""
        return Recorder(self, self.heads_max)

    # Producers.

    def _put(self, record):
        self.log.append(Record(len(self.log), record.key, record.value, record.headers, 0))
        self.model.told.append(self.model.take(self.log[-1]))

    def _draft(self, kind="note", data=None, writer=None, number=None, event_id=None):
        self.names += 1
        return NewEvent(
            type=kind,
            data=data,
            id=event_id or f"e{self.names}",
            time=TIME + dt.timedelta(seconds=self.names % 7),
            version=1,
            writer=writer,
            writer_sequence=number,
        )

    @rule(
        agent=st.sampled_from(AGENTS),
        writer=st.sampled_from(WRITERS),
        count=st.integers(1, 4),
        epoch=st.sampled_from([None, "now", "now", "now", 0, 1]),
        expected=st.sampled_from([None, None, None, "now", 3]),
        named=st.booleans(),
    )
    def write(self, agent, writer, count, epoch, expected, named):
        """One of our own clients writes, with numbers that go up, perhaps with ids of its own."""
        drafts = []
        for _ in range(count):
            self.counts[writer] += 1
            event_id = f"own{self.counts[writer] % 3}" if named else None
            drafts.append(self._draft(writer=writer, number=self.counts[writer], event_id=event_id))
        head = self.model.heads[agent]
        append = Append(
            agent,
            tuple(drafts),
            writer,
            head.epoch if epoch == "now" else epoch,
            head.sequence if expected == "now" else expected,
            named,
        )
        record = wire.encode(append)
        self.sent.append(record)
        self._put(record)

    @rule(
        agent=st.sampled_from(AGENTS),
        kind=st.sampled_from(["f", "e"]),
        name=st.integers(1, 8),
        count=st.integers(1, 3),
    )
    def write_foreign(self, agent, kind, name, count):
        """Any other producer writes; its ids come again now and then, and so do those of others."""
        # Those of kind e our own client gave its events just before.
        ids = [
            f"e{max(0, self.names - name // 2 - index)}" if kind == "e" else f"f{name + index}"
            for index in range(count)
        ]
        drafts = [self._draft(event_id=each) for each in ids]
        record = wire.encode(Append(agent, tuple(drafts), "/elsewhere"))
        headers = [item for item in record.headers if item[0] != "ce_writer"]
        if count > 1:
            body = msgspec.json.decode(record.value)
            for event in body:
                del event["writer"]
            record = record._replace(value=msgspec.json.encode(body))
        self._put(record._replace(headers=headers))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data):
        """A record comes a second time, sooner or later."""
        self._put(data.draw(st.sampled_from(self.sent)))

    @rule(agent=st.sampled_from(AGENTS), writer=st.sampled_from(WRITERS))
    def claim(self, agent, writer):
        """Somebody opens the agent."""
        self.names += 1
        self._put(wire.encode_claim(agent, claim_id=f"c{self.names}", writer=writer))

    @rule(agent=st.sampled_from(AGENTS), parent=st.sampled_from(AGENTS), at=st.integers(0, 9))
    def fork(self, agent, parent, at):
        """Somebody forks an agent of what is in the tables already, with its chain there."""
        rows = [row for row in self.tables.rows(parent) if row[0] <= at]
        if agent == parent or not rows or parent in self.model.parents:
            return
        chain = first_chain(parent)
        for _, _, data in rows:
            chain = link(chain, data)
        self.counts["w1"] += 1
        draft = self._draft(
            "agent.forked",
            {"parent": parent, "at": rows[-1][0]},
            writer="w1",
            number=self.counts["w1"],
        )
        append = Append(agent, (draft,), "w1", 1, by_id=False)
        record = wire.encode_fork(append, chain)
        self.sent.append(record)
        self._put(record)

    @rule(agent=st.sampled_from(AGENTS), to=st.integers(0, 12))
    def revert(self, agent, to):
        """Somebody undoes; where there is nothing to go back to, it is refused."""
        self.counts["w2"] += 1
        draft = self._draft("agent.reverted", {"to": to}, writer="w2", number=self.counts["w2"])
        self._put(wire.encode(Append(agent, (draft,), "w2", by_id=False)))

    @rule(value=st.sampled_from([None, b"", b"{", b"null"]))
    def poison(self, value):
        """Something else than an event."""
        self._put(wire.Wire(b"a/one", value, []))

    # Recorders.

    def _all(self):
        return [self.owner, *self.zombies]

    def _settle(self):
        """Let everything go on that waits for nothing."""
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for recorder in self._all():
            if recorder.task is not None and recorder.task.done():
                recorder.task.result()
                recorder.task = None
        self.zombies = [
            zombie for zombie in self.zombies if zombie.has_work or zombie.task is not None
        ]

    @rule(
        which=st.integers(0, 3),
        count=st.integers(1, STEP_RECORDS),
        turns=st.lists(st.integers(0, 7), min_size=1, max_size=12),
    )
    def work(self, which, count, turns):
        """A recorder goes on for a while."""
        recorder = self._all()[which % len(self._all())]
        recorder.start(self.loop, count)
        self._settle()
        for turn in turns:
            recorder.advance(turn)
            self._settle()

    @rule()
    def crash(self):
        """The owner's process ends wherever it is, and another one takes over."""
        if self.owner.task is not None:
            self.owner.task.cancel()
            self.loop.run_until_complete(asyncio.wait([self.owner.task]))
        self.owner = self.new_recorder()

    @rule(fetched=st.integers(0, 8))
    def rebalance(self, fetched):
        """The partition moves; who had it doesn't know yet, and goes on with what it has."""
        old = self.owner
        old.end = min(len(self.log), old.position + fetched)
        if len(self.zombies) < 2:
            self.zombies.append(old)
        elif old.task is not None:
            old.task.cancel()
            self.loop.run_until_complete(asyncio.wait([old.task]))
        self.owner = self.new_recorder()

    # What must be true.

    @invariant()
    def rows_are_the_models(self):
        """Whatever is stored is what the model says, and there is no gap in it."""
        for agent in AGENTS:
            rows = self.tables.rows(agent)
            expected = [(event.sequence, data) for event, data in self.model.events[agent]]
            assert [(sequence, data) for sequence, _, data in rows] == expected[: len(rows)]

    @invariant()
    def what_is_committed_is_in(self):
        """No record before the committed offset is missing in the journal, or in what is read."""
        told = {entry.offset for record in self.journal for entry in record.entries}
        assert set(range(self.committed)) <= told
        last = dict.fromkeys(AGENTS, 0)
        for each in self.model.told[: self.committed]:
            for event in each.events:
                last[event.subject] = max(last[event.subject], event.sequence)
        for agent, sequence in last.items():
            assert sequence <= max((row[0] for row in self.tables.rows(agent)), default=0)

    @invariant()
    def through_is_not_said_too_early(self):
        """Where the journal says that all before an offset are told, they are."""
        told = set()
        for record in self.journal:
            told |= {entry.offset for entry in record.entries}
            assert set(range(record.through + 1)) <= told

    def teardown(self):
        """With nothing in its way a recorder finishes, and everything is as the model says."""
        try:
            if self.owner is not None:
                self._finish()
                self._compare()
        finally:
            for recorder in self._all() if self.owner else ():
                if recorder.task is not None:
                    recorder.task.cancel()
                    self.loop.run_until_complete(asyncio.wait([recorder.task]))
            self.loop.close()
            for patch in self.patches:
                patch.stop()

    def _finish(self):
        recorders = self._all()
        while any(recorder.has_work or recorder.task for recorder in recorders):
            for recorder in recorders:
                recorder.start(self.loop, STEP_RECORDS)
                recorder.advance(0)
            self._settle()

    def _compare(self):
        model = self.model
        assert self.committed == len(self.log)
        for agent in AGENTS:
            rows = [decode(data) for _, _, data in self.tables.rows(agent)]
            assert rows == [event for event, _ in model.events[agent]]
            self._compare_head(agent)
            self._compare_journal(agent)
        for offset, told in enumerate(model.told):
            entries = [
                entry
                for record in self.journal
                for entry in record.entries
                if entry.offset == offset
            ]
            assert entries
            for entry in entries:
                self._compare_entry(entry, told)
        dead = {offset for offset, told in enumerate(model.told) if told.outcome == "dead-letter"}
        assert set(self.letters) == dead

    def _compare_head(self, agent):
        model = self.model
        stream = self.loop.run_until_complete(self._loaded(agent))
        expected = model.heads[agent]
        parent, at = model.parents.get(agent, (None, 0))
        assert (stream.head.sequence, stream.head.epoch, stream.head.chain) == (
            expected.sequence,
            expected.epoch,
            expected.chain,
        )
        assert stream.head.time_max == expected.time_max
        assert (stream.parent, stream.forked_at) == (parent, at)
        assert stream.reverts == model.reverts[agent]
        assert stream.created == (agent in model.created)
        mine = [event for event, _ in model.events[agent] if event.sequence >= stream.first]
        assert stream.events == len(mine)
        assert stream.head.writers == {event.writer: event.writer_sequence for event in mine}

    async def _loaded(self, agent):
        gates = Gated(self)
        task = asyncio.create_task(gates.load("default", agent))
        await asyncio.sleep(0)
        gates.waits.pop().set_result(None)
        return await task

    def _compare_journal(self, agent):
        """Without its duplicates the journal is the stream, and its heads chain as the stream."""
        model = self.model
        _, known = model.parents.get(agent, (None, 0))
        stream = []
        chains = {}
        for record in self.journal:
            if record.agent != agent:
                continue
            for entry in record.entries:
                for raw in entry.events:
                    event = decode(raw)
                    if event.subject == agent and event.sequence > known:
                        assert event.sequence == known + 1, "the journal has a gap"
                        known = event.sequence
                        stream.append(bytes(raw))
            if record.chain:
                assert chains.setdefault(record.sequence, record.chain) == record.chain
        assert stream == [data for _, data in model.events[agent]]
        chain = self.first_chain_of(agent)
        for event, data in model.events[agent]:
            chain = link(chain, data)
            assert chains.get(event.sequence, chain.hex()) == chain.hex()

    def first_chain_of(self, agent):
        """The chain before the agent's first own event."""
        if agent not in self.model.parents:
            return first_chain(agent)
        parent, at = self.model.parents[agent]
        chain = first_chain(parent)
        for event, data in self.model.events[parent]:
            if event.sequence <= at:
                chain = link(chain, data)
        return chain

    def _compare_entry(self, entry, told):
        if told.outcome == "opened" and entry.outcome == "refused":
            # Told again by another recorder, which can't know the epoch: the claim is made again.
            assert entry.error.name == "Unreachable"
            return
        assert entry.outcome == told.outcome
        assert [decode(raw) for raw in entry.events] == told.events
        if told.outcome in {"opened", "forked"}:
            assert entry.epoch == told.epoch
        if told.error:
            # Told again, it may be for another reason of the two that a write is refused for.
            assert entry.error.name in {told.error, "SequenceConflict", "WriterFenced"}


RecorderMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None
)
TestRecorder = RecorderMachine.TestCase
TestRecorder.__doc__ = "Whatever happens to recorders, what is stored and told is the model's."


class World:
    """What recorders share, without the machine."""

    def __init__(self):
        self.tables, self.journal, self.letters = Tables(), [], []

    def recorder(self):
        """A recorder that waits for nobody."""
        gates = Open(self)
        return PartitionRecorder(
            0,
            1,
            recordings=gates,
            journal=gates,
            heads=Heads(),
            patiently=lambda what, call: call(),
        )


class Open(Gated):
    """The same with no waits."""

    async def wait(self):
        """Go on."""


async def test_a_writers_count_from_a_recorder_further_on_decides_nothing(monkeypatch):
    """A zombie that finds a writer's later count begins anew, and doesn't take it for the past."""
    monkeypatch.setattr(buckets, "BUCKET_EVENTS", 5)
    monkeypatch.setattr(core, "BUCKET_EVENTS", 5)
    model, log = Model(), []
    writers = ["w1"] * 5 + ["w2"] + ["w1"] * 4 + ["w2"] * 4
    for offset, writer in enumerate(writers):
        draft = NewEvent(
            type="note",
            data=offset,
            id=f"e{offset}",
            time=TIME,
            version=1,
            writer=writer,
            writer_sequence=offset + 1,
        )
        record = wire.encode(Append("a/one", (draft,), writer, by_id=False))
        log.append(Record(offset, record.key, record.value, record.headers, 0))
        model.take(log[-1])
    world = World()
    owner, zombie = world.recorder(), world.recorder()
    await owner.step(log[:5])
    await zombie.step(log[:5])
    await owner.step(log[5:])
    await zombie.step(log[5:6])
    await zombie.step(log[6:])
    rows = [data for _, _, data in world.tables.rows("a/one")]
    assert rows == [data for _, data in model.events["a/one"]]
    told = [entry for record in world.journal for entry in record.entries]
    assert {entry.outcome for entry in told} == {"recorded"}


def test_the_tables_of_the_simulation_notice_a_wrong_write():
    """The simulation can fail: two different writes of one time to one cell are noticed."""
    tables = Tables()
    tables.put([(("event", "a/one", 1), 5, hashlib.sha256(b"1").digest())])
    tables.put([(("event", "a/one", 1), 4, b"earlier, and so not seen")])
    assert tables.rows("a/one")[0][2] == hashlib.sha256(b"1").digest()
    try:
        tables.put([(("event", "a/one", 1), 5, b"another")])
    except AssertionError:
        return
    raise AssertionError("a wrong write was not noticed")
