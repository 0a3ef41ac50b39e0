"""What is measured of a cluster, one after the other."""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from perdure.cli.bench import machine
from perdure.cli.bench.cluster import emitting, engines, latency, memory, recording, states
from perdure.cli.bench.cluster.workbench import FULL, QUICK, ClusterBench, ClusterScale
from perdure.cli.bench.result import Measurement
from perdure.cli.bench.rounds import Tick
from perdure.cli.bench.workbench import QUICK as SIZES
from perdure.cli.bench.workbench import Workbench
from perdure.model.runs import Run
from perdure.settings import Cluster

MEASUREMENTS: Final[dict[str, Callable[[ClusterBench], Awaitable[Measurement]]]] = {
    "emit": emitting.emit,
    "recorder": recording.recorder,
    "latency": latency.latency,
    "demand": states.demand,
    "rebuild": states.rebuild,
    "memory": memory.memory,
}


async def measured(
    cluster: Cluster,
    runs: list[Run],
    names: list[str],
    *,
    quick: bool,
    folder: Path | None,
    begin: Callable[[str, int], Tick],
) -> tuple[machine.Machine, list[Measurement]]:
    """Run the measurements of these names on engines that are up; and on which machine it was.

    Raises:
        Unreachable: an engine doesn't answer.
    """
    scale: ClusterScale = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=folder) as place:
        facts = msgspec.structs.replace(
            machine.facts(Path(place)), sqlite="", peers=await engines.versions(cluster)
        )
        bench = ClusterBench(Workbench(Path(place), runs, SIZES, begin), cluster, scale)
        return facts, [await MEASUREMENTS[name](bench) for name in names]
