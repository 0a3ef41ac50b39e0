"""What every demo tells: agents at work, their events and states, other times and timelines."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from rich.padding import Padding
from rich.progress import Progress, TaskID
from rich.text import Text

from perdure.cli.demo.page import Cell, Page, equal, zero
from perdure.cli.demo.results import (
    AgentResult,
    Fork,
    Kill,
    Past,
    Recall,
    Recalled,
    Restart,
    Step,
    Tally,
    Verified,
)
from perdure.cli.output import safe, shortened

CHANGES_SHOWN: Final = 8


class Told(Page):
    """The parts that the demos have in common."""

    @contextlib.contextmanager
    def at_work(self, what: str, total: int) -> Iterator["_Work"]:
        """A bar of acknowledged events; kills and starts above it."""
        with self.bar() as bar:
            work = _Work(self, bar, bar.add_task(what, total=total))
            yield work
            work.acknowledged(total)

    def tally(self, tally: Tally, others: Sequence[tuple[Cell, ...]]) -> None:
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
            (zero(tally.lost), "lost", "acknowledged, and not in the log"),
            (zero(tally.missing), "missing", "in the log of an uninterrupted run only"),
            (zero(tally.doubled), "doubled", "in the log more often than in that run's"),
            (zero(tally.out_of_order), "out of order", "elsewhere than in that run"),
        ]
        self.table(("count", "events", ""), rows, right="r")

    def agents(self, agents: Sequence[AgentResult], where: str) -> None:
        """Each agent beside its twin of an uninterrupted run, which took place `where`."""
        self.heading("Is each agent what it would have been?")
        self.say(
            f"The same work was done once more, {where}. "
            "Each agent's state (conversation, tools, task, records, memories, checkpoints, "
            "sequence) is compared with that one, and its conversation with the recording."
        )
        self.table(
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
                    equal(each.state_equal),
                    str(each.messages),
                    equal(each.messages_equal),
                )
                for each in agents
            ],
            right="llrrrlr",
        )
        same = sum(each.state_equal for each in agents)
        self.say(f"Equal to the uninterrupted run: {same} of {len(agents)} agents.")
        self.gap()

    def past(self, past: Past) -> None:
        """The state at an earlier sequence, and what changed."""
        self.heading("What did the agent know back then?")
        self.say(
            f"Events are numbered 1, 2, 3 … within an agent. {past.agent} halfway, at sequence "
            f"{past.then}, and now:"
        )
        self.table(
            ("", f"at {past.then}", f"now, at {past.now}"),
            [(name, safe(then), safe(now)) for name, then, now in past.fields],
        )
        self.say(f"What changed from sequence {past.then} to {past.until}:")
        width = self.width - 4
        for change in past.changes[:CHANGES_SHOWN]:
            self.show(Padding(Text(shortened(safe(change), width)), (0, 0, 0, 2)))
        if (more := len(past.changes) - CHANGES_SHOWN) > 0:
            self.show(Padding(Text(f"… and {more} more"), (0, 0, 0, 2)))
        self.gap()
        self.say(
            f"Every one of the {past.states} states that the agents were ever in was looked up, "
            f"{past.milliseconds:.2f} ms each: {past.states_equal} hold exactly what had been said "
            "by then."
        )
        self.gap()

    def fork(self, fork: Fork) -> None:
        """Two timelines, side by side."""
        self.heading("What if it had decided otherwise?")
        self.say(
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
        self.table(("", fork.agent, fork.fork), rows, right="r", even=True)

    def recall(self, recall: Recall) -> None:
        """A question, its answers, and why."""
        self.heading("What does it remember?")
        self.say(
            f"{recall.agent} has {recall.memories} memories: what its customer told it, and the "
            "profile it looked up. They are found by meaning and by words, with a model that runs "
            "on this machine. Asked:"
        )
        self.show(Padding(Text(f"“{recall.question}”", style="bold"), (0, 0, 0, 2)))
        self._hits(recall.hits)
        earlier = (
            f"“{shortened(_one_line(recall.hits_as_of[0].text), 70)}” comes first"
            if recall.hits_as_of
            else "nothing is found"
        )
        self.say(
            f"The same question as of sequence {recall.as_of}, just before the best answer was "
            f"stored: {earlier}. "
            + ("What came later is not known yet." if recall.past_kept_apart else "WRONG.")
        )
        self.gap()

    def verified(self, verified: Verified) -> None:
        """Hash chains and checksums."""
        self.heading("Is it what was written?")
        self.say(
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
            self.show(Padding(Text(safe(finding), style="red"), (0, 0, 0, 2)))
        self.gap()

    def _hits(self, hits: Sequence[Recalled]) -> None:
        rows: list[tuple[Cell, ...]] = []
        for hit in hits:
            text = Text(safe(_one_line(hit.text)))
            text.append(f"\n{hit.explained}", style="dim")
            rows.append((f"{hit.score:.2f}", text, hit.source or "", str(hit.sequence)))
        if not rows:
            self.say("(nothing)")
        self.table(("score", "memory, and how its score is made", "from", "at"), rows, right="rllr")


class _Work:
    """Tells of an agent process at work."""

    def __init__(self, page: Page, bar: Progress, task: TaskID) -> None:
        self._page = page
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
        self._page.show(text)

    def started(self, start: Restart) -> None:
        if self._killed:
            text = Text("  ↻ started again", style="green")
            text.append(
                f": {start.agents} agents opened where they stood, in {start.milliseconds:.0f} ms",
                style="default",
            )
            self._page.show(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _step(step: Step | None) -> Text:
    if step is None:
        return Text()
    text = Text(step.type, style="bold")
    if step.text:
        text.append(f"  {safe(step.text)}", style="not bold")
    return text
