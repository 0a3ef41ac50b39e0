"""Building a generation of the tables from the log beside the one that is live, and going over.

`replay_all` goes through all of it, and where it was stopped it goes on when it is called again:
events from the log, then what is derived of them, then the comparison, then the switch.

Invariants:
- What is live is read, and never written, but for the switch in the end.
- Nothing is switched to that is not the same as what is live, unless it is asked for.
"""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from perdure.cassandra.catalog import BUILDING, DROPPED, Generation
from perdure.cassandra.census import all_agents
from perdure.errors import InvalidInput, PerdureError
from perdure.model.upcast import Upcasters
from perdure.replay.compare import Compared, Difference, Sides, compare
from perdure.replay.derived import (
    counted,
    drop_memories,
    embed_memories,
    save_states,
)
from perdure.replay.engines import Bars, Engines, Tables
from perdure.replay.rebuild import Rebuild, nothing
from perdure.replay.switch import committed, switch_over, switched_at

CLOSE_RECORDS: Final = 1000
"""A generation that lacks no more records than this is caught up: the rest comes as it is read."""


class Outcome(msgspec.Struct, frozen=True):
    """What a replay did.

    `records` and `events` were replayed by this run, which went on where another one was stopped
    if it `resumed`. `agents` of the generation have `recorded` events in all. Of `differences` to
    what is live there are `different`, of which the first are told.
    """

    generation: int
    resumed: bool
    records: int
    events: int
    agents: int
    recorded: int
    states: int
    memories: int
    different: int
    differences: list[Difference]
    switched: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked of a replay.

    `restart` drops a generation that is being built, and begins anew. Without `switch` nothing
    becomes live; with `force` it does although it is not the same.
    """

    restart: bool = False
    switch: bool = True
    force: bool = False


async def replay_all(
    engines: Engines, upcasters: Upcasters, bars: Bars, wishes: Wishes = Wishes()
) -> Outcome:
    """Build a generation, compare it with what is live, and go over to it.

    Raises:
        NotFound: the log has no beginning any more: neither the topic nor the archive.
        Unreachable: the recorder does not run, or an engine is away at the start.
        PerdureError: what else can't be read or written; run it again to go on.
    """
    started = time.monotonic()
    generation, resumed = await _generation(engines, None, restart=wishes.restart)
    keyspace = engines.cluster.keyspace(generation.number)
    tables = await engines.generation(generation.number)
    positions = await _positions(engines, generation)
    await engines.log.check(positions)
    rebuild = _rebuild(engines, tables, generation, positions)
    async with _running(rebuild):
        await _catch_up(engines, rebuild, bars)
        agents = await counted(all_agents(engines.session, keyspace))
        with bars("saving states", agents) as done:
            states = await save_states(engines, tables, keyspace, upcasters, done)
        with bars("embedding memories", agents) as done:
            memories = await embed_memories(engines, tables, keyspace, done)
        await _catch_up(engines, rebuild, bars)
        with bars("comparing", 2 * agents) as done:
            compared = await _compare(engines, tables, keyspace, rebuild, done)
        going = wishes.switch and (wishes.force or not compared.count)
        if going:
            with bars("switching over", None):
                await switch_over(engines, generation.number)
            await engines.placed.refresh()
    return Outcome(
        generation=generation.number,
        resumed=resumed,
        records=rebuild.counts.records,
        events=rebuild.counts.events,
        agents=compared.agents,
        recorded=compared.events,
        states=states,
        memories=memories,
        different=compared.count,
        differences=compared.differences,
        switched=going,
        seconds=time.monotonic() - started,
    )


async def replay_until(
    engines: Engines, until: dt.datetime, bars: Bars, *, restart: bool = False
) -> Outcome:
    """Build a generation of what was in the log before a time, to be looked at.

    Each partition ends before its first record with a timestamp (Kafka's: when it was sent) at
    `until` or later. Raises as `replay_all` does.
    """
    started = time.monotonic()
    until = until.replace(microsecond=until.microsecond // 1000 * 1000)
    generation, resumed = await _generation(engines, until, restart=restart)
    keyspace = engines.cluster.keyspace(generation.number)
    tables = await engines.generation(generation.number)
    positions = await _positions(engines, generation)
    await engines.log.check(positions)
    ends = {part: bound.end for part, bound in (await engines.log.bounds(positions)).items()}
    rebuild = _rebuild(engines, tables, generation, positions, ends)
    total = sum(ends.values()) - sum(positions.values())
    with bars("replaying", total) as done, _shown(rebuild, done):
        try:
            await rebuild.run()
        except BaseExceptionGroup as errors:
            raise (_first(errors) or errors) from None
    agents = events = 0
    async for page in all_agents(engines.session, keyspace):
        for stream in await asyncio.gather(*(tables.load(store, agent) for store, agent in page)):
            agents += stream.created
            events += stream.head.sequence - stream.forked_at
    await engines.catalog.finish(generation.number)
    return Outcome(
        generation=generation.number,
        resumed=resumed,
        records=rebuild.counts.records,
        events=rebuild.counts.events,
        agents=agents,
        recorded=events,
        states=0,
        memories=0,
        different=0,
        differences=[],
        switched=False,
        seconds=time.monotonic() - started,
    )


async def drop(engines: Engines, number: int) -> None:
    """Drop a generation that nothing is read from: its tables, and its memories.

    Raises:
        InvalidInput: something is read from it.
        NotFound: there is none of this number.
    """
    generation = await engines.catalog.generation(number)
    if number in set((await engines.catalog.placement()).values()):
        raise InvalidInput(
            f"generation {number} is live: agents are read from it",
            hint="perdure replay builds another one and goes over to it",
        )
    await drop_memories(engines, engines.cluster.keyspace(number))
    if generation.state != DROPPED:
        await engines.catalog.drop(number)


async def _generation(
    engines: Engines, until: dt.datetime | None, *, restart: bool
) -> tuple[Generation, bool]:
    """The generation to build: one that somebody began, or a new one; and whether it is begun."""
    live = set((await engines.catalog.placement()).values())
    for generation in reversed(await engines.catalog.generations()):
        if generation.number in live:
            # Switched in part: the rest has to follow.
            if until is None and len(live) > 1 and generation.number == max(live):
                return generation, True
        elif generation.state == BUILDING and generation.until == until:
            if not restart:
                return generation, True
            await drop(engines, generation.number)
    return await engines.catalog.build(until), False


async def _positions(engines: Engines, generation: Generation) -> dict[int, int]:
    """Where to begin in each partition; noted, so that it is known that somebody builds it."""
    noted = await engines.catalog.progress(generation.number)
    positions = {part: noted.get(part, 0) for part in range(engines.cluster.partitions)}
    for partition, position in positions.items():
        await engines.catalog.note_progress(generation.number, partition, position)
    return positions


def _rebuild(
    engines: Engines,
    tables: Tables,
    generation: Generation,
    positions: Mapping[int, int],
    ends: Mapping[int, int] | None = None,
) -> Rebuild:
    until = generation.until

    async def note(partition: int, position: int) -> None:
        await engines.patiently(
            "the tables",
            lambda: engines.catalog.note_progress(generation.number, partition, position),
        )

    async def switched(partition: int, offset: int) -> bool:
        return await engines.patiently(
            "the recorder", lambda: switched_at(engines, generation.number, partition, offset)
        )

    return Rebuild(
        engines.log,
        tables.recordings,
        positions,
        generation=generation.number,
        note=note,
        switched=switched,
        patiently=engines.patiently,
        until=None if until is None else round(until.timestamp() * 1000),
        ends=ends,
    )


@contextlib.asynccontextmanager
async def _running(rebuild: Rebuild) -> AsyncIterator[None]:
    """Has a rebuild go on while the context lasts; what it fails with is raised there."""
    failure: PerdureError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(rebuild.run())
            yield
            running.cancel()
    except BaseExceptionGroup as errors:
        failure = _first(errors)
        if failure is None:
            raise
    if failure is not None:
        raise failure


def _first(errors: BaseExceptionGroup[BaseException]) -> PerdureError | None:
    """The first of our own errors in a group."""
    for error in errors.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, PerdureError):
            return found
    return None


async def _catch_up(engines: Engines, rebuild: Rebuild, bars: Bars) -> None:
    """Wait until what is built lacks nothing but what is written just now."""
    while True:
        bounds = await engines.log.bounds(rebuild.positions)
        ends = {partition: bound.end for partition, bound in bounds.items()}
        lacking = sum(
            max(0, end - rebuild.positions[part])
            for part, end in ends.items()
            if part not in rebuild.ended
        )
        if not lacking:
            return
        with bars("replaying", lacking) as done, _shown(rebuild, done):
            await rebuild.reached(ends)
        if lacking <= CLOSE_RECORDS:
            return


@contextlib.contextmanager
def _shown(rebuild: Rebuild, done: Callable[[int], None]) -> Iterator[None]:
    """Has it shown how many offsets are replayed while the context lasts."""
    begun = sum(rebuild.positions.values())
    rebuild.moved = lambda: done(sum(rebuild.positions.values()) - begun)
    try:
        yield
    finally:
        rebuild.moved = nothing


async def _compare(
    engines: Engines, tables: Tables, keyspace: str, rebuild: Rebuild, done: Callable[[int], None]
) -> Compared:
    recorded, rebuilt = await committed(engines.cluster), dict(rebuild.positions)
    live = set((await engines.placed.refresh()).values())

    async def of_live() -> AsyncIterator[list[tuple[str, str]]]:
        for number in sorted(live):
            async for page in all_agents(engines.session, engines.cluster.keyspace(number)):
                yield page

    sides = Sides(
        engines.live,
        tables,
        lambda store, agent: recorded.get(engines.partition_of(store, agent), 0),
        lambda store, agent: rebuilt[engines.partition_of(store, agent)],
    )
    return await compare(sides, of_live(), all_agents(engines.session, keyspace), done)
