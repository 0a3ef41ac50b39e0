"""What the demo shows, on a terminal or in a pipe. Every number comes out of the results."""

import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from perdure.cli.demo.journal import JOURNAL
from perdure.cli.demo.results import (
    AgentResult,
    Crashes,
    Fork,
    Kill,
    Past,
    Recall,
    Recalled,
    Restart,
    Results,
    Sizes,
    Step,
    Tally,
    Verified,
)
from perdure.cli.output import counted, safe, shortened, size

PIPED_WIDTH: Final = 100
"""Columns of what is written to a file or another program."""

CHANGES_SHOWN: Final = 8

Cell = str | Text


class Printed:
    """Tells the demo on a console; with `quiet`, only how far it is, and only on a terminal."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet

    def begins(self, path: Path, runs: int, kills: int, seed: int, *, cleared: bool) -> None:
        """Say what is going to happen."""
        self._heading("perdure demo")
        self._say(
            f"An agent process works through {runs} recorded conversations of an airline's "
            f"customer service, all at once. It is to be killed {counted(kills, 'time')} on the "
            "way (SIGKILL: no warning, no chance to save), at moments drawn with seed "
            f"{seed}, and started again each time."
        )
        self._say(
            "All it does is recorded as events in a log. After each answer of the log, the agent "
            f"notes the event in a plain file of its own, {path / JOURNAL}: with that the log is "
            "compared in the end."
        )
        if cleared:
            self._say(f"(What an earlier demo had left in {path} is cleared.)")
        self._gap()

    @contextlib.contextmanager
    def at_work(self, what: str, total: int) -> Iterator["_Work"]:
        """A bar of acknowledged events; kills and starts above it."""
        with self._bar() as bar:
            work = _Work(self, bar, bar.add_task(what, total=total))
            yield work
            work.acknowledged(total)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar for a stage."""
        with self._bar() as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def tell(self, text: Text) -> None:
        """One line, above a bar that is on the screen."""
        self._print(text)

    def crashes(self, crashes: Crashes, tally: Tally, agents: Sequence[AgentResult]) -> None:
        """Events, then states."""
        self._gap()
        self._heading("Was anything lost?")
        self._say(
            f"{crashes.processes} processes, one after the other, did the work of one in "
            f"{crashes.seconds:.1f} s. None of them knew what had become of the one before: each "
            "looked at the states of its agents, and went on from there."
        )
        unheard = sum(kill.unheard for kill in crashes.kills)
        self._tally(
            tally, [(str(unheard), "unheard", "in the log already when a kill cut off the answer")]
        )
        self._agents(agents, "in another folder, by a process that nobody killed")

    def past(self, past: Past) -> None:
        """The state at an earlier sequence, and what changed."""
        self._heading("What did the agent know back then?")
        self._say(
            f"Events are numbered 1, 2, 3 … within an agent. {past.agent} halfway, at sequence "
            f"{past.then}, and now:"
        )
        self._table(
            ("", f"at {past.then}", f"now, at {past.now}"),
            [(name, safe(then), safe(now)) for name, then, now in past.fields],
        )
        self._say(f"What changed from sequence {past.then} to {past.until}:")
        width = self._console.width - 4
        for change in past.changes[:CHANGES_SHOWN]:
            self._print(Padding(Text(shortened(safe(change), width)), (0, 0, 0, 2)))
        if (more := len(past.changes) - CHANGES_SHOWN) > 0:
            self._print(Padding(Text(f"… and {more} more"), (0, 0, 0, 2)))
        self._gap()
        self._say(
            f"Every one of the {past.states} states that the agents were ever in was looked up, "
            f"{past.milliseconds:.2f} ms each: {past.states_equal} hold exactly what had been said "
            "by then."
        )
        self._gap()

    def fork(self, fork: Fork) -> None:
        """Two timelines, side by side."""
        self._heading("What if it had decided otherwise?")
        self._say(
            f"{fork.fork} shares the history of {fork.agent} up to sequence {fork.at}, just before "
            f"the call of {fork.tool}, and asks first. Nothing is copied, and the original "
            + ("has not changed." if fork.original_unchanged else "HAS CHANGED.")
        )
        rows: list[tuple[Cell, ...]] = [
            (str(step.sequence), _step(step), Text("the same", style="dim")) for step in fork.shared
        ]
        for at in range(max(len(fork.original), len(fork.other))):
            left = fork.original[at] if at < len(fork.original) else None
            right = fork.other[at] if at < len(fork.other) else None
            rows.append((str(fork.at + 1 + at), _step(left), _step(right)))
        self._table(("", fork.agent, fork.fork), rows, right="r", even=True)

    def recall(self, recall: Recall) -> None:
        """A question, its answers, and why."""
        self._heading("What does it remember?")
        self._say(
            f"{recall.agent} has {recall.memories} memories: what its customer told it, and the "
            "profile it looked up. They are found by meaning and by words, with a model that runs "
            "on this machine. Asked:"
        )
        self._print(Padding(Text(f"“{recall.question}”", style="bold"), (0, 0, 0, 2)))
        self._hits(recall.hits)
        earlier = (
            f"“{shortened(_one_line(recall.hits_as_of[0].text), 70)}” comes first"
            if recall.hits_as_of
            else "nothing is found"
        )
        self._say(
            f"The same question as of sequence {recall.as_of}, just before the best answer was "
            f"stored: {earlier}. "
            + ("What came later is not known yet." if recall.past_kept_apart else "WRONG.")
        )
        self._gap()

    def sizes(self, sizes: Sizes) -> None:
        """Bytes, beside plain JSON."""
        self._heading("What does it take on disk?")
        self._say(
            f"The agents saved their working objects (an array, a set, a dict) {sizes.objects} "
            "times. From the events, every past state can be restored; whoever keeps states as "
            "JSON instead writes one document for each."
        )
        rows: list[tuple[Cell, ...]] = []

        def beside(what: str, stored: int | None, *others: tuple[str, int]) -> None:
            if stored is None:
                return
            for number, (name, count) in enumerate(others):
                first = (what, size(stored)) if number == 0 else ("", "")
                rows.append((*first, _ratio(stored, count), size(count), name))

        messages = ("the messages alone", sizes.messages_json)
        snapshots = ("the state after each event", sizes.snapshots)
        beside(
            f"{sizes.objects} checkpoints", sizes.objects_stored, ("the same", sizes.objects_json)
        )
        beside(
            "all events", sizes.events_stored, ("the same", sizes.events_json), messages, snapshots
        )
        beside("everything", sizes.store, messages, snapshots)
        self._table(("", "on disk", "ratio to", "JSON", ""), rows, right="lrrr")
        self._say(
            "(Everything: events, memory with its indexes, checkpoints, and pages kept free for "
            "what is to come.)"
        )
        self._gap()

    def verified(self, verified: Verified) -> None:
        """Hash chains and checksums."""
        self._heading("Is it what was written?")
        self._say(
            "Each event is chained to the one before by a hash, and each checkpoint is named by "
            f"its own. verify looked at {verified.events} events of {verified.agents} agents and "
            f"{verified.checkpoints} checkpoints: "
            + (
                "all are as they were written."
                if not verified.findings
                else f"{len(verified.findings)} findings."
            )
        )
        for finding in verified.findings:
            self._print(Padding(Text(safe(finding), style="red"), (0, 0, 0, 2)))
        self._gap()

    def ends(self, results: Results) -> None:
        """The verdict, and the way on."""
        self._heading("In short")
        for claim, held in results.checks.items():
            mark = Text("✓ ", style="green") if held else Text("✗ NOT SO: ", style="bold red")
            self._print(Padding(mark + Text(claim), (0, 0, 0, 2)))
        self._gap()
        self._say(
            f"Killed {counted(len(results.crashes.kills), 'time')}; {results.seconds:.0f} s in "
            f"all. The folder {results.folder} is yours to look around in:"
        )
        self._gap()
        for _, *arguments in results.commands:
            command = shlex.join([_perdure(), *arguments])
            self._print(Padding(Text(command, style="cyan"), (0, 0, 0, 2)), wide=True)
        self._gap()

    def _tally(self, tally: Tally, others: Sequence[tuple[Cell, ...]]) -> None:
        """How many events were acknowledged, and what became of them."""
        rows: list[tuple[Cell, ...]] = [
            (str(tally.recorded), "recorded", "in the log, once the work was done"),
            (str(tally.acknowledged), "acknowledged", "the agent got an answer for them"),
            *others,
            (
                str(tally.asked_again),
                "asked again",
                "emitted once more after a restart, to be sure: the log knew them by their id",
            ),
        ]
        if (silent := tally.recorded - tally.acknowledged) > 0:
            rows.append(
                (
                    str(silent),
                    "never answered",
                    "found in the state after a restart, so not asked for again",
                )
            )
        rows += [
            (_zero(tally.lost), "lost", "acknowledged, and not in the log"),
            (_zero(tally.missing), "missing", "in the log of an uninterrupted run only"),
            (_zero(tally.doubled), "doubled", "in the log more often than in that run's"),
            (_zero(tally.out_of_order), "out of order", "elsewhere than in that run"),
        ]
        self._table(("count", "events", ""), rows, right="r")

    def _agents(self, agents: Sequence[AgentResult], where: str) -> None:
        """Each agent beside its twin of an uninterrupted run, which took place `where`."""
        self._heading("Is each agent what it would have been?")
        self._say(
            f"The same work was done once more, {where}. "
            "Each agent's state (conversation, tools, task, records, memories, checkpoints, "
            "sequence) is compared with that one, and its conversation with the recording."
        )
        self._table(
            (
                "agent",
                "customer",
                "cut short",
                "events",
                "tools",
                "state",
                "messages",
                "as recorded",
            ),
            [
                (
                    each.agent,
                    each.customer or "–",
                    f"{each.cut_short} ×",
                    str(each.events),
                    str(each.tool_calls),
                    _equal(each.state_equal),
                    str(each.messages),
                    _equal(each.messages_equal),
                )
                for each in agents
            ],
            right="llrrrlr",
        )
        equal = sum(each.state_equal for each in agents)
        self._say(f"Equal to the uninterrupted run: {equal} of {len(agents)} agents.")
        self._gap()

    def _hits(self, hits: Sequence[Recalled]) -> None:
        rows: list[tuple[Cell, ...]] = []
        for hit in hits:
            text = Text(safe(_one_line(hit.text)))
            text.append(f"\n{hit.explained}", style="dim")
            rows.append((f"{hit.score:.2f}", text, hit.source or "", str(hit.sequence)))
        if not rows:
            self._say("(nothing)")
        self._table(
            ("score", "memory, and how its score is made", "from", "at"), rows, right="rllr"
        )

    def _heading(self, text: str) -> None:
        if self._console.is_terminal:
            self._print(Rule(Text(text, style="bold"), align="left", style="dim"))
        else:
            self._print(Text(f"{text}\n{'-' * len(text)}"))

    def _say(self, text: str) -> None:
        self._print(Text(text))

    def _gap(self) -> None:
        self._print(Text())

    def _table(
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
        self._print(Padding(grid, (1, 0, 1, 2)))

    def _print(self, what: Text | Rule | Padding, *, wide: bool = False) -> None:
        if self._quiet:
            return
        if self._console.is_terminal:
            self._console.print(what, soft_wrap=wide)
            return
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=wide)
        for line in captured.get().splitlines():
            self._console.file.write(f"{line.rstrip()}\n")

    def _bar(self) -> Progress:
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


