"""The state of a long agent: on demand over HTTP, and folded again from its first event."""

import asyncio
import itertools
import statistics
import time
from typing import Final

import aiohttp

from perdure.agent.connect import connect
from perdure.agent.store import Store
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.session import Session
from perdure.cassandra.tables import OneGeneration, Tables
from perdure.cli.bench.cluster.http import state_of
from perdure.cli.bench.cluster.raw_cassandra import RawCassandra, connected
from perdure.cli.bench.cluster.recording import GENERATION, Rows
from perdure.cli.bench.cluster.services import Services
from perdure.cli.bench.cluster.workbench import STORE, ClusterBench
from perdure.cli.bench.opening import EVENTS_BETWEEN
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, milliseconds, per_second, side_by_side
from perdure.cli.bench.workbench import EVENTS_AT_ONCE, RECORDS, record
from perdure.errors import PerdureError
from perdure.model.projection import DEFAULT
from perdure.model.upcast import default_upcasters
from perdure.projector.restore import refold

DEMAND: Final = "perdure, unchanged since it was asked for last"
MOVED: Final = f"perdure, after {EVENTS_BETWEEN} more events"
BESIDE: Final = "one raw point read, and decoding the state"
REBUILD: Final = "perdure, folding from event 1"
RAW: Final = "driver, reading the same rows"
RAW_AT_ONCE: Final = "driver, reading the same rows, TCP_NODELAY"
REBUILDS: Final = 3
"""A rebuild takes seconds: so many times fewer rounds of it."""


async def demand(bench: ClusterBench) -> Measurement:
    """A long agent's state over HTTP, beside a raw read and decoding the state's bytes."""
    scale = bench.scale
    name = "bench/long"
    async with (
        bench.place("recorder", "gateway") as services,
        connect(services.url) as store,
        aiohttp.ClientSession() as client,
    ):
        write = await _long_agent(bench, store, name)
        encoded = DEFAULT.encode(await store.view(name).state_at())
        with connected(services.cluster) as (_, driver):
            rows = Rows(["bench/raw"])
            [(raw_name, bucket, [row])] = rows.recorded(bench.events(1))
            driver.write(raw_name, bucket, row)

            async def asked(more: int) -> Work:
                seconds = []
                for _ in range(scale.samples):
                    sequence = await write(more)
                    started = time.perf_counter()
                    found, state = await state_of(client, services.gateway, STORE, name)
                    seconds.append(time.perf_counter() - started)
                    _check(found, sequence)
                    _check(len(state.records), min(RECORDS, sequence))
                return Work(1, statistics.median(seconds))

            async def raw() -> Work:
                seconds = []
                for _ in range(scale.samples):
                    started = time.perf_counter()
                    driver.read(raw_name, bucket, 1)
                    state = DEFAULT.decode(encoded)
                    seconds.append(time.perf_counter() - started)
                    del state
                return Work(1, statistics.median(seconds))

            contenders: dict[str, Contender] = {
                DEMAND: lambda: asked(0),
                BESIDE: raw,
                MOVED: lambda: asked(EVENTS_BETWEEN),
            }
            total = scale.rounds * len(contenders)
            tick = bench.base.begin("state on demand", total)
            done = await side_by_side(contenders, rounds=scale.rounds, tick=tick)
    series = {who: Series.of(who, "ms", milliseconds(work)) for who, work in done.items()}
    what = f"state of an agent of {scale.length:,} events over HTTP"
    ratios = [
        Ratio.between(
            series[who],
            series[BESIDE],
            label=label,
            bound="at most",
            target=5,
        )
        for who, label in (
            (DEMAND, f"{what}, of a raw read and decoding it"),
            (MOVED, f"the same after {EVENTS_BETWEEN} more events"),
        )
    ]
    notes = [
        (
            f"the state is {RECORDS:,} records, put anew again and again: {len(encoded):,} bytes of"
            " JSON; each answer is decoded, and has all that was recorded before the question"
        ),
        "a raw read: one row by its key, by the plain driver with TCP_NODELAY",
    ]
    return Measurement("demand", what, list(series.values()), ratios, notes)


