"""Killing the agent process at random moments, and starting it again until its work is done."""

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

import perdure
from perdure.cli.demo import journal
from perdure.cli.demo.journal import JOURNAL, Acknowledged, Opened
from perdure.cli.demo.judge import Streams, lost
from perdure.cli.demo.results import Crashes, Kill, Restart
from perdure.cli.demo.script import NAMESPACE, agent_of, planned
from perdure.errors import Unavailable
from perdure.model.event import Event
from perdure.model.runs import Run

KILLS_FROM: Final = 0.05
KILLS_TO: Final = 0.9
"""Between which shares of the work the kills fall: at the very end, a kill may come too late."""

_line_decoder = msgspec.json.Decoder(Acknowledged | Opened)


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
    moments = _moments(total, kills, chance)
    heard: set[tuple[str, int]] = set()
    done: list[Kill] = []
    starts: list[Restart] = []
    cut_short: Counter[str] = Counter()
    unheard: set[tuple[str, int]] = set()
    process = 0
    while True:
        process += 1
        until = max(moments[len(done)], len(heard) + 1) if len(done) < len(moments) else None
        killed = False
        async with _agent_process(folder, len(runs), process) as worker:
            async for said in _said(worker):
                if isinstance(said, Opened):
                    starts.append(Restart(said.agents, said.seconds * 1000))
                    watcher.started(starts[-1])
                    continue
                heard.add((said.agent, said.sequence))
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


async def streams(folder: Path) -> dict[str, list[Event]]:
    """All events of the demo's own agents."""
    found = {}
    async with perdure.connect(folder, create=False) as store:
        async for line in store.agents(f"{NAMESPACE}/"):
            view = store.view(line.agent)
            found[line.agent] = [event async for event in view.events()] if line.sequence else []
    return found


def _moments(total: int, kills: int, chance: random.Random) -> list[int]:
    """After how many acknowledged events to kill, in order."""
    possible = range(max(1, int(total * KILLS_FROM)), max(2, int(total * KILLS_TO)))
    return sorted(chance.sample(possible, min(kills, len(possible))))


@contextlib.asynccontextmanager
async def _agent_process(
    folder: Path, runs: int, number: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent as a process of its own, which never outlives this block."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "perdure.cli.demo.worker",
        os.fspath(folder),
        os.fspath(folder / JOURNAL),
        str(runs),
        str(number),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for this process: it ends the other one itself, as hard as at any other time.
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()


async def _said(worker: asyncio.subprocess.Process) -> AsyncIterator[Acknowledged | Opened]:
    """What the process says on its standard output, line by line, until it ends."""
    if worker.stdout is None:
        return
    async for line in worker.stdout:
        if line.endswith(b"\n"):
            yield _line_decoder.decode(line)


async def _after_kill(
    folder: Path, runs: Sequence[Run], unheard: set[tuple[str, int]]
) -> tuple[Kill, list[str]]:
    """What the store holds right after a kill, and which agents are in mid-run.

    `unheard` has the events of earlier kills that are counted already, and gets those of this one.
    """
    said = journal.read(folder / JOURNAL)
    recorded: Streams = await streams(folder)
    acknowledged = {(each.agent, each.sequence) for each in said}
    places = {(agent, event.sequence) for agent, stream in recorded.items() for event in stream}
    unfinished = [
        agent_of(run) for run in runs if 0 < len(recorded.get(agent_of(run), ())) < planned(run)
    ]
    gone = lost(said, recorded)
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
