"""One agent from the log: compared with what is live, byte by byte, or as it was at a time.

Its records, and those of the agents it was forked from, go through the recorder's core into a
generation of its own, which is dropped after. What is live is read, and never written.
"""

import contextlib
import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Final

import msgspec

from perdure.cassandra.catalog import SCRATCH
from perdure.errors import InvalidInput, NotFound, PerdureError, Unavailable
from perdure.kafka import wire
from perdure.model.projection import DEFAULT
from perdure.model.timeline import Span
from perdure.model.upcast import Upcasters
from perdure.projector.restore import refold
from perdure.recorder.heads import Heads
from perdure.recorder.partition import PartitionRecorder, Source
from perdure.replay.compare import Sides, difference
from perdure.replay.engines import Bars, Engines, Tables
from perdure.replay.rebuild import Nobody, before, divided
from perdure.replay.replay import drop
from perdure.replay.switch import committed

PROBLEMS_MAX: Final = 100
"""Problems of one agent that are told."""


class AgentOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the log says of an agent.

    `records` of it were read; it stands at `sequence` with `chain` (hexadecimal). `problems` say
    where what is live is not the same. `state` is there where it was asked for.
    """

    store: str
    agent: str
    records: int
    sequence: int
    chain: str
    problems: list[str] = []
    state: msgspec.Raw | None = None


async def compare_agent(engines: Engines, store: str, agent: str, bars: Bars) -> AgentOutcome:
    """Build an agent from the log, and compare with what is live: head, rows, indexes.

    Raises:
        NotFound: neither the log nor the tables have it; or the log has no beginning any more.
        PerdureError: what can't be read.
    """
    recorded = await committed(engines.cluster)
    async with _built(engines, store, agent, None, bars) as (tables, building):
        partition = engines.partition_of(store, agent)
        sides = Sides(
            engines.live,
            tables,
            lambda *_: recorded.get(partition, 0),
            lambda *_: building.ends[partition],
        )
        problems: list[str] = []
        for listed_built in (False, True):
            problem, _ = await difference(sides, store, agent, listed_built=listed_built)
            problems += [problem] if problem else []
        problems += await _rows(engines.live, tables, store, agent)
        return await _outcome(tables, building, store, agent, problems)


async def agent_at(
    engines: Engines,
    store: str,
    agent: str,
    until: dt.datetime,
    *,
    upcasters: Upcasters,
    bars: Bars,
) -> AgentOutcome:
    """An agent's state as of what was in the log before a time, from the log alone.

    Raises as `compare_agent`; MissingUpcaster, ProjectionFailed: it can't be folded.
    """
    async with _built(engines, store, agent, until, bars) as (tables, building):
        outcome = await _outcome(tables, building, store, agent, [])
        events = tables.events(store)
        lineage = await events.lineage(agent)
        state = await refold(
            events, upcasters, projection=DEFAULT, lineage=lineage, at=outcome.sequence
        )
        return msgspec.structs.replace(outcome, state=msgspec.Raw(DEFAULT.encode(state)))


@contextlib.asynccontextmanager
async def _built(
    engines: Engines, store: str, agent: str, until: dt.datetime | None, bars: Bars
) -> "AsyncIterator[tuple[Tables, _Building]]":
    """The tables in which an agent was built, while the context lasts."""
    partition = engines.partition_of(store, agent)
    await engines.log.check({partition: 0})
    generation = await engines.catalog.build(state=SCRATCH)
    try:
        tables = await engines.generation(generation.number)
        milliseconds = None if until is None else round(until.timestamp() * 1000)
        building = _Building(engines, tables, store, milliseconds)
        end = (await engines.log.bounds([partition]))[partition].end
        with bars(f"replaying {agent}", end) as done:
            await building.build(agent, done)
        if not (await tables.load(store, agent)).created:
            raise NotFound(
                f"the log has nothing of agent {agent}"
                + ("" if until is None else f" before {until.isoformat()}"),
                hint="perdure agents lists those there are",
            )
        yield tables, building
    finally:
        await drop(engines, generation.number)


class _Building:
    """Agents of a store that are built from the log, each with those it was forked from."""

    def __init__(self, engines: Engines, tables: Tables, store: str, until: int | None) -> None:
        self.records = 0
        self.ends: dict[int, int] = {}
        """Of each partition that was read: the offset before which everything was."""
        self._engines = engines
        self._tables = tables
        self._store = store
        self._until = until
        self._heads = Heads()
        self._begun: set[str] = set()

    async def build(self, agent: str, done: Callable[[int], None]) -> None:
        """Build an agent, unless it is built already."""
        if agent in self._begun:
            return
        self._begun.add(agent)
        engines = self._engines
        partition = engines.partition_of(self._store, agent)
        end = (await engines.log.bounds([partition]))[partition].end
        recorder = PartitionRecorder(
            partition,
            engines.cluster.partitions,
            recordings=self._tables.recordings,
            journal=Nobody(),
            heads=self._heads,
            patiently=engines.patiently,
        )
        position = 0
        async with contextlib.aclosing(engines.log.read(partition, 0)) as batches:
            while position < end:
                records, position = await anext(batches)
                wanted, ended = before(records, self._until)
                own = [record for record in wanted if self._is_of(record, agent)]
                for part, fork in divided(own):
                    if fork is not None:
                        await self.build(fork[1].parent, _unseen)
                    await recorder.step(part)
                    self.records += len(part)
                done(position)
                if ended:
                    break
        self.ends[partition] = end

    def _is_of(self, record: Source, agent: str) -> bool:
        """Whether a record is about an agent, whatever its key is."""
        key = wire.key_of(self._store, agent)
        named = dict(record.headers)
        subject = named.get("ce_subject")
        if record.key != key and subject != agent.encode() and subject is not None:
            return False
        try:
            incoming = wire.decode(record.key, record.value, record.headers, record.timestamp)
        except InvalidInput:
            return False
        return (incoming.store, incoming.append.agent) == (self._store, agent)


async def _rows(live: Tables, built: Tables, store: str, agent: str) -> list[str]:
    """Where the rows of an agent are not the same, as far as both have them; and what else is."""
    try:
        here, there = await live.load(store, agent), await built.load(store, agent)
        span = Span(agent, here.forked_at + 1, min(here.head.sequence, there.head.sequence))
        problems = await _events(live, built, store, span)
        async for _, findings in live.events(store).verify(agent):
            problems += [f"{each.subject}: {each.problem}" for each in findings]
    except Unavailable:
        raise
    except PerdureError as error:
        return [f"live: {error.message}"]
    return list(dict.fromkeys(problems))[:PROBLEMS_MAX]


async def _events(live: Tables, built: Tables, store: str, span: Span) -> list[str]:
    problems: list[str] = []
    sequence = span.first
    async with (
        contextlib.aclosing(_each(built, store, span)) as rebuilt,
        contextlib.aclosing(_each(live, store, span)) as recorded,
    ):
        try:
            async for data in recorded:
                if data != await anext(rebuilt):
                    problems.append(f"{span.agent}@{sequence}: the event is not what was recorded")
                sequence += 1
        except Unavailable:
            raise
        except PerdureError as error:
            problems.append(f"{span.agent}@{sequence}: {error.message}")
    return problems


async def _each(tables: Tables, store: str, span: Span) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(tables.events(store).read_stored(span)) as pages:
        async for page in pages:
            for data in page:
                yield data


async def _outcome(
    tables: Tables, building: _Building, store: str, agent: str, problems: Sequence[str]
) -> AgentOutcome:
    stream = await tables.load(store, agent)
    return AgentOutcome(
        store,
        agent,
        building.records,
        stream.head.sequence,
        stream.head.chain.hex(),
        list(problems),
    )


def _unseen(_: int) -> None:
    """Nobody looks at the progress of those it was forked from."""
