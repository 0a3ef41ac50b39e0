"""One partition of the log, recorded step by step.

Invariants:
- The order of a step: events and heads, then dead letters and the journal; only when all of it is
  durable does the step return, and its last offset may be committed.
- Appends of an agent are written in their order; agents are independent of each other.
- What is looked up may come from a recorder that is further on; it never decides anything here.
- An agent whose records can't be recorded holds up no other: they become dead letters, before any
  of them is written. What is wrong with the tables as a whole is waited for, as for an engine.
- At a record that switches the generation of the tables, all before it is in the old one and all
  after it goes into the new one: nothing is between.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from perdure.errors import (
    Corrupt,
    Incompatible,
    InvalidData,
    InvalidInput,
    NotFound,
    PerdureError,
    Unavailable,
    Unreachable,
)
from perdure.kafka.journal import Entry, JournalRecord, problem_of
from perdure.kafka.switching import generation_of
from perdure.kafka.wire import Headers, decode, key_of, partition_of
from perdure.model.event import Event
from perdure.recorder.core import (
    Asked,
    Change,
    Decided,
    Found,
    Work,
    asked,
    asked_numbers,
    chunks,
    decided,
)
from perdure.recorder.heads import Heads
from perdure.recorder.recordings import Recordings, Stream

AGENTS_AT_ONCE: Final = 64
"""Agents of one partition that are written at the same time."""

KEY_BYTES_MAX: Final = 1024
"""Bytes of a key that the journal takes over from a record that is no event, at most."""

OF_ONE_AGENT: Final = (Corrupt, InvalidInput, NotFound)
"""What can be wrong with one agent, its parent or its records, and with no other."""

T = TypeVar("T")


class Source(Protocol):
    """A record of the topic of events, as Kafka's clients give it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


class DeadLetter(NamedTuple):
    """A record that can't be recorded, and why."""

    source: Source
    error: PerdureError


class Journal(Protocol):
    """Where the recorder tells what became of records."""

    async def tell(self, partition: int, records: Sequence[tuple[bytes, JournalRecord]]) -> None:
        """Write records with their keys to a partition, in order; durable when it returns."""
        ...

    async def put_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Write records to the dead letters; durable when it returns."""
        ...


class Patience(Protocol):
    """How the recorder waits for its engines: calls again until they can serve."""

    async def __call__(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives; it is made again for as long as it raises Unavailable."""
        ...


class Placement(Protocol):
    """In which generation of the tables a partition's agents are."""

    async def refresh(self) -> object:
        """Look again. Raises Unavailable."""
        ...

    async def switch(self, partition: int, position: int, generation: int) -> None:
        """From the record at a position on, the partition's agents are in this generation.

        Again it changes nothing.

        Raises:
            Unavailable (retriable): the tables can't serve now, or the generation doesn't have yet
                what comes before the position.
            PerdureError: it is no generation that could be switched to.
        """
        ...


class Extents(Protocol):
    """What there is of a partition's log."""

    async def check(self, partition: int) -> None:
        """Check that it goes on where it was recorded last.

        Raises:
            Incompatible: records are missing in between, or it is another log.
            Unavailable: that can't be told now.
        """
        ...

    async def check_position(self, partition: int, position: int) -> None:
        """Check that it comes as far as a position that is stored. Raises as `check` does."""
        ...


class Done(NamedTuple):
    """What a step did."""

    records: int
    events: int
    duplicates: int
    refused: int
    dead: int
    writes: int
    write_seconds: float


class _Told(NamedTuple):
    """What became of one agent's records."""

    key: bytes
    journal: list[JournalRecord]
    letters: list[DeadLetter]
    events: int


