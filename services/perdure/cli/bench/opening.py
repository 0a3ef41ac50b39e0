"""Opening agents of very different lengths, beside decoding the bytes of their state."""

import itertools
import statistics
import time
from typing import Final

import zstandard

from perdure.agent.connect import connect
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, milliseconds, side_by_side
from perdure.cli.bench.workbench import RECORDS, Workbench, record
from perdure.model.projection import DEFAULT

OPENINGS: Final = 9
"""Of each agent in a round; the median counts, on both sides."""
WARM_UP: Final = "bench/warm-up"
BESIDE: Final = "bench/beside"
EVENTS_BETWEEN: Final = 37
"""Events between two openings, so that they meet long and short tails after the checkpoint."""


async def opening(bench: Workbench) -> Measurement:
    """`store.agent(name)` at each length, beside zstd and JSON decoding of its state's bytes."""
    contenders: dict[str, Contender] = {}
    sizes = []
    for length in bench.scale.lengths:
        ours, theirs, size = await _contenders(bench, length)
        contenders[f"perdure, {length:,} events"] = ours
        contenders[f"decoding, {length:,} events"] = theirs
        sizes.append(size)
    rounds = bench.scale.rounds
    tick = bench.begin("opening agents", rounds * len(contenders))
    done = await side_by_side(contenders, rounds=rounds, tick=tick)
    series = {name: Series.of(name, "ms", milliseconds(work)) for name, work in done.items()}
    ratios = [
        Ratio.between(
            series[f"perdure, {length:,} events"],
            series[f"decoding, {length:,} events"],
            label=f"opening an agent of {length:,} events, of decoding its state",
            bound="at most",
            target=1.5,
        )
        for length in bench.scale.lengths
    ]
    shortest, longest = bench.scale.lengths[0], bench.scale.lengths[-1]
    ratios.append(
        Ratio.between(
            series[f"perdure, {longest:,} events"],
            series[f"perdure, {shortest:,} events"],
            label=f"the same, {longest:,} events to {shortest:,} (flat is 1)",
        )
    )
    notes = [
        f"each agent's state is {RECORDS:,} records, put anew again and again: "
        + ", ".join(f"{size:,}" for size in sizes)
        + " bytes of JSON",
        "opening: claim (its commit is synced with the first write), read, decode, fold the tail",
        "nothing of the agent is cached",
        f"{EVENTS_BETWEEN} events are written before each, so that tails are short and long",
        "decoding is of the state's bytes in memory (zstd, then JSON)",
        "before it as much is written and connected as before opening, so that memory is as warm",
    ]
    return Measurement(
        "open",
        "opening an agent, at any length of its history",
        list(series.values()),
        ratios,
        notes,
    )


async def _contenders(bench: Workbench, length: int) -> tuple[Contender, Contender, int]:
    folder, name = await bench.long_agent(length)
    texts = bench.texts()
    numbers = itertools.count(length)
    async with connect(folder) as store:
        encoded = DEFAULT.encode(await store.view(name).state_at())
    packed = zstandard.ZstdCompressor(level=1).compress(encoded)

    async def write(to: str) -> None:
        async with connect(folder) as store:
            await store.emit_many(
                to,
                [("record.put", record(next(numbers), next(texts))) for _ in range(EVENTS_BETWEEN)],
            )

    async def ours() -> Work:
        seconds = []
        for _ in range(OPENINGS):
            await write(name)
            async with connect(folder) as store:
                # A store's first write makes the write-ahead log: that is not this agent's.
                await store.agent(WARM_UP)
                started = time.perf_counter()
                agent = await store.agent(name)
                seconds.append(time.perf_counter() - started)
                await agent.close()
        return Work(1, statistics.median(seconds))

    async def theirs() -> Work:
        seconds = []
        for _ in range(OPENINGS):
            # In the same surroundings as the opening: what was done just before makes a difference
            # of a fifth to decoding (memory that is or isn't at hand).
            await write(BESIDE)
            async with connect(folder) as store:
                await store.agent(WARM_UP)
                started = time.perf_counter()
                state = DEFAULT.decode(zstandard.ZstdDecompressor().decompress(packed))
                seconds.append(time.perf_counter() - started)
                del state
        return Work(1, statistics.median(seconds))

    return ours, theirs, len(encoded)
