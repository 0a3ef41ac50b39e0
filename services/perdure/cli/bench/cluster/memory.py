"""Memory of each service while the number of agents grows a hundredfold: it must stay flat."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from perdure.cli.bench.cluster.progress import Progress
from perdure.cli.bench.cluster.raw_kafka import RawKafka
from perdure.cli.bench.cluster.services import Services
from perdure.cli.bench.cluster.workbench import ClusterBench, Writer
from perdure.cli.bench.memory import GROWTH_MAX, SECONDS_BETWEEN
from perdure.cli.bench.result import Curve, Measurement, Ratio, Series
from perdure.kafka.wire import Wire
from perdure.model.event import JSON

NAMES: Final = ("recorder", "checkpointer", "memorizer", "projector", "gateway")
SOURCES: Final = {
    "recorder": "events",
    "checkpointer": "journal",
    "memorizer": "journal",
    "projector": "journal",
}
"""What each service reads; the gateway, which has no group, keeps pace with the recorder."""

AGENTS_AT_ONCE: Final = 1_000
EVENTS_EACH: Final = 2
MEMORY_EVERY: Final = 100
"""One agent of so many stores a memory."""
NAMESPACES: Final = 16


async def memory(bench: ClusterBench) -> Measurement:
    """The curves of all services while agents come, and what they have at some counts of them."""
    counts = bench.scale.counts
    at_counts: dict[str, list[int]] = {name: [] for name in NAMES}
    events, size, sofar = bench.events(EVENTS_EACH), 0, 0
    steps = sum(-(-count // AGENTS_AT_ONCE) for count in _steps(counts))
    tick = bench.base.begin(f"memory of services with up to {counts[-1]:,} agents", steps)
    async with (
        bench.place(*NAMES) as services,
        _watched(services) as looks,
        RawKafka(services.cluster, topic="events") as kafka,
        Progress(services.cluster) as progress,
    ):
        for count in counts:
            for first in range(sofar, count, AGENTS_AT_ONCE):
                agents = range(first, min(count, first + AGENTS_AT_ONCE))
                size += await _write(kafka, agents, events)
                for service, kind in SOURCES.items():
                    await progress.caught_up(service, kind)
                tick()
            sofar = count
            for name, now in services.resident().items():
                at_counts[name].append(now)
    curves = [
        Curve(
            f"the {name} meets {counts[-1]:,} agents",
            looks.resident[name][0],
            max(looks.resident[name]),
            size,
            looks.seconds,
            looks.resident[name],
        )
        for name in NAMES
    ]
    series, ratios = [], []
    for name, found in at_counts.items():
        of_each = [
            Series.of(f"{name} with {count:,} agents", "bytes", [float(now)])
            for count, now in zip(counts, found, strict=True)
        ]
        series += of_each
        for one, before, count in zip(of_each[:0:-1], of_each[-2::-1], counts[:0:-1], strict=True):
            last = count == counts[-1]
            ratios.append(
                Ratio.between(
                    one,
                    before,
                    label=f"memory of the {one.who}, of {before.who.removeprefix(name + ' ')}",
                    bound="at most" if last else None,
                    target=GROWTH_MAX if last else None,
                )
            )
    notes = [
        (
            f"each agent writes {EVENTS_EACH} events, one of {MEMORY_EVERY} stores a memory too;"
            " looked at when every service has caught up"
        ),
        "resident memory of processes that were started for this, from outside",
    ]
    return Measurement(
        "memory", f"memory of services, up to {counts[-1]:,} agents", series, ratios, notes, curves
    )


def _steps(counts: tuple[int, ...]) -> list[int]:
    """How many agents come at each count."""
    return [count - before for before, count in zip((0, *counts), counts, strict=False)]


async def _write(kafka: RawKafka, numbers: range, events: list[tuple[str, dict[str, JSON]]]) -> int:
    """Have new agents write; how many bytes."""
    records: list[Wire] = []
    for number in numbers:
        writer = Writer([f"bench-{number % NAMESPACES}/agent-{number}"])
        records += writer.records(events)
        if number % MEMORY_EVERY == 0:
            records += writer.records(
                [("memory.stored", {"text": f"Agent {number} prefers an aisle seat."})]
            )
    await kafka.send(records)
    return sum(len(record.value) for record in records)


@dataclass
class _Looks:
    """Resident memory of each service, and at which seconds."""

    seconds: list[float] = field(default_factory=list)
    resident: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in NAMES})


@asynccontextmanager
async def _watched(services: Services) -> AsyncIterator[_Looks]:
    """Look at all services again and again while the block runs."""
    looks = _Looks()
    started = time.perf_counter()

    async def look() -> None:
        while True:
            looks.seconds.append(round(time.perf_counter() - started, 3))
            for name, now in services.resident().items():
                looks.resident[name].append(now)
            await asyncio.sleep(SECONDS_BETWEEN)

    looking = asyncio.create_task(look())
    try:
        await asyncio.sleep(0)  # one look at least
        yield looks
    finally:
        looking.cancel()
