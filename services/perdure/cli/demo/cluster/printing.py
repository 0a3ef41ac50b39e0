"""What the demo on a cluster shows. Every number comes out of the results."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.progress import Progress, TaskID
from rich.text import Text

from perdure.cli.demo.cluster.engines import READERS
from perdure.cli.demo.cluster.lag import bars, columns
from perdure.cli.demo.cluster.place import LOGS, SETTINGS
from perdure.cli.demo.cluster.results import ClusterResults, Kill, Replayed, Sample, Stored, Work
from perdure.cli.demo.cluster.services import NAMES
from perdure.cli.demo.cluster.working import AGENTS, THINKING_SECONDS
from perdure.cli.demo.journal import JOURNAL
from perdure.cli.demo.page import Cell, Page, equal, ratio
from perdure.cli.demo.results import AgentResult, Restart, Tally
from perdure.cli.demo.telling import Told
from perdure.cli.output import counted, size
from perdure.settings import Cluster

CHART_WIDTH: Final = 64
CHART_HEIGHT: Final = 5
CHAIN_SHOWN: Final = 16

_COLOURS: Final = {"recorder": "cyan", "checkpointer": "blue", "memorizer": "magenta"}


class ClusterPrinted(Told):
    """Tells the demo on a console."""

    def begins(
        self, path: Path, cluster: Cluster, runs: int, kills: int, seed: int, *, cleared: bool
    ) -> None:
        """Say what is going to happen."""
        self.heading("perdure demo --cluster")
        self.say(
            f"{counted(runs, 'agent')} work through {counted(runs, 'recorded conversation')} of an "
            "airline's customer service, all at once, and write what they do to Kafka. Five "
            f"services ({', '.join(NAMES)}) take it from there into Cassandra, Weaviate and "
            f"checkpoint storage. The agents' process is to be killed {counted(kills, 'time')} and "
            "each service once (SIGKILL: no warning, no chance to save), at moments drawn with "
            f"seed {seed}; all are started again."
        )
        self.say(
            "An agent goes on as soon as Kafka has acknowledged an event, whether or not a service "
            f"is there to read it. It notes each in a plain file of its own, {path / JOURNAL}: "
            "with that, what was recorded is compared in the end. In place of asking a model, it "
            f"waits {THINKING_SECONDS} s before each message."
        )
        self.say(
            f"Kafka {cluster.kafka}, Cassandra {cluster.cassandra}, Weaviate {cluster.weaviate}; "
            f"all names in them begin with {cluster.name}. The services' logs: {path / LOGS}."
        )
        if cleared:
            self.say(f"(What an earlier demo of {path} had left in the engines is dropped.)")
        self.gap()

    @contextlib.contextmanager
    def working(self, total: int) -> Iterator["_Working"]:
        """Bars of acknowledged and of recorded events; kills and starts above them."""
        with self.bar() as bar:
            written = bar.add_task("acknowledged by Kafka", total=total)
            recorded = bar.add_task("recorded in Cassandra", total=total)
            working = _Working(self, bar, written, recorded, total)
            yield working
            working.done()

    def work(self, work: Work) -> None:
        """The lag over time, and what was killed when."""
        self.gap()
        self.heading("How far behind were the services?")
        self.say(
            "Records of its topic that a service had not committed, asked of Kafka all along. The "
            f"last event was acknowledged after {work.seconds:.1f} s; {work.drained:.1f} s later "
            "no service lacked anything."
        )
        self.gap()
        for service in READERS:
            self._curve(work, service)
        self.indented(Text(f"{'0 s':<{self._chart_width}}{work.lag[-1].second:.0f} s", style="dim"))
        self.gap()
        self.indented(
            Text.assemble(
                ("✗", "red"),
                (" the service is killed   ╵ the agents' process is killed   ", "dim"),
                ("(the number: the most it lacked)", "dim"),
            )
        )
        self.gap()

    def events(self, work: Work, tally: Tally, agents: Sequence[AgentResult]) -> None:
        """The kills, then events, then states."""
        self.heading("Who was killed?")
        self.table(
            ("second", "killed", "acknowledged", "not recorded", "runs cut short", "away for"),
            [_kill(kill) for kill in work.kills],
            right="rlrrrr",
        )
        self.heading("Was anything lost?")
        self.tally(tally, [])
        self.agents(agents, "in one folder without any server, by a process that nobody killed")

    def stored(self, stored: Stored) -> None:
        """Rows, objects and files."""
        self.heading("Where is it now?")
        self.say("Counted in the engines themselves. In Cassandra:")
        self.table(
            ("rows", "table", ""),
            [
                (f"{each.rows:,}", each.table, each.holds)
                for each in [*stored.rows, stored.manifest]
            ],
            right="r",
        )
        head = stored.head
        self.say(
            f"The head of {head.agent} lies in one partition with its events and is written with "
            f"them: sequence {head.last}, epoch {head.epoch} (raised by each process that opened "
            f"it), offset {head.position}, hash chain {head.chain[:CHAIN_SHOWN]}…, "
            f"{size(head.bytes)} of events."
        )
        self.gap()
        self.say("In Weaviate:")
        self.table(
            ("objects", "collection", "tenant"),
            [
                (f"{count:,}", each.name, tenant)
                for each in stored.collections
                for tenant, count in each.tenants.items()
            ],
            right="r",
        )
        self.say(
            f"In checkpoint storage: {counted(stored.objects, 'object')}, "
            f"{size(stored.objects_bytes)}. The agents saved their working objects (an array, a "
            f"set, a dict) {counted(stored.checkpoints, 'time')}:"
        )
        self.table(
            ("", "stored", "ratio to", "as JSON"),
            [
                (
                    counted(stored.checkpoints, "checkpoint"),
                    size(stored.checkpoints_stored),
                    ratio(stored.checkpoints_stored, stored.checkpoints_json),
                    size(stored.checkpoints_json),
                ),
            ],
            right="lrrr",
        )
        self.say(
            f"Every past state can be restored from {size(stored.events_json)} of events (as JSON, "
            "before Cassandra compresses them); as one JSON document after each event they would "
            f"take {size(stored.snapshots)}."
        )
        self.gap()

    def replayed(self, replayed: Replayed, before: Stored) -> None:
        """Chains and rows side by side."""
        self.heading("Can it be rebuilt from the log?")
        self.say(
            f"All {replayed.records:,} records were replayed from Kafka's topic into generation "
            f"{replayed.generation} of the tables, beside the one that was written as it went: "
            f"{replayed.events:,} events in {replayed.seconds:.1f} s, saved states and the vectors "
            f"of {replayed.memories:,} memories included. "
            f"Meanwhile {counted(replayed.reads, 'read')} of states were answered, the slowest in "
            f"{replayed.slowest:.0f} ms. "
            + (
                "Then everything was switched over to it."
                if replayed.switched
                else "IT IS NOT THE SAME, and was not switched to."
            )
        )
        self.table(
            ("agent", "events", "hash chain as written", "hash chain as rebuilt", ""),
            [
                (
                    each.agent,
                    str(each.rebuilt.last),
                    f"{each.live.chain[:CHAIN_SHOWN]}…",
                    f"{each.rebuilt.chain[:CHAIN_SHOWN]}…",
                    equal(each.equal),
                )
                for each in replayed.chains
            ],
            right="lr",
        )
        self.table(
            ("table", "rows before", "rows as rebuilt"),
            [
                (_table(old.table), f"{old.rows:,}", f"{new.rows:,}")
                for old, new in zip(before.rows, replayed.rows, strict=True)
            ],
            right="lrr",
        )
        same = replayed.states_equal and replayed.recall_equal
        self.say(
            "Read from it, each agent's state and the answers of memory are "
            + ("the same." if same else "NOT THE SAME.")
        )
        self.gap()

    def note(self, text: str) -> None:
        """A line of its own."""
        self.indented(Text(text, style="dim"))

    def ends(self, results: ClusterResults, *, kept: bool) -> None:
        """The verdict, and the way on."""
        self.verdict(results.checks)
        config = Path(results.folder) / SETTINGS
        self.say(
            f"{counted(len(results.work.kills), 'SIGKILL')}; {results.seconds:.0f} s in all. "
            + (
                "The services go on until Ctrl-C. In another terminal:"
                if kept
                else "The services are stopped, all they recorded stays in the engines. To look "
                "around in it, start them again and leave them running:"
            )
        )
        if not kept:
            self.commands([["perdure", "serve", "all", "--config", str(config)]])
            self.say("Then, in another terminal:")
        self.commands(results.commands)
        self.say(
            f"For agents of yours: perdure.connect({str(config)!r}), or {results.store!r} from any "
            "machine that reaches the gateway and Kafka. The next demo in this folder drops all of "
            "it."
        )
        self.gap()

    @property
    def _chart_width(self) -> int:
        return min(CHART_WIDTH, self.width - 30)

    def _curve(self, work: Work, service: str) -> None:
        """One service: columns for the recorder, which all others wait for, else a line of them."""
        values = columns(work.lag, service, self._chart_width)
        top = max(sample.behind[service] for sample in work.lag)
        colour = _COLOURS.get(service, "green")
        lines = bars(values, CHART_HEIGHT if service == "recorder" else 1)
        for number, line in enumerate(lines):
            text = Text(line, style=colour)
            text.append(f" {top:>5} {service}" if number == 0 else "", style="default")
            self.indented(text)
        self.indented(self._marks(work, service))

    def _marks(self, work: Work, service: str) -> Text:
        """Under a curve: where its service was killed, and where the agents' process was."""
        end = work.lag[-1].second or 1
        marks = [" "] * self._chart_width
        for kill in work.kills:
            if kill.victim in {service, AGENTS}:
                at = min(len(marks) - 1, int(kill.second / end * len(marks)))
                marks[at] = "✗" if kill.victim == service else marks[at].replace(" ", "╵")
        text = Text()
        for mark in marks:
            text.append(mark, style="red" if mark == "✗" else "dim")
        return text


