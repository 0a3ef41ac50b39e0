"""`perdure bench`: its options, its measurements, and what it prints."""

import importlib
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from perdure.cli import options, output, session
from perdure.cli.bench import emitting, machine, memory, opening, peers, reading, show, size
from perdure.cli.bench.result import Measurement
from perdure.cli.bench.rounds import Tick
from perdure.cli.bench.workbench import FULL, QUICK, SHIPPED, Scale, Workbench, load_runs
from perdure.errors import NotFound
from perdure.model.runs import Run
from perdure.settings import Cluster

MEASUREMENTS: Final[dict[str, Callable[[Workbench], Awaitable[Measurement]]]] = {
    "one": emitting.one,
    "burst": emitting.burst,
    "fold": reading.fold,
    "open": opening.opening,
    "middle": reading.middle,
    "size": size.size,
    "memory": memory.memory,
}
OF_CLUSTER: Final = ("emit", "recorder", "latency", "demand", "rebuild", "memory")
"""What `perdure.cli.bench.cluster.run` measures, which needs packages that may be missing."""

EXAMPLES: Final = """Examples:

  perdure bench --quick --only one --only burst

  perdure bench --cluster --config perdure.toml
"""


class Report(msgspec.Struct, frozen=True):
    """Everything that one run of the benchmark gave: what `--json` prints."""

    machine: machine.Machine
    runs: str
    scale: str
    measurements: list[Measurement]
    notes: list[str]


def bench(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help=f"Measure only this (repeatable): {', '.join(MEASUREMENTS)}; with --cluster"
            f" {', '.join(OF_CLUSTER)}",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Measure a cluster instead, beside raw clients of Kafka and Cassandra. The engines"
            " have to be up (make stack); what is written to them is taken away",
        ),
    ] = False,
    config: options.Config = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything: a minute, wider ranges")
    ] = False,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            metavar="FILE",
            help="Recorded runs to measure with. Default: those that come with perdure",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Where to write while measuring (3 GB without --quick); emptied at the end."
            " Default: the folder for temporary files",
            show_default=False,
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure perdure beside raw SQLite and its peers, side by side, as ratios.

    Every contender has the same durability: a write-ahead log, synchronous=FULL. They take turns,
    round by round; shown are the median ratio of the rounds, the lowest and the highest. Peers are
    measured where they are installed: pip install 'perdure[bench]'.

    With --cluster: emit, the recorder, states and memory of the services, beside the plain clients
    of the engines, with the same bytes and promises. Services are started for it, with topics and
    tables of their own.
    """
    chosen = _chosen(only, OF_CLUSTER if cluster else list(MEASUREMENTS))
    file = runs or SHIPPED
    if cluster:
        engines = session.settings_of(config)
        report = session.run(measured_cluster(engines, file, chosen, quick=quick, folder=folder))
    else:
        report = session.run(measured(file, QUICK if quick else FULL, chosen, folder))
    if as_json:
        output.json_value(report)
    else:
        show.show(report.machine, report.measurements)
        for note in report.notes:
            output.line(note)


def _chosen(only: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is not measured; there are {', '.join(known)}", param_hint="--only"
        )
    return [name for name in known if not only or name in only]


async def measured_cluster(
    cluster: Cluster, file: Path, names: list[str], *, quick: bool, folder: Path | None = None
) -> Report:
    """Run the measurements of these names on a cluster's engines.

    Raises:
        NotFound: packages of the cluster are not installed.
        Unreachable: an engine doesn't answer.
    """
    try:
        run = importlib.import_module("perdure.cli.bench.cluster.run")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("perdure"):
            raise
        raise NotFound(
            f"the package {error.name} is not installed, which --cluster needs",
            hint="pip install 'perdure[cluster]'",
        ) from error
    loaded = load_runs(file)
    with _steps() as begin:
        facts, done = await run.measured(
            cluster, loaded, names, quick=quick, folder=folder, begin=begin
        )
    return Report(facts, _runs(file, loaded), "quick" if quick else "full", done, [])


def _runs(file: Path, loaded: Sequence[Run]) -> str:
    messages = sum(len(run.messages) for run in loaded)
    return f"{file.name}: {len(loaded)} runs, {messages} messages"


async def measured(
    file: Path, scale: Scale, names: list[str], folder: Path | None = None
) -> Report:
    """Run the measurements of these names."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=folder) as place:
        facts = machine.facts(Path(place))
        loaded = load_runs(file)
        with _steps() as begin:
            bench = Workbench(Path(place), loaded, scale, begin)
            done = [await MEASUREMENTS[name](bench) for name in names]
    return Report(
        machine=facts,
        runs=_runs(file, loaded),
        scale="quick" if scale is QUICK else "full",
        measurements=done,
        notes=peers.missing(),
    )


@contextmanager
def _steps() -> Iterator[Callable[[str, int], Tick]]:
    """One progress bar after the other, each gone when the next begins."""
    with ExitStack() as stack:

        def begin(what: str, total: int) -> Tick:
            stack.close()
            update = stack.enter_context(output.progress(what, total))
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                update(done)

            return tick

        yield begin
