"""Load on a cluster, and its judge: what agent processes were told, against what is recorded.

`python -m tests.stack.load URL FOLDER NAME SEED AGENT…` is one of the processes: it writes to its
agents in all the ways there are, until SIGTERM. What it tries and what it is answered it notes in a
file, a line of JSON each, before it goes on; what stands there was acknowledged, whatever became of
the process. The judge reads nothing else of theirs.

Lines: the time (of the machine's monotonic clock), the agent, and one of

    try KIND TOKENS     about to be written; KIND as `tests.embedded.judge` has them
    ack PAIRS           recorded: sequences and tokens
    durable TOKENS      acknowledged by the log
    failed TOKENS WHY   not acknowledged: may be recorded, once, or not
    error WHY           what must not happen
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

import msgspec
import tenacity
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from tests.conformance.places import WordsEmbedder
from tests.embedded.forks import seeded
from tests.embedded.judge import Journal, token_of
from tests.stack.services import tail

import perdure
from perdure import NewEvent
from perdure.errors import PerdureError
from perdure.kafka import journal
from perdure.memorizer.memory import HITS_MAX

EMBEDDER = "tests.conformance.places:WordsEmbedder"
"""The setting of services whose load this is: embedding is not what is tested here."""

SHARED = "load/shared"
"""An agent that all processes contribute to, and none has open."""

GROUPS = {
    "recorder": ("recorder", "events"),
    "checkpointer": ("checkpointer", "journal"),
    "uploads": ("checkpointer-chunks", "chunks"),
    "memorizer": ("memorizer", "journal"),
    "projector": ("projector", "journal"),
}
"""The consumer groups: of which service, and what they read."""

PATIENCE_SECONDS = 150
"""How long anything may take that has to happen by itself."""

PACE_SECONDS = 0.06
"""The longest pause between two writes of an agent: it shares two cores with what it tests."""


ENGINE_TAIL_BYTES = 6000
"""How much of an engine's log is shown where a test fails."""