class _Working:
    """Tells of agents and services at work."""

    def __init__(
        self, page: Page, bar: Progress, written: TaskID, recorded: TaskID, total: int
    ) -> None:
        self._page = page
        self._bar = bar
        self._written = written
        self._recorded = recorded
        self._total = total
        self._count = 0
        self._killed = False

    def acknowledged(self, count: int) -> None:
        self._count = count
        self._bar.update(self._written, completed=count)

    def behind(self, sample: Sample) -> None:
        self._bar.update(self._recorded, completed=max(0, self._count - sample.behind["recorder"]))

    def killed(self, kill: Kill) -> None:
        text = Text(f"  ✗ {kill.victim:<12}", style="red")
        text.append(f" killed after {kill.acknowledged} acknowledged events", style="default")
        if kill.victim == AGENTS:
            self._killed = True
            text.append(f", {kill.runs_cut_short} conversations cut short", style="default")
        elif kill.behind:
            text.append(f", {kill.behind} of them not recorded yet", style="default")
        self._page.show(text)

    def started(self, start: Restart) -> None:
        if self._killed:
            text = Text(f"  ↻ {AGENTS:<12}", style="green")
            text.append(
                f" started again: {start.agents} opened where they stood, in "
                f"{start.milliseconds:.0f} ms",
                style="default",
            )
            self._page.show(text)

    def back(self, service: str, seconds: float) -> None:
        text = Text(f"  ↻ {service:<12}", style="green")
        text.append(f" ready again after {seconds:.1f} s", style="default")
        self._page.show(text)

    def done(self) -> None:
        self._bar.update(self._written, completed=self._total)
        self._bar.update(self._recorded, completed=self._total)


def _table(name: str) -> str:
    """The name of a table without its keyspace's."""
    return name.partition(".")[2]


def _kill(kill: Kill) -> tuple[Cell, ...]:
    return (
        f"{kill.second:.1f}",
        kill.victim,
        str(kill.acknowledged),
        str(kill.behind),
        "" if kill.runs_cut_short is None else str(kill.runs_cut_short),
        "" if kill.away is None else f"{kill.away:.1f} s",
    )
