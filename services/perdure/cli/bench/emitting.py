"""Writing: one awaited event at a time, many at the same time, and many in one call."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from perdure.agent.agent import Agent
from perdure.agent.connect import connect
from perdure.cli.bench import peers
from perdure.cli.bench.raw import ROWS_A_COMMIT, RawSqlite
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, per_second, side_by_side
from perdure.cli.bench.workbench import Workbench
from perdure.model.event import JSON

PERDURE: Final = "perdure"
CONCURRENT: Final = "perdure, 64 concurrent emits"
MANY: Final = "perdure, emit_many of 100"
RAW: Final = "raw SQLite"
AT_ONCE: Final = 64
PUTS: Final = 100
"""SqliteSaver's puts in a slice of a burst: they are slow, and their rate is what counts."""

_WAL_FULL = "all with a write-ahead log and synchronous=FULL, read back from each connection"
_SLICES = (
    "each slice of perdure's and eventsourcing's is an agent of its own, opened before and closed"
    " after; one of some 1 MB, as here, saves its state when it is closed"
)

Messages = Iterator[dict[str, JSON]]


async def one(bench: Workbench) -> Measurement:
    """One awaited `emit` at a time, beside one-row commits."""
    count, scale = bench.scale.emits, bench.scale
    folder = bench.new_folder("one")
    messages = bench.messages()
    raw = RawSqlite(folder / "raw.db", bench.bodies())
    with ExitStack() as stack:
        stack.callback(raw.close)
        async with connect(folder / "store") as store:
            names = _names("one")

            async def emit() -> Work:
                async with await store.agent(next(names)) as agent:
                    return await _one_by_one(agent, messages, count)

            async def insert() -> Work:
                return raw.one_by_one(count)

            contenders: dict[str, Contender] = {PERDURE: emit, RAW: insert}
            contenders |= _peers_one_by_one(bench, stack, messages)
            tick = bench.begin("one emit at a time", scale.rounds * scale.slices * len(contenders))
            done = await side_by_side(
                contenders, rounds=scale.rounds, slices=scale.slices, tick=tick
            )
    series = {name: Series.of(name, "events/s", per_second(work)) for name, work in done.items()}
    others = [one for name, one in series.items() if name not in {PERDURE, RAW}]
    ratio = Ratio.between(
        series[PERDURE],
        series[RAW],
        label="one awaited emit at a time, of one-row commits",
        bound="at least",
        target=0.75,
        peers=others,
    )
    return Measurement(
        "one", "one awaited emit at a time", list(series.values()), [ratio], [_WAL_FULL, _SLICES]
    )


async def burst(bench: Workbench) -> Measurement:
    """64 concurrent emits, and `emit_many`, beside commits of 100 rows."""
    count, scale = bench.scale.burst, bench.scale
    folder = bench.new_folder("burst")
    messages = bench.messages()
    raw = RawSqlite(folder / "raw.db", bench.bodies())
    with ExitStack() as stack:
        stack.callback(raw.close)
        async with connect(folder / "store") as store:
            names = _names("burst")

            async def emit_concurrently() -> Work:
                async with await store.agent(next(names)) as agent:
                    return await _concurrently(agent, messages, count)

            async def emit_many() -> Work:
                async with await store.agent(next(names)) as agent:
                    return await _many(agent, messages, count)

            async def insert() -> Work:
                return raw.hundreds(count)

            contenders: dict[str, Contender] = {
                CONCURRENT: emit_concurrently,
                RAW: insert,
                MANY: emit_many,
            }
            contenders |= _peers_in_bursts(bench, stack, messages)
            tick = bench.begin("bursts of emits", scale.rounds * scale.slices * len(contenders))
            done = await side_by_side(
                contenders, rounds=scale.rounds, slices=scale.slices, tick=tick
            )
    series = {name: Series.of(name, "events/s", per_second(work)) for name, work in done.items()}
    return Measurement(
        "burst",
        "64 concurrent emits, and emit_many",
        list(series.values()),
        _burst_ratios(series),
        [
            _WAL_FULL,
            _SLICES,
            "SqliteSaver puts one checkpoint of the conversation so far a message",
        ],
    )


