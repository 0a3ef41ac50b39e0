"""What the commands print: data on standard output, everything else on standard error.

Invariants:
- Colours, tables and progress bars are for terminals; what is piped is plain text or JSON.
- Nothing that a store holds can control the terminal: control characters are shown as escapes.
"""

import contextlib
import re
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from perdure.errors import PerdureError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PATIENCE_SECONDS: Final = 0.5
"""What is done by then needs no progress bar."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_live: "list[Progress]" = []  # the bar that is on the screen, so that notes go above it


def safe(text: str) -> str:
    r"""Text of the store on one line, fit for a terminal.

    >>> safe("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def compact(value: object) -> str:
    """A JSON-able value on one line.

    >>> compact({"seat": "12A"})
    '{"seat":"12A"}'
    """
    return safe(msgspec.json.encode(value).decode())


def shortened(text: str, width: int) -> str:
    """Text of at most `width` characters, an ellipsis in place of what is left out.

    >>> shortened("prefers aisle seats", 10)
    'prefers a…'
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


def size(count: float) -> str:
    """A number of bytes for people.

    >>> size(999), size(123_456), size(5_000_000)
    ('999 B', '123.5 kB', '5.0 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(count: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "effect"), counted(1200, "event")
    ('1 effect', '1,200 events')
    """
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def store_option(store: str | None) -> str:
    """What a suggested command needs so that it finds the same store.

    >>> store_option(None), store_option("my crew")
    ('', " --store 'my crew'")
    """
    return "" if store is None else f" --store {shlex.quote(store)}"


def to_terminal() -> bool:
    """Whether standard output is looked at by a person."""
    return sys.stdout.isatty()


class ReaderGoneError(Exception):
    """Whoever read standard output has stopped reading: nothing more is to be done."""


def line(text: str = "") -> None:
    """Print a line of data.

    Raises:
        ReaderGoneError: nobody reads it any more.
    """
    try:
        sys.stdout.write(f"{text}\n")
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def json_bytes(data: bytes) -> None:
    """Print JSON that is encoded already, as one line."""
    line(data.decode())


def json_value(value: object) -> None:
    """Print a value as one line of JSON."""
    json_bytes(msgspec.json.encode(value))


def note(text: str) -> None:
    """Tell something that is no data."""
    if _live:
        _live[-1].console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stdout.flush()  # in the order in which it happened, where both go to one place
        print(text, file=sys.stderr)


def error(problem: PerdureError) -> None:
    """Tell what went wrong, and the way out."""
    failure(problem.message, problem.hint)


def failure(message: str, hint: str = "") -> None:
    """Tell what went wrong in one line, and the way out in another."""
    note(f"error: {safe(message)}")
    if hint:
        note(f"hint: {safe(hint)}")


def console() -> "Console":
    """A console on standard output, for what only a terminal gets."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> None:
    """Print rows under headers: a table on a terminal, aligned plain text otherwise.

    `right` has a letter `r` at the place of each column that is aligned to the right.
    """
    cells = [[safe(cell) for cell in row] for row in rows]
    if to_terminal():
        _rich_table(headers, cells, right)
        return
    columns = range(len(headers))
    widths = [max(width_of(row[at]) for row in [headers, *cells]) for at in columns]
    for row in [headers, *cells]:
        padded = [
            _padded(row[at], widths[at], at < len(right) and right[at] == "r") for at in columns
        ]
        line("  ".join(padded).rstrip())


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    width = max((len(name) for name, _ in pairs), default=0)
    if not to_terminal():
        for name, value in pairs:
            line(f"{name.ljust(width)}  {safe(value)}".rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), Text(safe(value)))
    console().print(grid)


def styled(text: str, style: str, *, indent: int = 0) -> None:
    """Print a line of data, in a colour where a terminal shows it.

    A terminal breaks it between words, and what goes on below is indented by that many columns.
    """
    if not to_terminal():
        line(safe(text))
        return
    from rich.table import Table
    from rich.text import Text

    shown = Text(safe(text), style=style)
    if not indent:
        console().print(shown)
        return
    grid = Table.grid()
    grid.add_column(width=indent)
    grid.add_column(overflow="fold")
    grid.add_row(shown[:indent], shown[indent:])
    console().print(grid)


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes.

    >>> width_of("Zoë"), width_of("座席")
    (3, 4)
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "FW")
        for letter in text
    )


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - width_of(text))
    return blank + text if right else text + blank


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]], right: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for at, header in enumerate(headers):
        grid.add_column(header, justify="right" if right[at : at + 1] == "r" else "left")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    console().print(grid)


@contextlib.contextmanager
def progress(
    what: str, total: int | None, *, unit: str = "", when: bool = True
) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal and it takes long enough.

    Gives a function to be called with how much is done. `unit` is `B` for bytes.
    """
    if not (when and sys.stderr.isatty()):
        yield lambda _done: None
        return
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def update(done: int) -> None:
            if not bars:
                if time.monotonic() - started < PATIENCE_SECONDS:
                    return
                bars.append(stack.enter_context(_bar(what, total, unit)))
            bars[0].update(bars[0].task_ids[0], completed=done)

        yield update


@contextlib.contextmanager
def _bar(what: str, total: int | None, unit: str) -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn() if unit == "B" else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        bar.add_task(what, total=total)
        _live.append(bar)
        try:
            yield bar
        finally:
            _live.remove(bar)