class Load:
    """Processes that write to a store of a cluster until they are told to stop."""

    def __init__(
        self, services, store, folder, *, stack=None, processes=2, agents=2, pace=PACE_SECONDS
    ):
        self.services, self.store, self.stack = services, store, stack
        self._folder = folder / f"load-{store}"
        self._processes, self._agents, self._pace = processes, agents, pace
        self._rng = seeded(f"load of {store}")
        self._running = []
        self._started = 0

    async def __aenter__(self):
        self._folder.mkdir()
        for _ in range(self._processes):
            self.add()
        await self.moved(since=time.monotonic())
        return self

    async def __aexit__(self, kind, *_):
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM if kind is None else signal.SIGKILL)
        for process in self._running:
            try:
                await asyncio.to_thread(process.wait, PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if kind is None:
            assert [0] * len(self._running) == [each.returncode for each in self._running]

    def add(self):
        """One more process, with agents of its own."""
        number = self._started = self._started + 1
        names = [f"load/{number}-{each}" for each in range(self._agents)]
        with (self._folder / f"{number}.err").open("wb") as errors:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.stack.load"),
                    *(self.services.url(self.store), str(self._folder), str(number)),
                    *(str(self._rng.randrange(1 << 32)), str(self._pace), *names),
                ],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self._running.append(process)

    def notes(self):
        """Everything that was noted up to now: life, time, agent and report of each."""
        for path in sorted(self._folder.glob("*.notes")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    at, agent, *report = json.loads(line)
                    yield path.stem, at, agent, report

    @property
    def agents(self):
        """All agents that somebody tried to write to."""
        return sorted({agent for _, _, agent, _ in self.notes()})

    def acknowledged(self):
        """How many events were acknowledged up to now."""
        return sum(len(report[1]) for *_, report in self.notes() if report[0] in ("ack", "durable"))

    async def moved(self, *, since):
        """Wait until every agent of the processes had a write recorded that it began after that."""
        expected = self._processes * self._agents

        async def all_moved():
            for process in self._running:
                assert process.poll() is None, self.trouble()
            moved = {
                agent
                for _, _, agent, report in self.notes()
                if report[0] == "ack" and agent != SHARED and report[2] >= since
            }
            return len(moved) >= expected

        try:
            await until(all_moved)
        except tenacity.RetryError as error:
            raise AssertionError(f"the load does not move\n{self.trouble()}") from error

    def trouble(self):
        """What the processes complained of, and what services and engines told last."""
        failed = [str(note) for note in self.notes() if note[3][0] in ("failed", "error")]
        told = [f"{path.name}: {tail(path)}" for path in self._folder.glob("*.err")]
        told += ["not acknowledged:", *failed[-20:]]
        told += [service.told() for service in self.services.all]
        for member in self.stack.members.values() if self.stack else ():
            runs = "runs" if member.running else "DOES NOT RUN"
            told.append(f"=== {member.name} {runs}\n{tail(member.log, ENGINE_TAIL_BYTES)}")
        return "\n".join(told)

    def failures(self):
        """What was not acknowledged, and why."""
        return [report[2] for *_, report in self.notes() if report[0] == "failed"]

    async def judge(self):
        """Wait until the services are through with everything, and judge it."""
        for service in self.services.all:
            await asyncio.to_thread(service.wait_ready)
        async with Topics.of(self.services.cluster) as topics:
            await topics.caught_up()
            await topics.judge()
        url = self.services.url(self.store)
        async with perdure.connect(url, embedder=WordsEmbedder()) as store:
            journals = self.journals()
            for agent, told in journals.items():
                await judge_agent(store.view(agent), told)
            listed = {summary.agent async for summary in store.agents("load/")}
            assert set(journals) <= listed

    def journals(self):
        """What was tried and acknowledged, by agent."""
        found = defaultdict(Acknowledged)
        for life, _, agent, report in self.notes():
            found[agent].take(f"{life} {agent}", [report])
        return found


class Acknowledged(Journal):
    """What was tried and acknowledged, of one agent, its sequence being known or not."""

    def __init__(self):
        super().__init__()
        self.durable = set()

    def take(self, life, reports):
        """Take in the reports of a process."""
        for report in reports:
            match report:
                case ["durable", tokens]:
                    self.durable.update(tokens)
                case ["ack", pairs, _]:
                    super().take(life, [["ack", pairs]])
                case _:
                    super().take(life, [report])

    def check(self, events):
        """Compare with all events of the agent's log."""
        super().check(events)
        lost = self.durable - {token_of(event) for event in events}
        assert not lost, f"lost: {sorted(lost)} were acknowledged as durable"


async def judge_agent(view, told):
    """What is recorded of an agent is what was acknowledged, in every form that it is kept in."""
    events = [event async for event in view.events()]
    told.check(events)
    verification = await view.verify()
    assert verification.findings == []
    assert len(events) == verification.events
    state = await view.state_at(fresh=True)
    assert len(events) == state.sequence
    assert told.record(events) == state.records.get("only")
    memories = remembered(events)
    assert len(memories) < HITS_MAX, "the load ran for too long to recall all memories at once"
    hits = await view.recall("token", k=HITS_MAX, fresh=True) if memories else []
    assert sorted(memories) == sorted(hit.text for hit in hits)
    for name, saved in state.checkpoints.items():
        assert (await view.restore(name))["token"] == name, saved


def remembered(events):
    """The texts that are remembered after all events: what was undone is not."""
    after = [()]
    for event in events:
        match event.type:
            case "memory.stored":
                after.append((*after[-1], event.data["text"]))
            case "agent.reverted":
                after.append(after[event.data["to"]])
            case _:
                after.append(after[-1])
    return after[-1]


class Topics:
    """The topics of a cluster, as they are now: how far they were read, and what stands there."""

    def __init__(self, cluster, consumer, admin):
        self.cluster, self._consumer, self._admin = cluster, consumer, admin

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, cluster):
        """Connected while the context lasts."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=cluster.kafka,
            enable_auto_commit=False,
            isolation_level="read_committed",  # what a transaction takes back is no event
            max_partition_fetch_bytes=16 * 2**20,
        )
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
        async with contextlib.AsyncExitStack() as stack:
            for client, close in ((consumer, consumer.stop), (admin, admin.close)):
                stack.push_async_callback(close)
                await client.start()
            yield cls(cluster, consumer, admin)

    async def ends(self, kind):
        """Where the partitions of a topic end."""
        return await self._consumer.end_offsets(self._partitions(kind))

    async def behind(self, name, ends=None):
        """How many records a group of `GROUPS` has not committed, of those before `ends`."""
        group, kind = GROUPS[name]
        committed = await self._admin.list_consumer_group_offsets(self.cluster.group(group))
        ends = await self.ends(kind) if ends is None else ends
        return sum(
            max(0, end - max(0, committed[partition].offset if partition in committed else 0))
            for partition, end in ends.items()
        )

    async def caught_up(self, *names):
        """Wait until these groups (all by default) have committed everything that is there now."""
        for name in names or GROUPS:
            # One after the other: the journal is complete when the recorder is through.
            ends = await self.ends(GROUPS[name][1])
            try:
                await until(functools.partial(self._is_through, name, ends))
            except tenacity.RetryError as error:
                left = await self.behind(name, ends)
                raise AssertionError(f"{name} is {left} records behind, and stays so") from error

    async def _is_through(self, name, ends):
        with contextlib.suppress(KafkaError):
            return await self.behind(name, ends) == 0
        return False

    async def records(self, kind):
        """All records of a topic that are there now, in the order of each partition."""
        partitions = self._partitions(kind)
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*partitions)
        found = []
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            while await self._consumer.position(partition) < end:
                batches = await self._consumer.getmany(partition, timeout_ms=1000)
                found += batches.get(partition, [])
        return found

    async def judge(self):
        """What the topics tell agrees with itself, for readers in any language."""
        written = {(each.partition, each.offset) for each in await self.records("events")}
        told = [journal.decode(each.value) for each in await self.records("journal")]
        entries = {(each.partition, entry.offset) for each in told for entry in each.entries}
        assert written == entries, "not every record has its entry in the journal"
        heads = {}
        for record in told:
            key = (record.store, record.agent)
            known = heads.get(key, (record.forked_at, ""))
            for entry in record.entries:
                for event in map(msgspec.json.decode, entry.events):
                    # Duplicates and late copies are harmless; what is new comes without a gap.
                    assert int(event["sequence"]) <= known[0] + 1, f"a gap in the journal of {key}"
                    known = max(known, (int(event["sequence"]), ""))
            if record.chain and record.sequence == known[0]:
                known = (record.sequence, record.chain)
            heads[key] = known
        newest = {}
        for each in await self.records("state"):
            state = msgspec.json.decode(each.value)
            newest[state["store"], state["agent"]] = (state["sequence"], state["chain"])
        assert {key: head for key, head in heads.items() if head[0]} == newest

    def _partitions(self, kind):
        topic = self.cluster.topic(kind)
        return [TopicPartition(topic, number) for number in range(self.cluster.partitions)]


async def until(condition, seconds=PATIENCE_SECONDS):
    """Wait until an awaitable condition holds."""
    await tenacity.AsyncRetrying(
        wait=tenacity.wait_fixed(0.1),
        stop=tenacity.stop_after_delay(seconds),
        retry=tenacity.retry_if_result(lambda held: not held),
    )(condition)


class Notes:
    """The file of one process, and the tokens that it puts into events."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._life = uuid.uuid4().hex[:8]
        self._count = itertools.count(1)

    def token(self):
        """One that nobody has used."""
        return f"{self._life}.{next(self._count)}"

    def note(self, agent, *report):
        """One line, in one write: whole, or not there."""
        os.write(self._file, json.dumps([time.monotonic(), agent, *report]).encode() + b"\n")