def _burst_ratios(series: dict[str, Series]) -> list[Ratio]:
    others = [one for name, one in series.items() if name == peers.EVENTSOURCING]
    ratios = [
        Ratio.between(
            series[who],
            series[RAW],
            label=f"{what}, of 100 rows a commit",
            bound="at least",
            target=target,
            peers=others,
        )
        for who, what, target in (
            (CONCURRENT, "64 concurrent emits", 0.35),
            (MANY, "emit_many of 100", 0.5),
        )
    ]
    if peers.SQLITE_SAVER in series:
        ratios += [
            Ratio.between(
                series[who],
                series[peers.SQLITE_SAVER],
                label=f"{what}, of SqliteSaver's puts",
                bound="at least",
                target=10,
            )
            for who, what in ((CONCURRENT, "64 concurrent emits"), (MANY, "emit_many of 100"))
        ]
    return ratios


def _names(kind: str) -> Iterator[str]:
    """An agent for each slice: a thousand messages are a long conversation, a million none."""
    return (f"bench/{kind}-{number}" for number in itertools.count())


async def _one_by_one(agent: Agent, messages: Messages, count: int) -> Work:
    some = list(itertools.islice(messages, count))
    started = time.perf_counter()
    for message in some:
        await agent.emit("message.added", message)
    return Work(count, time.perf_counter() - started)


async def _concurrently(agent: Agent, messages: Messages, count: int) -> Work:
    some = list(itertools.islice(messages, count))
    started = time.perf_counter()
    for at in range(0, count, AT_ONCE):
        await asyncio.gather(
            *[agent.emit("message.added", message) for message in some[at : at + AT_ONCE]]
        )
    return Work(count, time.perf_counter() - started)


async def _many(agent: Agent, messages: Messages, count: int) -> Work:
    some = list(itertools.islice(messages, count))
    started = time.perf_counter()
    for at in range(0, count, ROWS_A_COMMIT):
        await agent.emit_many(
            [("message.added", message) for message in some[at : at + ROWS_A_COMMIT]]
        )
    return Work(count, time.perf_counter() - started)


def _peers_one_by_one(
    bench: Workbench, stack: ExitStack, messages: Messages
) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {}
    # A peer takes several times as long: fewer of its events make the same rate.
    count = max(1, bench.scale.emits // 4)
    if peers.has_eventsourcing():
        from perdure.cli.bench.peer_eventsourcing import EventSourced

        sourced = EventSourced(bench.new_folder("one/eventsourcing"))
        stack.callback(sourced.close)

        async def save() -> Work:
            return sourced.one_by_one(list(itertools.islice(messages, count)))

        contenders[peers.EVENTSOURCING] = save
    if peers.has_langgraph():
        from perdure.cli.bench.peer_langgraph import Saver

        saver = Saver(bench.new_folder("one/saver"), [run.messages for run in bench.runs])
        stack.callback(saver.close)

        async def put() -> Work:
            return saver.puts(count)

        contenders[peers.SQLITE_SAVER] = put
    return contenders


def _peers_in_bursts(
    bench: Workbench, stack: ExitStack, messages: Messages
) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {}
    if peers.has_eventsourcing():
        from perdure.cli.bench.peer_eventsourcing import EventSourced

        sourced = EventSourced(bench.new_folder("burst/eventsourcing"))
        stack.callback(sourced.close)

        async def save() -> Work:
            some = list(itertools.islice(messages, bench.scale.burst))
            return sourced.in_groups(some, ROWS_A_COMMIT)

        contenders[peers.EVENTSOURCING] = save
    if peers.has_langgraph():
        from perdure.cli.bench.peer_langgraph import Saver

        saver = Saver(bench.new_folder("burst/saver"), [run.messages for run in bench.runs])
        stack.callback(saver.close)

        async def put() -> Work:
            return saver.puts(PUTS)

        contenders[peers.SQLITE_SAVER] = put
    return contenders
