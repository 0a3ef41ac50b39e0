"""The recorder: from records in Kafka to rows that can be queried, beside the plain driver."""

import asyncio
import datetime as dt
import itertools
import time
from collections.abc import Sequence
from typing import Final, NoReturn

from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.session import Session
from perdure.cassandra.tables import OneGeneration, Tables
from perdure.cli.bench.cluster.journal import Told
from perdure.cli.bench.cluster.raw_cassandra import ROWS_A_BATCH, RawCassandra, connected
from perdure.cli.bench.cluster.raw_kafka import RawKafka
from perdure.cli.bench.cluster.services import Services
from perdure.cli.bench.cluster.workbench import STORE, ClusterBench, Writer
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, per_second, side_by_side
from perdure.errors import PerdureError
from perdure.model.event import JSON, Event
from perdure.model.sequencing import Append, Head, Recorded, decide, first_chain
from perdure.recorder.buckets import BUCKET_EVENTS

PERDURE: Final = "perdure's recorder"
BATCHES: Final = "driver, batches"
BATCHES_AT_ONCE: Final = "driver, batches, TCP_NODELAY"
SINGLE: Final = "driver, one insert an event"
SINGLE_AT_ONCE: Final = "driver, one insert an event, TCP_NODELAY"
GENERATION: Final = 1


async def recorder(bench: ClusterBench) -> Measurement:
    """A backlog that the recorder takes up, beside the same rows written by the plain driver."""
    scale = bench.scale
    agents = [f"bench/agent-{number}" for number in range(scale.agents)]
    events = bench.events(scale.backlog)
    async with bench.place("recorder") as services:
        cluster = services.cluster
        session = await Session.connect(cluster)
        try:
            tables = await Tables.prepare(session, cluster.keyspace(GENERATION))
            table = CassandraEventTable(session, STORE, OneGeneration(tables))
            async with RawKafka(cluster, topic="events") as kafka, Told(cluster) as told:
                backlog = _Backlog(services, kafka, told, table)
                backlog.prepare(agents, events)
                with connected(cluster) as drivers:
                    contenders = _contenders(bench, backlog, drivers, agents, events)
                    total = scale.rounds * len(contenders)
                    tick = bench.base.begin("the recorder and its backlog", total)
                    done = await side_by_side(contenders, rounds=scale.rounds, tick=tick)
        finally:
            await session.close()
    series = {name: Series.of(name, "events/s", per_second(work)) for name, work in done.items()}
    batches = _faster(series[BATCHES], series[BATCHES_AT_ONCE])
    single = _faster(series[SINGLE], series[SINGLE_AT_ONCE])
    ratios = [
        Ratio.between(
            series[PERDURE],
            batches,
            label="recorder, Kafka to rows, of the driver's batches of the same rows",
            bound="at least",
            target=0.7,
        ),
        Ratio.between(
            series[PERDURE],
            single,
            label="recorder, Kafka to rows, of one insert an event",
            bound="at least",
            target=5,
        ),
    ]
    notes = [
        (
            f"a backlog of {scale.backlog:,} events of {scale.agents} agents, a record each;"
            " timed from when the recorder, a process of its own, goes on, until its journal tells"
            " of the last"
        ),
        "that it does when the row can be read; each agent's head is looked at then, untimed",
        (
            "a row is the event, its places by type and time and by id, and a part of the head: the"
            " same tables and columns for all"
        ),
        (
            f"the driver writes batches of {ROWS_A_BATCH} events, many under way; the faster of its"
            " two connections counts (with TCP_NODELAY and without)"
        ),
        "one insert an event writes no index and no head, many under way",
    ]
    return Measurement(
        "recorder", "Kafka to rows that can be queried", list(series.values()), ratios, notes
    )