class _Work:
    """Tells of an agent process at work."""

    def __init__(self, printed: Printed, bar: Progress, task: TaskID) -> None:
        self._printed = printed
        self._bar = bar
        self._task = task
        self._killed = False

    def acknowledged(self, count: int) -> None:
        self._bar.update(self._task, completed=count)

    def killed(self, number: int, kill: Kill) -> None:
        self._killed = True
        text = Text(f"  ✗ kill {number}", style="red")
        text.append(
            f" after {kill.acknowledged} acknowledged events, {kill.runs_cut_short} conversations "
            f"cut short; in the log: {kill.recorded}",
            style="default",
        )
        if kill.lost:
            text.append(f", LOST: {kill.lost}", style="bold red")
        self._printed.tell(text)

    def started(self, start: Restart) -> None:
        if self._killed:
            text = Text("  ↻ started again", style="green")
            text.append(
                f": {start.agents} agents opened where they stood, in {start.milliseconds:.0f} ms",
                style="default",
            )
            self._printed.tell(text)


def console(*, as_json: bool) -> Console:
    """Where to print: standard error if standard output is for JSON."""
    made = Console(stderr=as_json, highlight=False)
    return made if made.is_terminal else Console(stderr=as_json, highlight=False, width=PIPED_WIDTH)


def _perdure() -> str:
    """How the reader starts perdure: its path where the shell doesn't know the name."""
    own = sys.argv[0]
    known = shutil.which("perdure") is not None or Path(own).name != "perdure"
    return "perdure" if known else own


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _zero(count: int) -> Text:
    return Text(str(count), style="bold green" if count == 0 else "bold red")


def _equal(equal: bool) -> Text:
    return Text("equal", style="green") if equal else Text("DIFFERS", style="bold red")


def _ratio(size: int, other: int) -> str:
    ratio = size / max(1, other)
    return f"{ratio:.2f} ×" if ratio >= 0.1 else f"{ratio:.3f} ×"


def _step(step: Step | None) -> Text:
    if step is None:
        return Text()
    text = Text(step.type, style="bold")
    if step.text:
        text.append(f"  {safe(step.text)}", style="not bold")
    return text
