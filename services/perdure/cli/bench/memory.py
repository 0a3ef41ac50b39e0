"""Process memory while a million events are imported and read: a curve that must stay flat.

Each kind of work runs in a process of its own, which is watched from outside.
"""

import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from perdure.cli.bench import reader
from perdure.cli.bench.result import Curve, Measurement, Ratio, Series
from perdure.cli.bench.workbench import Workbench
from perdure.errors import PerdureError
from perdure.model.runs import run_events

SECONDS_BETWEEN: Final = 0.1
"""Between two looks at a process."""
GROWTH_MAX: Final = 1.25
"""Memory in the last quarter of the time, of that in the second: what counts as bounded."""
SAMPLES_MIN: Final = 20
"""Looks that are enough to say whether it grows."""
READER: Final = reader.__name__


async def memory(bench: Workbench) -> Measurement:
    """The curves of importing, of iterating over events, and of folding."""
    count = bench.scale.memory
    file, events, size = _write_runs(bench, count)
    tick = bench.begin(f"memory while {count:,} events go in and out", 3)
    base = await _base(bench)
    curves = [await _watched(f"importing {events:,} events", _import(bench, file), size, base)]
    file.unlink()
    tick()
    folder, name = await bench.long_agent(count)
    handled = count * _event_bytes(bench)
    for mode, what in (("events", "iterating over"), ("fold", "folding")):
        arguments = ["-m", READER, mode, str(folder), name]
        curves.append(await _watched(f"{what} {count:,} events", arguments, handled, base))
        tick()
    series, ratios = [], []
    for curve in curves:
        early, late = _quarters(curve.resident)
        before = Series.of(f"{curve.who}, second quarter", "bytes", [early])
        after = Series.of(f"{curve.who}, last quarter", "bytes", [late])
        series += [before, after]
        enough = len(curve.resident) >= SAMPLES_MIN
        ratios.append(
            Ratio.between(
                after,
                before,
                label=f"memory while {curve.who}: last quarter, of the second",
                bound="at most" if enough else None,
                target=GROWTH_MAX if enough else None,
            )
        )
    notes = [
        f"resident memory, looked at from outside every {SECONDS_BETWEEN * 1000:.0f} ms",
        "bounded: it has stopped growing; the last quarter of the time is as the second was",
    ]
    if any(len(curve.resident) < SAMPLES_MIN for curve in curves):
        notes.append("some of it was over too soon to say whether memory grows: leave --quick out")
    return Measurement(
        "memory", f"process memory with {count:,} events", series, ratios, notes, curves
    )


def _write_runs(bench: Workbench, count: int) -> tuple[Path, int, int]:
    """A file of recorded runs that make so many events or a few more: its events and bytes."""
    file = bench.folder / "many-runs.jsonl"
    events = 0
    with file.open("wb") as target:
        for trial, run in enumerate(itertools.cycle(bench.runs)):
            line = {**run.attributes, "task_id": run.task or "0", "trial": trial}
            target.write(msgspec.json.encode({**line, "messages": list(run.messages)}) + b"\n")
            events += len(run_events(run))
            if events >= count:
                break
    return file, events, file.stat().st_size


def _import(bench: Workbench, file: Path) -> list[str]:
    store = str(bench.folder / "imported")
    return ["-m", "perdure", "import", str(file), "--namespace", "bench", "--store", store]


def _event_bytes(bench: Workbench) -> int:
    return len(next(bench.texts()).encode())


async def _base(bench: Workbench) -> int:
    """What a process has that has opened an empty store and done nothing else."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", READER, "base", str(bench.new_folder("empty")), "bench/none"),
        stdout=subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return int(said)


async def _watched(who: str, arguments: Sequence[str], handled: int, base: int) -> Curve:
    """Run Python with these arguments and look at its memory until it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seconds: list[float] = []
    looks: list[int] = []
    started = time.perf_counter()
    ended = asyncio.create_task(process.communicate())
    while not ended.done():
        if now := reader.resident(process.pid):
            seconds.append(round(time.perf_counter() - started, 3))
            looks.append(now)
        await asyncio.wait({ended}, timeout=SECONDS_BETWEEN)
    _, said = await ended
    if process.returncode:
        raise PerdureError(
            f"{who} failed: {said.decode(errors='replace').strip()[-500:]}",
            hint="try with less: --quick",
        )
    if not looks:
        seconds, looks = [0.0], [base]  # over before the first look
    return Curve(who, base, max(looks), handled, seconds, looks)


def _quarters(looks: Sequence[int]) -> tuple[float, float]:
    """The median of the second quarter of the looks, and of the last.

    >>> _quarters([1, 1, 5, 5, 6, 6, 7, 7])
    (5.0, 7.0)
    """
    quarter = max(1, len(looks) // 4)
    return (
        float(statistics.median(looks[quarter : 2 * quarter] or looks)),
        float(statistics.median(looks[-quarter:])),
    )
