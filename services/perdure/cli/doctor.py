"""`perdure doctor`: what store it is, and what is wrong with it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import typer

from perdure.agent.connect import folder_of
from perdure.cli import options, output
from perdure.embedded.doctor import Diagnosis, Versions, examine

EXAMPLES = """\b
Examples:
  perdure doctor
  perdure doctor --store /srv/agents --json
"""

_KINDS = {
    "embedded": "a store on one folder",
    "missing": "no store: the folder isn't there",
    "empty": "no store yet",
    "foreign": "not a store of perdure",
    "newer": "a store of a newer perdure",
    "damaged": "a damaged store",
    "unreadable": "can't be read",
}
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}


def doctor(store: options.Store = None, as_json: options.AsJson = False) -> None:
    """Say what store it is, and what to do about what is wrong.

    It looks at versions, sizes, integrity, checkpoint files and the place they are in. Nothing
    is changed, and agents that run are not disturbed. The exit status is 1 when something is
    wrong. With --json, the diagnosis as one document.
    """
    path: Path = folder_of(store)
    with _status() as told:
        found = examine(path, told)
    if as_json:
        output.json_value(found)
    else:
        _show(found)
    if not found.sound:
        raise typer.Exit(1)


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Shows on a terminal what is being looked at."""
    if not sys.stderr.isatty():
        yield lambda _what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("looking") as status:
        yield lambda what: status.update(f"looking at: {what}")


def _listed(values: Versions) -> str:
    return ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(values).items())


def _show(found: Diagnosis) -> None:
    newest = f"newest known {found.format_newest}"
    pairs = [
        ("store", found.store),
        ("is", _KINDS[found.kind]),
        ("format", "none" if found.format is None else f"{found.format} ({newest})"),
        ("versions", _listed(found.versions)),
    ]
    if found.sizes:
        sizes = [f"{name} {output.size(count)}" for name, count in found.sizes.items()]
        pairs.append(("sizes", ", ".join(sizes)))
    if found.kind == "embedded":
        counts = msgspec.structs.asdict(found.counts)
        pairs.append(("holds", ", ".join(f"{count:,} {name}" for name, count in counts.items())))
    if found.tables:
        largest = list(found.tables.items())[:6]
        pairs.append(
            ("tables", ", ".join(f"{name} {output.size(count)}" for name, count in largest))
        )
    output.fields(pairs)
    output.line()
    for check in found.checks:
        mark, colour = _MARKS[check.level]
        output.styled(f"{mark:<8}{check.name}: {check.message}", colour, indent=8)
        if check.hint:
            output.line(f"        hint: {output.safe(check.hint)}")