class _Backlog:
    """Records that wait while the recorder stands still, and how long it takes to record them."""

    def __init__(
        self,
        services: Services,
        kafka: RawKafka,
        told: Told,
        table: CassandraEventTable,
    ) -> None:
        self._services = services
        self._kafka = kafka
        self._told = told
        self._table = table
        self._events: Sequence[tuple[str, dict[str, JSON]]] = ()
        self._writer = Writer(())
        self._wanted: dict[str, int] = {}

    def prepare(self, agents: Sequence[str], events: Sequence[tuple[str, dict[str, JSON]]]) -> None:
        """Have each backlog be these events, of these agents by turns."""
        self._events = events
        self._writer = Writer(agents)
        self._wanted = dict.fromkeys(agents, 0)

    async def recorded(self) -> Work:
        """Have one backlog recorded."""
        records = list(self._writer.records(self._events))
        for agent, _ in zip(itertools.cycle(self._wanted), records, strict=False):
            self._wanted[agent] += 1
        with self._services.suspended("recorder"):
            await self._kafka.send(records)
            ends = await self._told.ends()
        started = time.perf_counter()
        await self._told.caught_up(ends)
        seconds = time.perf_counter() - started
        for agent, wanted in self._wanted.items():
            found = (await self._table.head(agent)).sequence
            if found != wanted:
                raise PerdureError(
                    f"{agent} has {found} events, not {wanted}",
                    hint="report this: it must not happen",
                )
        return Work(len(records), seconds)


def _contenders(
    bench: ClusterBench,
    backlog: _Backlog,
    drivers: tuple[RawCassandra, RawCassandra],
    agents: Sequence[str],
    events: Sequence[tuple[str, dict[str, JSON]]],
) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {PERDURE: backlog.recorded}
    names = ((BATCHES, SINGLE), (BATCHES_AT_ONCE, SINGLE_AT_ONCE))
    for driver, (in_batches, by_itself) in zip(drivers, names, strict=True):
        rows = Rows(agents)

        async def batches(driver: RawCassandra = driver, rows: Rows = rows) -> Work:
            return await asyncio.to_thread(driver.batches, rows.recorded(events))

        async def single(driver: RawCassandra = driver, rows: Rows = rows) -> Work:
            [stream] = rows.recorded(events[: bench.scale.inserts], one=True)
            return await asyncio.to_thread(driver.one_by_one, stream)

        contenders[in_batches] = batches
        contenders[by_itself] = single
    return contenders


class Rows:
    """What the recorder would store of events of agents, made without it."""

    def __init__(self, agents: Sequence[str]) -> None:
        self._writer = Writer(agents)
        self._heads = {agent: Head(agent, 0, 0, first_chain(agent), None, {}) for agent in agents}

    def recorded(
        self, events: Sequence[tuple[str, dict[str, JSON]]], *, one: bool = False
    ) -> list[tuple[str, int, list[Recorded]]]:
        """Of each agent (or of the first), the bucket, and events that follow those before."""
        agents = self._writer.agents[:1] if one else self._writer.agents
        appends: dict[str, list[Append]] = {agent: [] for agent in agents}
        for agent, event in zip(itertools.cycle(agents), events, strict=False):
            appends[agent].append(self._writer.append(agent, event))
        streams = []
        for agent, mine in appends.items():
            verdict = decide(
                self._heads[agent], mine, _Nothing(), now=_NEVER, new_id=_named, version_of=_first
            )
            self._heads[agent] = verdict.head
            bucket = (verdict.head.sequence - 1) // BUCKET_EVENTS
            streams.append((agent, bucket, verdict.new))
        return streams


class _Nothing:
    """`model.sequencing.Recall` where nothing was recorded before."""

    def by_id(self, agent: str, event_id: str) -> Event | None:  # noqa: ARG002 - there is none
        """None."""
        return None

    def by_writer(self, agent: str, writer: str, writer_sequence: int) -> Event | None:  # noqa: ARG002
        """None."""
        return None

    def last_of(self, agent: str, writer: str) -> int:  # noqa: ARG002
        """Nothing."""
        return 0


_NEVER: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _named() -> NoReturn:
    raise PerdureError("an event has no id", hint="report this")


def _first(event_type: str) -> int:  # noqa: ARG001 - all are of the first version
    return 1


def _faster(one: Series, other: Series) -> Series:
    return max(one, other, key=lambda series: series.median)