class Writing:
    """One agent that is written to in all ways, one after the other and side by side."""

    def __init__(self, store, agent, notes, rng):
        self._store, self._agent, self._notes, self._rng = store, agent, notes, rng
        self._ways = [
            *[self.single] * 4,
            *[self.pipelined] * 3,
            *[self.many] * 3,
            *[self.recorded] * 4,
            *[self.named] * 3,
            *[self.record] * 2,
            *[self.memory] * 2,
            *[self.shared] * 2,
            self.large,
            self.checkpoint,
            self.undo,
        ]

    async def go_on(self, stop, pace):
        """Write until told to stop."""
        while not stop.is_set():
            way = self._rng.choice(self._ways)
            try:
                await way()
            except PerdureError as error:
                if not error.retriable:
                    self._notes.note(self._agent.name, "error", f"{way.__name__}: {error!r}")
                    raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._rng.random() * pace)

    async def _written(self, kind, tokens, write, *, agent=None):
        """Note what is tried, try it, and note what came of it."""
        name, started = agent or self._agent.name, time.monotonic()
        self._notes.note(name, "try", kind, tokens)
        try:
            events = await write()
        except PerdureError as error:
            if error.retriable:
                self._notes.note(name, "failed", tokens, str(error))
            raise
        sequences = [event.sequence for event in events]
        if all(sequences):
            pairs = [list(pair) for pair in zip(sequences, tokens, strict=True)]
            self._notes.note(name, "ack", pairs, started)
        else:
            self._notes.note(name, "durable", tokens)

    async def _one(self, token, kind="alone", **options):
        async def write():
            return [await self._agent.emit("note", {"token": token}, **options)]

        await self._written(kind, [token], write)

    async def single(self):
        """One event, durable."""
        await self._one(self._notes.token())

    async def recorded(self):
        """One event, and its sequence."""
        await self._one(self._notes.token(), ack="recorded")

    async def pipelined(self):
        """Several events that don't wait for each other: in the order of the calls all the same."""
        tokens = [self._notes.token() for _ in range(self._rng.randrange(2, 16))]
        done = await asyncio.gather(*map(self._one, tokens), return_exceptions=True)
        for each in done:
            if each is not None:
                raise each

    async def many(self):
        """Several events, all or none, and nobody's between them."""
        tokens = [self._notes.token() for _ in range(self._rng.randrange(2, 30))]
        events = [NewEvent(type="note", data={"token": token}) for token in tokens]
        ack = self._rng.choice([None, "recorded"])
        await self._written(
            "together", tokens, lambda: self._agent.emit_many(events, ack=ack), agent=None
        )

    async def named(self):
        """One event with an id of its own, which is written again until it is acknowledged."""
        token = self._notes.token()
        kind = "named"
        while True:
            try:
                await self._one(token, kind, id=token, ack=self._rng.choice([None, "recorded"]))
            except PerdureError as error:
                if not error.retriable:
                    raise
                kind = "again"
                continue
            if self._rng.random() < 0.3:
                await self._one(token, "again", id=token, ack="recorded")
            return

    async def record(self):
        """A record is put."""
        token = self._notes.token()

        async def write():
            return [await self._agent.records.put("only", token)]

        await self._written("alone", [token], write)

    async def memory(self):
        """Something is remembered."""
        token = self._notes.token()

        async def write():
            return [await self._agent.remember(token)]

        await self._written("alone", [token], write)

    async def large(self):
        """An event of up to half a megabyte."""
        token = self._notes.token()
        data = {"token": token, "text": self._rng.randbytes(self._rng.randrange(1, 250_000)).hex()}

        async def write():
            return [await self._agent.emit("note", data)]

        await self._written("alone", [token], write)

    async def checkpoint(self):
        """An object is saved, which travels by a topic of its own."""
        token = self._notes.token()

        async def write():
            value = {"token": token, "bytes": self._rng.randbytes(200_000)}
            return [await self._agent.checkpoint(token, value)]

        await self._written("alone", [token], write)

    async def undo(self):
        """What was written last is undone."""
        sequence = (await self._agent.refresh()).sequence
        if sequence > 1:
            to = self._rng.randrange(max(1, sequence - 20), sequence)

            async def write():
                return [(await self._agent.revert(to)).event]

            await self._written("alone", [f"revert to {to}"], write)

    async def shared(self):
        """Somebody else's agent is contributed to."""
        token = self._notes.token()

        async def write():
            return [await self._store.emit(SHARED, "note", {"token": token})]

        await self._written("alone", [token], write, agent=SHARED)


async def main(url, folder, name, seed, pace, *agents):
    """Write to the agents until SIGTERM."""
    notes = Notes(Path(folder) / f"{name}.notes")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        perdure.connect(url, embedder=WordsEmbedder()) as store,
        asyncio.TaskGroup() as group,
    ):
        for agent in agents:
            opened = await store.agent(agent)
            writing = Writing(store, opened, notes, random.Random(f"{seed} {agent}"))
            group.create_task(writing.go_on(stop, float(pace)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
