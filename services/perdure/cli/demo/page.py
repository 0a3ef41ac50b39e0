"""A page of the demo, on a terminal or in a pipe: headings, text, tables and bars."""

import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

PIPED_WIDTH: Final = 100
"""Columns of what is written to a file or another program."""

Cell = str | Text


class Page:
    """Writes on a console; with `quiet`, only how far it is, and only on a terminal."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet

    @property
    def width(self) -> int:
        """Columns of the console."""
        return self._console.width

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar for a stage."""
        with self.bar() as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def heading(self, text: str) -> None:
        """What the next part is about."""
        if self._console.is_terminal:
            self.show(Rule(Text(text, style="bold"), align="left", style="dim"))
        else:
            self.show(Text(f"{text}\n{'-' * len(text)}"))

    def say(self, text: str) -> None:
        """A paragraph."""
        self.show(Text(text))

    def gap(self) -> None:
        """An empty line."""
        self.show(Text())

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        right: str = "",
        even: bool = False,
    ) -> None:
        """A table; `right` has an r for each column aligned to the right, `even` shares room."""
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=even)
        for at, header in enumerate(headers):
            fixed = at == 0 and even
            grid.add_column(
                header,
                justify="right" if right[at : at + 1] == "r" else "left",
                ratio=None if fixed or not even else 1,
            )
        for row in rows:
            grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        self.show(Padding(grid, (1, 0, 1, 2)))

    def show(self, what: RenderableType, *, wide: bool = False) -> None:
        """Anything else, above a bar that is on the screen; `wide` lines are not broken."""
        if self._quiet:
            return
        if self._console.is_terminal:
            self._console.print(what, soft_wrap=wide)
            return
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=wide)
        for line in captured.get().splitlines():
            self._console.file.write(f"{line.rstrip()}\n")

    def verdict(self, checks: Mapping[str, bool]) -> None:
        """Each claim, and whether it held."""
        self.heading("In short")
        for claim, held in checks.items():
            mark = Text("✓ ", style="green") if held else Text("✗ NOT SO: ", style="bold red")
            self.indented(mark + Text(claim))
        self.gap()

    def commands(self, commands: Sequence[Sequence[str]]) -> None:
        """What to type, each `perdure` and its arguments."""
        self.gap()
        for _, *arguments in commands:
            command = shlex.join([perdure(), *arguments])
            self.indented(Text(command, style="cyan"), wide=True)
        self.gap()

    def indented(self, text: Text, *, wide: bool = False) -> None:
        """Text of its own, two columns to the right; a `wide` one is a line that is not broken."""
        self.show(Text("  ") + text if wide else Padding(text, (0, 0, 0, 2)), wide=wide)

    def bar(self) -> Progress:
        """A bar for what is under way, gone when it is done."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )


def console(*, as_json: bool) -> Console:
    """Where to print: standard error if standard output is for JSON."""
    made = Console(stderr=as_json, highlight=False)
    return made if made.is_terminal else Console(stderr=as_json, highlight=False, width=PIPED_WIDTH)


def perdure() -> str:
    """How the reader starts perdure: its path where the shell doesn't know the name."""
    own = sys.argv[0]
    known = shutil.which("perdure") is not None or Path(own).name != "perdure"
    return "perdure" if known else own


def zero(count: int) -> Text:
    """A count that is to be 0."""
    return Text(str(count), style="bold green" if count == 0 else "bold red")


def equal(same: bool) -> Text:
    """Whether two things are equal."""
    return Text("equal", style="green") if same else Text("DIFFERS", style="bold red")


def ratio(size: int, other: int) -> str:
    """How large something is, beside something else.

    >>> ratio(1, 4), ratio(1, 100)
    ('0.25 ×', '0.010 ×')
    """
    share = size / max(1, other)
    return f"{share:.2f} ×" if share >= 0.1 else f"{share:.3f} ×"
