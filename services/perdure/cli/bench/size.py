"""Bytes on disk of all runs, every past state restorable, beside their messages as plain JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from perdure.agent.connect import connect
from perdure.cli.bench import peers
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.workbench import Workbench
from perdure.cli.recorded_runs import add
from perdure.model.event import JSON
from perdure.model.runs import Run, run_events

PERDURE: Final = "perdure"
RAW: Final = "messages as JSON"
WITHOUT: Final = ", without system prompts"


async def size(bench: Workbench) -> Measurement:
    """The whole folder of a closed store, and the peers' files, of the messages' compact JSON."""
    folder = bench.new_folder("size")
    bare = [_without_system(run) for run in bench.runs]
    tick = bench.begin("bytes on disk", 2 + 3)
    series = [
        _series(RAW, _raw(bench.runs)),
        _series(PERDURE, await _perdure(folder / "whole", bench.runs)),
    ]
    tick()
    series += [
        _series(RAW + WITHOUT, _raw(bare)),
        _series(PERDURE + WITHOUT, await _perdure(folder / "bare", bare)),
    ]
    tick()
    others = [_series(who, count) for who, count in _peers(bench, bench.runs)]
    ratios = [
        Ratio.between(
            series[1],
            series[0],
            label="bytes on disk, of the messages' JSON",
            bound="at most",
            target=0.8,
            peers=others,
        ),
        Ratio.between(
            series[3],
            series[2],
            label="the same without the system prompt that all runs share",
        ),
    ]
    notes = [
        "no dictionary is trained, on these runs or others: each agent compresses by itself",
        "perdure's folder also holds tool calls and answers as events of their own, tasks, ids",
        "and times, the hash chain and indexes; it is closed: no write-ahead log is left",
    ]
    return Measurement(
        "size", "bytes on disk, every past state restorable", [*series, *others], ratios, notes
    )


def _series(who: str, count: int) -> Series:
    return Series.of(who, "bytes", [float(count)])


def _raw(runs: Sequence[Run]) -> int:
    return sum(len(msgspec.json.encode(list(run.messages))) for run in runs)


async def _perdure(folder: Path, runs: Sequence[Run]) -> int:
    async with connect(folder) as store:
        for number, run in enumerate(runs):
            await add(store, f"bench/{number}", run_events(run))
    return on_disk(folder)


def _peers(bench: Workbench, runs: Sequence[Run]) -> list[tuple[str, int]]:
    found = []
    if peers.has_eventsourcing():
        from perdure.cli.bench.peer_eventsourcing import EventSourced

        folder = bench.new_folder("size/eventsourcing")
        sourced = EventSourced(folder)
        for run in runs:
            sourced.keep(run.messages)
        sourced.close()
        found.append((peers.EVENTSOURCING, on_disk(folder)))
    if peers.has_langgraph():
        from perdure.cli.bench.peer_langgraph import Graphs, has_delta_channel

        for who in (peers.LANGGRAPH, peers.LANGGRAPH_DELTA)[: 1 + has_delta_channel()]:
            folder = bench.new_folder(f"size/{who}")
            graphs = Graphs(folder, delta=who == peers.LANGGRAPH_DELTA)
            for number, run in enumerate(runs):
                graphs.add(str(number), run.messages)
            graphs.close()
            found.append((who, on_disk(folder)))
    return found


def on_disk(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _without_system(run: Run) -> Run:
    messages: list[dict[str, JSON]] = [
        message for message in run.messages if message["role"] != "system"
    ]
    return Run(run.task, run.trial, run.name, messages, run.attributes)
