"""`perdure import`: recorded runs become agents."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
import typer

from perdure.agent.store import Store
from perdure.cli import options, output, session
from perdure.cli.lines import LINE_BYTES_MAX, Line, lines
from perdure.cli.recorded_runs import Added, add
from perdure.errors import InvalidData, InvalidInput, Refused
from perdure.model import names
from perdure.model.event import NewEvent
from perdure.model.runs import parse_run, run_events

RUNS_AT_ONCE: Final = 32
"""Runs in flight: their writes share commits."""
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""Bytes of lines in flight, which bounds memory (a single line may have more)."""

EXAMPLES = """\b
Examples:
  perdure import airline-runs.jsonl --namespace airline
  zcat runs.jsonl.gz | perdure import - --namespace airline --json
  perdure agents airline/
  perdure state airline/7.0 --at 20
"""


class Summary(msgspec.Struct):
    """What an import did. `seconds` of wall time, `bytes` read."""

    file: str
    namespace: str
    runs: int = 0
    added_runs: int = 0
    new_events: int = 0
    present_events: int = 0
    conflicts: int = 0
    malformed: int = 0
    bytes: int = 0
    seconds: float = 0.0


def _file(text: str) -> Path:
    path = Path(text)
    if text != "-" and not path.exists():
        raise typer.BadParameter(f"there is no file {text!r}")
    if path.is_dir():
        raise typer.BadParameter(f"{text!r} is a folder; give a file of JSON lines")
    return path


def import_runs(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            parser=_file,
            help="JSON lines, one run a line; - for standard input",
        ),
    ],
    *,
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NS", help="First part of the agents' names")
    ] = "imported",
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Import recorded runs: JSON lines of chat messages.

    Messages are in the OpenAI format. A line is an object with messages, and if it likes
    task_id, trial and anything else. It becomes the agent NS/<task_id>.<trial> (the line's
    number where these are missing). Importing again adds nothing; a longer version of a run
    adds what is new. A line that is malformed, or another run than the one that is there under
    its name, is reported with its number and reason; the rest goes in, and the exit status is
    1. With --json, the summary as one document.
    """
    names.namespace(namespace)
    summary = session.run(_import(file, namespace, store))
    if as_json:
        output.json_value(summary)
    else:
        _show(summary, store)
    if summary.malformed or summary.conflicts:
        raise typer.Exit(1)


async def _import(file: Path, namespace: str, store: str | None) -> Summary:
    summary = Summary(file=str(file), namespace=namespace)
    started = time.perf_counter()
    async with session.opened(store, create=True) as opened:
        with (
            _reading(file) as (source, total),
            output.progress(f"importing {file.name}", total, unit="B") as done,
        ):
            for some in _batches(lines(source)):
                await _import_batch(opened, some, summary)
                summary.bytes = some[-1].end
                done(summary.bytes)
    summary.seconds = round(time.perf_counter() - started, 3)
    return summary


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """The bytes of a file, and how many there are where that is known."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        size = file.stat().st_size
        with file.open("rb") as source:
            yield source, size
    except OSError as error:
        raise InvalidInput(
            f"{file} can't be read: {error.strerror or error}", hint="what was read went in"
        ) from error


def _batches(source: Iterator[Line]) -> Iterator[list[Line]]:
    """Lines together, as many as may be in flight."""
    some: list[Line] = []
    size = 0
    for line in source:
        some.append(line)
        size += len(line.data or b"")
        if len(some) == RUNS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


async def _import_batch(store: Store, some: list[Line], summary: Summary) -> None:
    runs: dict[str, list[tuple[int, list[NewEvent]]]] = {}
    for line in some:
        summary.runs += 1
        try:
            if line.data is None:
                raise InvalidData(
                    f"line {line.number}: it is longer than {output.size(LINE_BYTES_MAX)}",
                    hint="split the run",
                )
            run = parse_run(line.data, line.number)
        except InvalidInput as error:
            summary.malformed += 1
            output.error(error)
            continue
        # Runs of one name go one after the other, as in the file.
        same_name = runs.setdefault(f"{summary.namespace}/{run.name}", [])
        same_name.append((line.number, run_events(run)))
    await asyncio.gather(*(_import_agent(store, agent, runs[agent], summary) for agent in runs))


async def _import_agent(
    store: Store, agent: str, runs: list[tuple[int, list[NewEvent]]], summary: Summary
) -> None:
    for number, events in runs:
        try:
            added: Added = await add(store, agent, events)
        except (InvalidInput, Refused) as error:
            if isinstance(error, Refused):
                summary.conflicts += 1
            else:
                summary.malformed += 1
            output.failure(f"line {number}: {error.message}", error.hint)
            continue
        summary.added_runs += added.new > 0
        summary.new_events += added.new
        summary.present_events += added.present


def _show(summary: Summary, store: str | None) -> None:
    rate = summary.new_events / summary.seconds if summary.seconds else 0
    output.fields(
        [
            ("runs", f"{summary.runs:,}, {summary.added_runs:,} of them with something new"),
            ("new events", f"{summary.new_events:,}"),
            ("already there", f"{summary.present_events:,}"),
            ("conflicts", f"{summary.conflicts:,}"),
            ("malformed lines", f"{summary.malformed:,}"),
            ("read", output.size(summary.bytes)),
            ("time", f"{summary.seconds:.1f} s ({rate:,.0f} new events/s)"),
        ]
    )
    if summary.runs and not summary.new_events and not summary.malformed:
        output.note("nothing was added: it is all there already")
    elif summary.new_events:
        output.note(
            f"look further: perdure agents {summary.namespace}/{output.store_option(store)}"
        )
