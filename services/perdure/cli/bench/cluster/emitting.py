"""Writing to Kafka: emits of one agent and of many, beside aiokafka's own two calls."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from perdure.agent.agent import Agent
from perdure.agent.connect import connect
from perdure.agent.store import Store
from perdure.cli.bench.cluster.raw_kafka import IN_FLIGHT, RawKafka
from perdure.cli.bench.cluster.services import Services
from perdure.cli.bench.cluster.workbench import ClusterBench, Writer
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, per_second, side_by_side
from perdure.model.event import JSON

SENT: Final = 'perdure, ack="sent"'
ONE: Final = "perdure, one agent"
MANY: Final = "perdure, many agents"
BURST: Final = "perdure, emit_many of 100"
AT_WORK: Final = "perdure, one agent, the recorder at work"
RAW_SENT: Final = "aiokafka send"
RAW_ONE: Final = "aiokafka send_and_wait, one key"
RAW_MANY: Final = "aiokafka send_and_wait, many keys"
EVENTS_A_BURST: Final = 100

Events = Sequence[tuple[str, dict[str, JSON]]]
Emitting = Callable[[Sequence[Agent], Events], Awaitable[None]]


async def emit(bench: ClusterBench) -> Measurement:
    """Emits, many in flight, beside raw sends of the same bytes."""
    scale = bench.scale
    events = bench.events(scale.emits)
    many = [f"bench/raw-{number}" for number in range(scale.agents)]
    raw_one = list(Writer(many[:1]).records(events))
    raw_many = list(Writer(many).records(events))
    async with (
        bench.place("recorder", "gateway") as services,
        connect(services.url) as store,
        RawKafka(services.cluster) as raw,
    ):
        emitting = _Emitting(services, store, events)

        def ours(count: int, how: Emitting, *, still: bool = True) -> Contender:
            return lambda: emitting.slice(count, how, still=still)

        contenders: dict[str, Contender] = {
            SENT: ours(1, _sent),
            RAW_SENT: lambda: raw.send(raw_one),
            ONE: ours(1, _each),
            RAW_ONE: lambda: raw.send_and_wait(raw_one),
            MANY: ours(scale.agents, _each),
            RAW_MANY: lambda: raw.send_and_wait(raw_many),
            BURST: ours(1, _bursts),
            AT_WORK: ours(1, _each, still=False),
        }
        total = scale.rounds * scale.slices * len(contenders)
        tick = bench.base.begin("emits, many in flight", total)
        done = await side_by_side(contenders, rounds=scale.rounds, slices=scale.slices, tick=tick)
    series = {name: Series.of(name, "events/s", per_second(work)) for name, work in done.items()}
    return Measurement(
        "emit",
        "emits, many in flight",
        list(series.values()),
        _ratios(series),
        [
            (
                f"both with acks=all, idempotent, no linger, batches of 512 kB; {IN_FLIGHT:,} in"
                " flight"
            ),
            "sent are the same keys, values and headers; perdure makes them, aiokafka has them",
            (
                'ack="sent" and send return when the record is on its way; the time ends when all'
                " are acknowledged"
            ),
            (
                "the others return when the record is acknowledged, send_and_wait as well: each"
                " call is a task of its own"
            ),
            f"many agents: {scale.agents}, in all partitions; each slice's are opened before it",
            (
                "the recorder is suspended while a slice is timed and catches up after it, so that"
                " both have the same processors; the last line is without that"
            ),
        ],
    )


def _ratios(series: dict[str, Series]) -> list[Ratio]:
    def ratio(of: str, to: str, label: str, target: float | None) -> Ratio:
        bound: Final = "at least" if target is not None else None
        return Ratio.between(series[of], series[to], label=label, bound=bound, target=target)

    return [
        ratio(SENT, RAW_SENT, 'emit with ack="sent", of aiokafka\'s send', 0.8),
        ratio(ONE, RAW_ONE, "emit of one agent, of aiokafka's send_and_wait", 0.8),
        ratio(MANY, RAW_MANY, "emit of many agents, of aiokafka's send_and_wait", 0.8),
        ratio(BURST, RAW_SENT, "emit_many of 100, of aiokafka's send", 1.0),
        ratio(ONE, RAW_SENT, "emit of one agent, of aiokafka's send", None),
        ratio(
            AT_WORK,
            RAW_ONE,
            "emit of one agent while the recorder works, of aiokafka's send_and_wait",
            None,
        ),
    ]


class _Emitting:
    """Slices of emits, each of agents of its own."""

    def __init__(self, services: Services, store: Store, events: Events) -> None:
        self._services = services
        self._store = store
        self._events = events
        self._names: Iterator[str] = (f"bench/agent-{number}" for number in itertools.count())

    async def slice(self, count: int, how: Emitting, *, still: bool) -> Work:
        """One slice, in which so many agents emit the events."""
        names = list(itertools.islice(self._names, count))
        agents = await asyncio.gather(*(self._store.agent(name) for name in names))
        if still:
            self._services.suspend("recorder")
        started = time.perf_counter()
        try:
            await how(agents, self._events)
            seconds = time.perf_counter() - started
        finally:
            self._services.resume("recorder")
        await asyncio.gather(*(agent.close() for agent in agents))  # when all is recorded
        return Work(len(self._events), seconds)


async def _sent(agents: Sequence[Agent], events: Events) -> None:
    """Each event by itself, on its way when its call returns; the last one waits for all."""
    turns = itertools.cycle(agents)
    for at in range(0, len(events), IN_FLIGHT):
        *some, last = events[at : at + IN_FLIGHT]
        for kind, data in some:
            await next(turns).emit(kind, data, ack="sent")
        kind, data = last
        await next(turns).emit(kind, data, ack="durable")


async def _each(agents: Sequence[Agent], events: Events) -> None:
    """Each event by itself, the agents by turns."""
    turns = itertools.cycle(agents)
    for at in range(0, len(events), IN_FLIGHT):
        await asyncio.gather(
            *[
                next(turns).emit(kind, data, ack="durable")
                for kind, data in events[at : at + IN_FLIGHT]
            ]
        )


async def _bursts(agents: Sequence[Agent], events: Events) -> None:
    """Events in groups, each a call and a record."""
    turns = itertools.cycle(agents)
    for at in range(0, len(events), IN_FLIGHT):
        some = events[at : at + IN_FLIGHT]
        await asyncio.gather(
            *[
                next(turns).emit_many(some[first : first + EVENTS_A_BURST], ack="durable")
                for first in range(0, len(some), EVENTS_A_BURST)
            ]
        )