class PartitionRecorder:
    """Records the records of one partition, in their order.

    Without a `placement` records that switch the generation of the tables are passed over; without
    `extents` the records are taken for all there are.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        *,
        recordings: Recordings,
        journal: Journal,
        heads: Heads,
        patiently: Patience,
        placement: Placement | None = None,
        extents: Extents | None = None,
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._recordings = recordings
        self._journal = journal
        self._heads = heads
        self._patiently = patiently
        self._placement = placement
        self._extents = extents
        self._begun = False
        self._seen = -1  # up to here, at least, the log is known to go
        self._log = f"partition {partition} of the log"
        self._writes = 0
        self._write_seconds = 0.0

    async def begin(self) -> None:
        """Wait until the partition can go on where it was recorded last. Again it does nothing."""
        if self._begun:
            return
        if (extents := self._extents) is not None:
            await self._served(self._log, lambda: extents.check(self._partition))
        if self._placement is not None:
            # Others may have had the partition since it was last looked.
            await self._read(self._placement.refresh)
        self._begun = True

    async def step(self, records: Sequence[Source]) -> Done:
        """Record consecutive records. When it raises, all of them have to be given again."""
        await self.begin()
        self._seen = max(self._seen, records[-1].offset)
        done = _NOTHING
        for part in _divided(records):
            generation = generation_of(part[0])
            if generation is None:
                did = await self._record(part)
            else:
                did = await self._switch(part[0], generation)
            done = Done(*[sum(both) for both in zip(done, did, strict=True)])  # type: ignore[arg-type]
        return done

    async def _switch(self, record: Source, generation: int) -> Done:
        """Go on in another generation of the tables, or tell why not."""
        entry = Entry(record.offset, "switched", generation=generation)
        placement = self._placement
        if placement is not None:
            try:
                await self._patiently(
                    f"generation {generation}",
                    lambda: placement.switch(self._partition, record.offset, generation),
                )
            except Unavailable:
                raise
            except PerdureError as error:
                entry = Entry(record.offset, "refused", error=problem_of(error))
            self._heads.drop(self._partition)
        told = JournalRecord("", "", self._partition, [entry], through=record.offset)
        await self._patiently(
            "the journal", lambda: self._journal.tell(self._partition, [(b"", told)])
        )
        return _NOTHING._replace(records=1, refused=int(entry.error is not None))

    async def _record(self, records: Sequence[Source]) -> Done:
        """Record consecutive records of agents."""
        self._writes, self._write_seconds = 0, 0.0
        works, told = self._decoded(records)
        told += await self._agents(works, records)
        letters = [letter for agent in told for letter in agent.letters]
        if letters:
            letters.sort(key=lambda letter: letter.source.offset)
            await self._patiently("the dead letters", lambda: self._journal.put_aside(letters))
        journal = [(agent.key, record) for agent in told for record in agent.journal]
        # The step's last record says that all before it are told.
        key, last = journal[-1]
        journal[-1] = key, msgspec.structs.replace(last, through=records[-1].offset)
        await self._patiently("the journal", lambda: self._journal.tell(self._partition, journal))
        entries = [entry for _, record in journal for entry in record.entries]
        events = sum(agent.events for agent in told)
        return Done(
            records=len(records),
            events=events,
            duplicates=sum([len(entry.events) for entry in entries]) - events,
            refused=[entry.outcome for entry in entries].count("refused"),
            dead=len(letters),
            writes=self._writes,
            write_seconds=self._write_seconds,
        )

    def _decoded(
        self, records: Sequence[Source]
    ) -> tuple[dict[tuple[str, str], list[Work]], list[_Told]]:
        """The work of each agent, and what becomes of records that are none."""
        works: dict[tuple[str, str], list[Work]] = {}
        told = []
        for record in records:
            try:
                incoming = decode(record.key, record.value, record.headers, record.timestamp)
                key = (incoming.store, incoming.append.agent)
                if key not in works:
                    self._check_partition(*key)
                    works[key] = []
            except InvalidInput as error:
                entry = Entry(record.offset, "dead-letter", error=problem_of(error))
                journal = JournalRecord("", "", self._partition, [entry])
                named = (record.key or b"")[:KEY_BYTES_MAX]
                told.append(_Told(named, [journal], [DeadLetter(record, error)], 0))
            else:
                works[key].append(Work(record.offset, incoming))
        return works, told

    def _check_partition(self, store: str, agent: str) -> None:
        key = key_of(store, agent)
        right = partition_of(key, self._partitions)
        if right != self._partition:
            raise InvalidData(
                f"the record of {agent} is in partition {self._partition}; its order is kept in "
                f"{right}",
                hint=f"send it with the key {key.decode()} and the default partitioner (murmur2)",
            )

    async def _agents(
        self, works: dict[tuple[str, str], list[Work]], sources: Sequence[Source]
    ) -> list[_Told]:
        told: list[_Told] = []
        waiting = iter(works.items())

        async def some() -> None:
            for (store, agent), mine in waiting:
                told.append(await self._agent(store, agent, mine, sources))

        if len(works) == 1:
            await some()
        elif works:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AGENTS_AT_ONCE, len(works))):
                    group.create_task(some())
        return told

    async def _agent(
        self, store: str, agent: str, works: list[Work], sources: Sequence[Source]
    ) -> _Told:
        told = _Told(key_of(store, agent), [], [], 0)
        for chunk in chunks(works):
            try:
                decision = await self._decided(store, agent, chunk)
            except OF_ONE_AGENT as error:
                self._heads.forget(self._partition, store, agent)
                problem = problem_of(error)
                entries = [Entry(work.offset, "dead-letter", error=problem) for work in chunk]
                told.journal.append(JournalRecord("", "", self._partition, entries))
                dead = {work.offset: error for work in chunk}
                told.letters.extend(_letters(dead, sources))
                continue
            # Whatever this raises, the step is given again, and repeats what is written the same.
            for change in decision.changes:
                await self._write(store, agent, change)
            self._heads.put(self._partition, store, decision.stream)
            told.journal.extend(decision.journal)
            told.letters.extend(_letters(decision.letters, sources))
            rows = sum(len(change.rows) for change in decision.changes)
            told = told._replace(events=told.events + rows)
        return told

    async def _decided(self, store: str, agent: str, works: Sequence[Work]) -> Decided:
        stream = self._heads.get(self._partition, store, agent)
        if stream is None:
            stream = await self._load(store, agent)
        ask = asked(stream, works)
        if ask.writers:
            # Writers of earlier buckets are told without their place in the log. If somebody is
            # further on than this stream, they may be from there: go on from what is stored then.
            lasts = await self._read(lambda: self._recordings.last_of(store, agent, ask.writers))
            stored = await self._load(store, agent)
            if stored.position > stream.position:
                self._heads.put(self._partition, store, stored)
                return await self._decided(store, agent, works)
        else:
            lasts = {}
        found = await self._found(store, stream, works, ask, lasts)
        return decided(self._partition, stream, works, found)

    async def _found(
        self, store: str, stream: Stream, works: Sequence[Work], ask: Asked, lasts: dict[str, int]
    ) -> Found:
        agent, recordings = stream.head.agent, self._recordings
        found = Found({}, lasts, {}, {})
        numbers = asked_numbers(stream, works, lasts)
        if ask.positions:
            found.written.update(
                await self._read(lambda: recordings.written_at(store, agent, stream, ask.positions))
            )
        if ask.ids:
            ids = await self._read(lambda: recordings.by_id(store, agent, stream, ask.ids))
            found.ids.update({key: event for key, event in ids.items() if _past(event, stream)})
        if numbers:
            events = await self._read(lambda: recordings.by_writer(store, agent, stream, numbers))
            found.numbers.update(
                {key: event for key, event in events.items() if _past(event, stream)}
            )
        return found

    async def _load(self, store: str, agent: str) -> Stream:
        stream = await self._read(lambda: self._recordings.load(store, agent))
        position, extents = stream.position, self._extents
        if extents is not None and position > self._seen:
            # Another recorder is further on; or this is not the log from which that was recorded.
            await self._served(self._log, lambda: extents.check_position(self._partition, position))
            self._seen = max(self._seen, position)
        return stream

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        return await self._served("reading the tables", call)

    async def _served(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """What an engine answers, as soon as it is there and what it has is what it should be."""

        async def served() -> T:
            try:
                return await call()
            except Incompatible as error:
                # No matter of an agent: a node lags behind in its schema, or a table was dropped.
                raise Unreachable(error.message, hint=error.hint) from error

        return await self._patiently(what, served)

    async def _write(self, store: str, agent: str, change: Change) -> None:
        started = time.perf_counter()
        await self._served(
            "writing the tables",
            lambda: self._recordings.write(store, agent, change.before, change.after, change.rows),
        )
        self._writes += 1
        self._write_seconds += time.perf_counter() - started


_NOTHING: Final = Done(0, 0, 0, 0, 0, 0, 0.0)


def _divided(records: Sequence[Source]) -> list[Sequence[Source]]:
    """Records in parts: each that switches the generation is one by itself."""
    parts: list[Sequence[Source]] = []
    first = 0
    for index in [index for index, record in enumerate(records) if not record.key]:
        if generation_of(records[index]) is not None:
            parts += [records[first:index], records[index : index + 1]]
            first = index + 1
    parts.append(records[first:])
    return [part for part in parts if part]


def _letters(dead: Mapping[int, PerdureError], sources: Sequence[Source]) -> list[DeadLetter]:
    """The records at some offsets, each with what is wrong with it."""
    if not dead:
        return []
    return [DeadLetter(each, dead[each.offset]) for each in sources if each.offset in dead]


def _past(event: Event, stream: Stream) -> bool:
    """Whether an event that was found is of the stream's past: another recorder may be ahead."""
    return event.subject != stream.head.agent or event.sequence <= stream.head.sequence
