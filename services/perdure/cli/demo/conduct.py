"""The demo from beginning to end: each stage is computed, then told."""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import perdure
from perdure.cli.demo import folder, journal, outcome
from perdure.cli.demo.branch import fork_name, go_another_way
from perdure.cli.demo.crashes import Watcher, streams, work_and_kill
from perdure.cli.demo.journal import JOURNAL
from perdure.cli.demo.judge import judged
from perdure.cli.demo.past import look_back
from perdure.cli.demo.remembering import ask
from perdure.cli.demo.results import (
    AgentResult,
    Crashes,
    Fork,
    Past,
    Recall,
    Results,
    Sizes,
    Tally,
    Verified,
)
from perdure.cli.demo.script import agent_of, planned, shipped_runs
from perdure.cli.demo.sizes import measured


class Audience(Protocol):
    """Who is told what was found out, stage by stage, and how far a stage is."""

    def begins(self, path: Path, runs: int, kills: int, seed: int, *, cleared: bool) -> None:
        """What is going to happen."""

    def at_work(self, what: str, total: int) -> AbstractContextManager[Watcher]:
        """An agent process is at work on `total` events."""

    def progress(
        self, what: str, total: int | None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A stage is under way."""

    def crashes(self, crashes: Crashes, tally: Tally, agents: Sequence[AgentResult]) -> None:
        """What became of the events and states."""

    def past(self, past: Past) -> None:
        """What was earlier."""

    def fork(self, fork: Fork) -> None:
        """What went another way."""

    def recall(self, recall: Recall) -> None:
        """What was remembered."""

    def sizes(self, sizes: Sizes) -> None:
        """What it takes on disk."""

    def verified(self, verified: Verified) -> None:
        """Whether all of it is as it was written."""

    def ends(self, results: Results) -> None:
        """What held, and where to look further."""


async def conduct(
    path: Path, *, runs: int, kills: int, seed: int, fresh: bool, audience: Audience
) -> Results:
    """Run the demo in a folder, and tell the audience.

    Raises:
        InvalidInput: the folder is not a demo's, or holds somebody's work.
        Unavailable: the agent process failed by itself.
    """
    began = time.perf_counter()
    chosen = shipped_runs(runs)
    total = sum(map(planned, chosen))
    names = [*map(agent_of, chosen), fork_name(chosen[0])]
    with folder.claimed(path, names), tempfile.TemporaryDirectory() as other:
        cleared = await folder.clear(path, names, fresh=fresh)
        audience.begins(path, len(chosen), kills, seed, cleared=cleared)
        with audience.at_work("working, and being killed", total) as watcher:
            crashes, cut_short = await work_and_kill(
                path, chosen, kills, random.Random(seed), watcher
            )
        with audience.at_work("the same without interruption, to compare", total) as watcher:
            await work_and_kill(Path(other), chosen, 0, random.Random(seed), watcher)
        events = await streams(path)
        tally = judged(journal.read(path / JOURNAL), events, await streams(Path(other)))
        async with (
            perdure.connect(path, create=False) as store,
            perdure.connect(other, create=False) as uninterrupted,
        ):
            agents = [
                await outcome.compared(store, uninterrupted, run, cut_short) for run in chosen
            ]
            audience.crashes(crashes, tally, agents)
            with audience.progress("looking up every past state", tally.recorded) as progress:
                past = await look_back(store, chosen, events, progress)
            audience.past(past)
            sizes = await measured(store, path, chosen, events, past.snapshot_bytes)
            fork = await go_another_way(store, chosen[0])
            audience.fork(fork)
            with audience.progress("asking the agent's memory", None):
                recall = await ask(store, chosen[0])
            audience.recall(recall)
            audience.sizes(sizes)
            with audience.progress("verifying", None):
                verified = await outcome.verified(store)
            audience.verified(verified)
        results = Results(
            folder=str(path),
            seed=seed,
            runs=len(chosen),
            seconds=time.perf_counter() - began,
            crashes=crashes,
            tally=tally,
            agents=agents,
            past=past,
            fork=fork,
            recall=recall,
            sizes=sizes,
            verified=verified,
            checks={
                **outcome.checks_of_events(tally, agents, sum(kill.lost for kill in crashes.kills)),
                **outcome.checks_of_views(past, fork, recall),
                "verify found nothing": not verified.findings,
            },
            commands=_commands(path, past, fork, recall),
        )
        audience.ends(results)
        return results


def _commands(path: Path, past: Past, fork: Fork, recall: Recall) -> list[list[str]]:
    """What to type to look further: each of these works in the folder as it is left."""
    then, until = str(past.then), str(past.until)
    return [
        ["perdure", *arguments, "--store", str(path)]
        for arguments in (
            ["agents"],
            ["events", past.agent, "--type", "tool.*"],
            ["state", past.agent, "--at", then],
            ["diff", past.agent, then, until],
            ["events", fork.fork, "--first", str(fork.at)],
            ["fork", past.agent, "--at", then, "--name", f"{past.agent}-mine"],
            ["recall", recall.agent, "how does the customer want to pay?"],
            ["checkpoints", past.agent],
            ["verify"],
            ["doctor"],
        )
    ]
