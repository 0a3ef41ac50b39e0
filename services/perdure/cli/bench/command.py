"""`perdure bench`: its options, its measurements, and what it prints."""

import tempfile
from collections.abc import Awaitable, Callable, Iterator
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

MEASUREMENTS: Final[dict[str, Callable[[Workbench], Awaitable[Measurement]]]] = {
    "one": emitting.one,
    "burst": emitting.burst,
    "fold": reading.fold,
    "open": opening.opening,
    "middle": reading.middle,
    "size": size.size,
    "memory": memory.memory,
}


class Report(msgspec.Struct, frozen=True):
    """Everything that one run of the benchmark gave: what `--json` prints."""

    machine: machine.Machine
    runs: str
    scale: str
    measurements: list[Measurement]
    notes: list[str]


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help=f"Measure only this (repeatable): {', '.join(MEASUREMENTS)}",
            show_default=False,
        ),
    ] = None,
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
    """
    unknown = [name for name in only or () if name not in MEASUREMENTS]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is not measured; there are {', '.join(MEASUREMENTS)}",
            param_hint="--only",
        )
    file = runs or SHIPPED
    scale = QUICK if quick else FULL
    chosen = [name for name in MEASUREMENTS if not only or name in only]
    report = session.run(measured(file, scale, chosen, folder))
    if as_json:
        output.json_value(report)
    else:
        show.show(report.machine, report.measurements)
        for note in report.notes:
            output.line(note)


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
        runs=f"{file.name}: {len(loaded)} runs, {sum(len(r.messages) for r in loaded)} messages",
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
