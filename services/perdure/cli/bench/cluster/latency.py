"""From an emit to a state that can be read, beside one trip through each raw engine."""

import statistics
import time
from typing import Final

import aiohttp

from perdure.agent.connect import connect
from perdure.cli.bench.cluster.http import state_of
from perdure.cli.bench.cluster.raw_cassandra import connected
from perdure.cli.bench.cluster.raw_kafka import RawKafka
from perdure.cli.bench.cluster.recording import Rows
from perdure.cli.bench.cluster.workbench import STORE, ClusterBench, Writer
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, milliseconds, side_by_side
from perdure.errors import PerdureError

RECORDED: Final = 'perdure, emit with ack="recorded"'
READ: Final = "perdure, the same and its state over HTTP"
TRIP: Final = "Kafka round trip"
WRITE: Final = "Cassandra write"
BESIDE: Final = "one raw round trip and one raw write"


async def latency(bench: ClusterBench) -> Measurement:
    """One emit at a time until its state can be read, beside raw Kafka and raw Cassandra."""
    scale = bench.scale
    events = bench.events(scale.samples)
    name, raw_name = "bench/latency", "bench/raw"
    async with (
        bench.place("recorder", "gateway") as services,
        connect(services.url) as store,
        RawKafka(services.cluster) as kafka,
        aiohttp.ClientSession() as client,
        await store.agent(name) as agent,
    ):
        with connected(services.cluster) as (_, driver):
            rows, writer = Rows([raw_name]), Writer([raw_name])

            async def recorded() -> Work:
                seconds = []
                for kind, data in events:
                    started = time.perf_counter()
                    event = await agent.emit(kind, data, ack="recorded")
                    seconds.append(time.perf_counter() - started)
                    found, _ = await state_of(client, services.gateway, STORE, name)
                    _check(found, event.sequence)
                return Work(1, statistics.median(seconds))

            async def read() -> Work:
                seconds = []
                for kind, data in events:
                    started = time.perf_counter()
                    event = await agent.emit(kind, data, ack="recorded")
                    found, _ = await state_of(client, services.gateway, STORE, name)
                    seconds.append(time.perf_counter() - started)
                    _check(found, event.sequence)
                return Work(1, statistics.median(seconds))

            async def trip() -> Work:
                seconds = await kafka.round_trips(list(writer.records(events)))
                return Work(1, statistics.median(seconds))

            async def write() -> Work:
                [(_, bucket, new)] = rows.recorded(events)
                seconds = [driver.write(raw_name, bucket, row) for row in new]
                return Work(1, statistics.median(seconds))

            contenders: dict[str, Contender] = {
                RECORDED: recorded,
                TRIP: trip,
                WRITE: write,
                READ: read,
            }
            total = scale.rounds * len(contenders)
            tick = bench.base.begin("emit to readable state", total)
            done = await side_by_side(contenders, rounds=scale.rounds, tick=tick)
    series = {who: Series.of(who, "ms", milliseconds(work)) for who, work in done.items()}
    both = [a + b for a, b in zip(series[TRIP].rounds, series[WRITE].rounds, strict=True)]
    beside = Series.of(BESIDE, "ms", both)
    ratios = [
        Ratio.between(
            series[RECORDED],
            beside,
            label="emit to readable state, of a raw Kafka round trip and a raw Cassandra write",
            bound="at most",
            target=3,
        ),
        Ratio.between(series[READ], beside, label="the same with reading the state over HTTP"),
    ]
    notes = [
        (
            'one event at a time with ack="recorded": it returns when its row can be read;'
            " every state that was read right after it had the event"
        ),
        "a round trip: from send to having the record from a consumer that waits for it",
        "a write: one insert of the same event, by the plain driver with TCP_NODELAY",
    ]
    return Measurement(
        "latency", "emit to readable state", [*series.values(), beside], ratios, notes
    )


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise PerdureError(
            f"the state is that after {found}, not after {wanted}",
            hint="report this: it must not happen",
        )
