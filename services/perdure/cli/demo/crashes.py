"""Killing the agent process at random moments, and starting it again until its work is done."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import perdure
from perdure.cli.demo import journal, outcome
from perdure.cli.demo.journal import JOURNAL, Opened
from perdure.cli.demo.judge import Streams, lost
from perdure.cli.demo.process import agent_process, moments, said
from perdure.cli.demo.results import Crashes, Kill, Restart
from perdure.cli.demo.script import agent_of, planned
from perdure.errors import Unavailable
from perdure.model.runs import Run


class Watcher(Protocol):
    """Who is told how it goes."""

    def acknowledged(self, count: int) -> None:
        """So many distinct events were acknowledged so far."""

    def killed(self, number: int, kill: Kill) -> None:
        """The process was killed."""

    def started(self, start: Restart) -> None:
        """A process was started, and has opened its agents."""


async def work_and_kill(
    folder: Path, runs: Sequence[Run], kills: int, chance: random.Random, watcher: Watcher
) -> tuple[Crashes, Counter[str]]:
    """Have the runs worked through in a store, with `kills` SIGKILLs on the way.

    Also gives how often each agent was cut short.

    Raises:
        Unavailable: the agent process ended by itself before its work was done.
    """
    began = time.perf_counter()
    total = sum(map(planned, runs))
    when = moments(total, kills, chance)
    heard: set[tuple[str, int]] = set()
    done: list[Kill] = []
    starts: list[Restart] = []
    cut_short: Counter[str] = Counter()
    unheard: set[tuple[str, int]] = set()
    process = 0
    while True:
        process += 1
        until = max(when[len(done)], len(heard) + 1) if len(done) < len(when) else None
        killed = False
        async with agent_process(folder, folder / JOURNAL, len(runs), process) as worker:
            async for told in said(worker):
                if isinstance(told, Opened):
                    starts.append(Restart(told.agents, told.seconds * 1000))
                    watcher.started(starts[-1])
                    continue
                heard.add((told.agent, told.sequence))
                watcher.acknowledged(len(heard))
                if until is not None and len(heard) >= until:
                    killed = True
                    worker.kill()
                    break
            status = await worker.wait()
        if status == 0:
            return Crashes(process, time.perf_counter() - began, done, starts), cut_short
        if not killed:
            raise Unavailable(
                f"the agent process ended with status {status} before its work was done",
                hint="what it said is above; the store holds everything it had recorded",
            )
        kill, unfinished = await _after_kill(folder, runs, unheard)
        done.append(kill)
        cut_short.update(unfinished)
        watcher.killed(len(done), kill)


async def streams(folder: Path) -> Streams:
    """All events of the demo's own agents in a folder."""
    async with perdure.connect(folder, create=False) as store:
        return await outcome.streams(store)


async def _after_kill(
    folder: Path, runs: Sequence[Run], unheard: set[tuple[str, int]]
) -> tuple[Kill, list[str]]:
    """What the store holds right after a kill, and which agents are in mid-run.

    `unheard` has the events of earlier kills that are counted already, and gets those of this one.
    """
    noted = journal.read(folder / JOURNAL)
    recorded = await streams(folder)
    acknowledged = {(each.agent, each.sequence) for each in noted}
    places = {(agent, event.sequence) for agent, stream in recorded.items() for event in stream}
    unfinished = [
        agent_of(run) for run in runs if 0 < len(recorded.get(agent_of(run), ())) < planned(run)
    ]
    gone = lost(noted, recorded)
    new = places - acknowledged - unheard
    unheard |= new
    kill = Kill(
        acknowledged=len(acknowledged),
        recorded=len(places),
        unheard=len(new),
        lost=len(gone),
        runs_cut_short=len(unfinished),
    )
    return kill, unfinished
