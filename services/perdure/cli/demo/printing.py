"""What the embedded demo shows. Every number comes out of the results."""

from collections.abc import Sequence
from pathlib import Path

from perdure.cli.demo.journal import JOURNAL
from perdure.cli.demo.page import Cell, ratio
from perdure.cli.demo.results import AgentResult, Crashes, Results, Sizes, Tally
from perdure.cli.demo.telling import Told
from perdure.cli.output import counted, size


class Printed(Told):
    """Tells the demo on a console."""

    def begins(self, path: Path, runs: int, kills: int, seed: int, *, cleared: bool) -> None:
        """Say what is going to happen."""
        self.heading("perdure demo")
        self.say(
            f"An agent process works through {runs} recorded conversations of an airline's "
            f"customer service, all at once. It is to be killed {counted(kills, 'time')} on the "
            "way (SIGKILL: no warning, no chance to save), at moments drawn with seed "
            f"{seed}, and started again each time."
        )
        self.say(
            "All it does is recorded as events in a log. After each answer of the log, the agent "
            f"notes the event in a plain file of its own, {path / JOURNAL}: with that the log is "
            "compared in the end."
        )
        if cleared:
            self.say(f"(What an earlier demo had left in {path} is cleared.)")
        self.gap()

    def crashes(self, crashes: Crashes, tally: Tally, agents: Sequence[AgentResult]) -> None:
        """Events, then states."""
        self.gap()
        self.heading("Was anything lost?")
        self.say(
            f"{crashes.processes} processes, one after the other, did the work of one in "
            f"{crashes.seconds:.1f} s. None of them knew what had become of the one before: each "
            "looked at the states of its agents, and went on from there."
        )
        unheard = sum(kill.unheard for kill in crashes.kills)
        self.tally(
            tally, [(str(unheard), "unheard", "in the log already when a kill cut off the answer")]
        )
        self.agents(agents, "in another folder, by a process that nobody killed")

    def sizes(self, sizes: Sizes) -> None:
        """Bytes, beside plain JSON."""
        self.heading("What does it take on disk?")
        self.say(
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
                rows.append((*first, ratio(stored, count), size(count), name))

        messages = ("the messages alone", sizes.messages_json)
        snapshots = ("the state after each event", sizes.snapshots)
        beside(
            f"{sizes.objects} checkpoints", sizes.objects_stored, ("the same", sizes.objects_json)
        )
        beside(
            "all events", sizes.events_stored, ("the same", sizes.events_json), messages, snapshots
        )
        beside("everything", sizes.store, messages, snapshots)
        self.table(("", "on disk", "ratio to", "JSON", ""), rows, right="lrrr")
        self.say(
            "(Everything: events, memory with its indexes, checkpoints, and pages kept free for "
            "what is to come.)"
        )
        self.gap()

    def ends(self, results: Results) -> None:
        """The verdict, and the way on."""
        self.verdict(results.checks)
        self.say(
            f"Killed {counted(len(results.crashes.kills), 'time')}; {results.seconds:.0f} s in "
            f"all. The folder {results.folder} is yours to look around in:"
        )
        self.commands(results.commands)
