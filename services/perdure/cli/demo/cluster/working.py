"""Agents write through Kafka, and their process and each service are killed on the way."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from perdure.cli.demo import journal
from perdure.cli.demo.cluster.lag import Lag
from perdure.cli.demo.cluster.place import LOGS
from perdure.cli.demo.cluster.results import Kill, Sample, Work
from perdure.cli.demo.cluster.services import NAMES, Services
from perdure.cli.demo.journal import JOURNAL, Acknowledged, Opened
from perdure.cli.demo.process import agent_process, moments, said
from perdure.cli.demo.results import Restart
from perdure.cli.demo.script import agent_of, planned
from perdure.errors import Unavailable
from perdure.model.runs import Run

AGENTS: Final = "agents"
"""The victim that is no service: the process with all agents."""

THINKING_SECONDS: Final = 0.2
"""What an agent waits before each message: about the least that a model would take."""


class Watcher(Protocol):
    """Who is told how it goes."""

    def acknowledged(self, count: int) -> None:
        """So many distinct events were acknowledged so far."""

    def behind(self, sample: Sample) -> None:
        """How far the services are."""

    def killed(self, kill: Kill) -> None:
        """The agents' process or a service was killed."""

    def started(self, start: Restart) -> None:
        """A process with all agents was started, and has opened them."""

    def back(self, service: str, seconds: float) -> None:
        """A service that was killed is ready again, after so many seconds."""


def plan(total: int, kills: int, chance: random.Random) -> list[tuple[int, str]]:
    """After how many acknowledged events to kill whom: each service once, the agents `kills` times.

    >>> sorted({victim for _, victim in plan(600, 2, random.Random(1))})
    ['agents', 'checkpointer', 'gateway', 'memorizer', 'projector', 'recorder']
    """
    victims = [*NAMES, *[AGENTS] * kills]
    chance.shuffle(victims)
    return list(zip(moments(total, len(victims), chance), victims, strict=False))


class Working:
    """One demo's work, from the first event until every service has read the last."""

    def __init__(
        self,
        folder: Path,
        store: str,
        runs: Sequence[Run],
        *,
        services: Services,
        lag: Lag,
        watcher: Watcher,
    ) -> None:
        self._folder = folder
        self._store = store
        self._runs = runs
        self._services = services
        self._lag = lag
        self._watcher = watcher
        self._heard: set[tuple[str, str | None]] = set()
        self._kills: list[Kill] = []
        self._away: dict[str, float] = {}
        self._starts: list[Restart] = []
        self._last = 0.0
        self.cut_short: Counter[str] = Counter()
        """How often each agent's process was killed in the middle of its run."""

    async def done(self, kills: int, chance: random.Random) -> Work:
        """Have all of it done.

        Raises:
            Unavailable: the agents' process or a service ended by itself, or is too slow.
        """
        todo = plan(sum(map(planned, self._runs)), kills, chance)
        process = 0
        finished = False
        while not finished:
            process += 1
            finished = await self._process(process, todo)
        await self._services.restarted()
        await self._lag.drained()
        return Work(
            seconds=self._last,
            drained=self._lag.samples[-1].second - self._last,
            kills=[
                Kill(
                    kill.victim,
                    kill.second,
                    kill.acknowledged,
                    kill.behind,
                    kill.runs_cut_short,
                    self._away.get(kill.victim),
                )
                for kill in self._kills
            ],
            starts=self._starts,
            lag=self._lag.samples,
        )

    async def _process(self, number: int, todo: list[tuple[int, str]]) -> bool:
        """One process, until its work is done (True) or it is killed."""
        thinking = THINKING_SECONDS
        before = len(self._heard)
        async with agent_process(
            self._store, self._folder / JOURNAL, len(self._runs), number, thinking=thinking
        ) as worker:
            listening = asyncio.create_task(self._listen(worker, before, todo))
            return await self._services.unless_broken(listening)

    async def _listen(
        self, worker: asyncio.subprocess.Process, before: int, todo: list[tuple[int, str]]
    ) -> bool:
        """Follow what a process says, and kill whoever's moment has come; see `_process`."""
        async for told in said(worker):
            if isinstance(told, Opened):
                self._starts.append(Restart(told.agents, told.seconds * 1000))
                self._watcher.started(self._starts[-1])
                continue
            self._heard.add((told.agent, told.id or told.digest))
            self._last = self._lag.second
            self._watcher.acknowledged(len(self._heard))
            # Each process gets something done: else two kills would count as one.
            while todo and todo[0][0] <= len(self._heard) > before:
                _, victim = todo.pop(0)
                if victim == AGENTS:
                    worker.kill()
                    await worker.wait()
                    self._note(victim)
                    return False
                await self._kill(victim)
        status = await worker.wait()
        if status:
            raise Unavailable(
                f"the agents' process ended with status {status} before its work was done",
                hint=f"what it said is above; the services' logs are in {self._folder / LOGS}",
            )
        return True

    async def _kill(self, service: str) -> None:
        def back(seconds: float) -> None:
            self._away[service] = seconds
            self._watcher.back(service, seconds)

        self._note(service)
        await self._services.kill_and_start(service, back)

    def _note(self, victim: str) -> None:
        unfinished = None
        if victim == AGENTS:
            noted = journal.read(self._folder / JOURNAL)
            agents = self._unfinished(noted)
            self.cut_short.update(agents)
            unfinished = len(agents)
        samples = self._lag.samples
        behind = samples[-1].behind["recorder"] if samples else 0
        kill = Kill(victim, self._lag.second, len(self._heard), behind, unfinished)
        self._kills.append(kill)
        self._watcher.killed(kill)

    def _unfinished(self, noted: Sequence[Acknowledged]) -> list[str]:
        """The agents in mid-run, by what was acknowledged to them."""
        there = Counter(agent for agent, _ in {(a.agent, a.id or a.digest) for a in noted})
        return [agent_of(run) for run in self._runs if 0 < there[agent_of(run)] < planned(run)]