async def rebuild(bench: ClusterBench) -> Measurement:
    """Folding a long agent from its first event, beside reading the same rows."""
    scale = bench.scale
    name = "bench/long"
    async with bench.place("recorder", "gateway") as services:
        async with connect(services.url) as store:
            await _long_agent(bench, store, name)
        session = await Session.connect(services.cluster)
        try:
            with connected(services.cluster) as drivers:
                contenders = await _readers(services, session, drivers, name, scale.length)
                rounds = -(-scale.rounds // REBUILDS)
                tick = bench.base.begin("folding from event 1", rounds * len(contenders))
                done = await side_by_side(contenders, rounds=rounds, tick=tick)
        finally:
            await session.close()
    series = {who: Series.of(who, "events/s", per_second(work)) for who, work in done.items()}
    raw = max(series[RAW], series[RAW_AT_ONCE], key=lambda one: one.median)
    ratio = Ratio.between(
        series[REBUILD],
        raw,
        label=f"folding {scale.length:,} events from event 1, of reading the same rows",
        bound="at least",
        target=0.7,
    )
    notes = [
        "no state checkpoint is used; perdure reads, decodes, checks and folds",
        (
            "the driver reads the bytes of the events, bucket after bucket, and decodes nothing;"
            " the faster of its two connections counts"
        ),
    ]
    title = f"folding an agent of {scale.length:,} events from event 1"
    return Measurement("rebuild", title, list(series.values()), [ratio], notes)


async def _readers(
    services: Services,
    session: Session,
    drivers: tuple[RawCassandra, RawCassandra],
    name: str,
    length: int,
) -> dict[str, Contender]:
    keyspace = services.cluster.keyspace(GENERATION)
    tables = await Tables.prepare(session, keyspace)
    table = CassandraEventTable(session, STORE, OneGeneration(tables))
    lineage = await table.lineage(name)
    rows = await session.execute(tables.stream, (STORE, name))
    buckets = 1 + (int(rows[0][0]) if rows else 0)

    async def ours() -> Work:
        started = time.perf_counter()
        state = await refold(
            table, default_upcasters, projection=DEFAULT, lineage=lineage, at=length
        )
        seconds = time.perf_counter() - started
        _check(state.sequence, length)
        return Work(length, seconds)

    async def raw(driver: RawCassandra) -> Work:
        work = await asyncio.to_thread(driver.read_all, keyspace, name, buckets)
        _check(work.count, length)
        return work

    return {
        REBUILD: ours,
        RAW: lambda: raw(drivers[0]),
        RAW_AT_ONCE: lambda: raw(drivers[1]),
    }


class _Write:
    """Puts records of a long agent anew, so many at a time."""

    def __init__(self, bench: ClusterBench, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._texts = bench.base.texts()
        self._numbers = itertools.count()
        self._sequence = 0

    async def __call__(self, count: int) -> int:
        """Have so many more recorded; the agent's last sequence."""
        if count:
            put = [
                ("record.put", record(next(self._numbers), next(self._texts))) for _ in range(count)
            ]
            answers = await self._store.emit_many(self._name, put, ack="recorded")
            self._sequence = answers[-1].sequence
        return self._sequence


async def _long_agent(bench: ClusterBench, store: Store, name: str) -> _Write:
    length = bench.scale.length
    tick = bench.base.begin(f"building an agent of {length:,} events", length // EVENTS_AT_ONCE)
    write = _Write(bench, store, name)
    for first in range(0, length, EVENTS_AT_ONCE):
        await write(min(EVENTS_AT_ONCE, length - first))
        tick()
    return write


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise PerdureError(
            f"the agent's state is of {found}, not of {wanted}",
            hint="report this: it must not happen",
        )
