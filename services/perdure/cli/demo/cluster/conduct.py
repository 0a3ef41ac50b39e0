"""The demo on a cluster from beginning to end: each stage is computed, then told."""

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import perdure
from perdure.cli.demo import crashes, folder, journal, outcome
from perdure.cli.demo.branch import fork_name, go_another_way
from perdure.cli.demo.cluster import engines, place, services
from perdure.cli.demo.cluster.lag import watched
from perdure.cli.demo.cluster.looking import look
from perdure.cli.demo.cluster.rebuilding import rebuild
from perdure.cli.demo.cluster.results import ClusterResults, Replayed, Stored, Work
from perdure.cli.demo.cluster.working import AGENTS, Watcher, Working
from perdure.cli.demo.journal import JOURNAL
from perdure.cli.demo.judge import judged
from perdure.cli.demo.past import look_back
from perdure.cli.demo.remembering import ask
from perdure.cli.demo.results import AgentResult, Fork, Past, Recall, Tally, Verified
from perdure.cli.demo.script import agent_of, planned, shipped_runs
from perdure.kafka.wire import DEFAULT_STORE
from perdure.serving import stop_on_signals
from perdure.settings import Cluster


class Audience(Protocol):
    """Who is told what was found out, stage by stage, and how far a stage is."""

    def begins(
        self, path: Path, cluster: Cluster, runs: int, kills: int, seed: int, *, cleared: bool
    ) -> None:
        """What is going to happen."""

    def working(self, total: int) -> AbstractContextManager[Watcher]:
        """The agents are at work on `total` events."""

    def at_work(self, what: str, total: int) -> AbstractContextManager[crashes.Watcher]:
        """Another agent process is at work on `total` events."""

    def progress(
        self, what: str, total: int | None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A stage is under way."""

    def work(self, work: Work) -> None:
        """How far the services were behind."""

    def events(self, work: Work, tally: Tally, agents: Sequence[AgentResult]) -> None:
        """What became of the events and states."""

    def past(self, past: Past) -> None:
        """What was earlier."""

    def fork(self, fork: Fork) -> None:
        """What went another way."""

    def stored(self, stored: Stored) -> None:
        """What lies where."""

    def recall(self, recall: Recall) -> None:
        """What was remembered."""

    def replayed(self, replayed: Replayed, before: Stored) -> None:
        """What was rebuilt from the log, beside what was there."""

    def note(self, text: str) -> None:
        """Something to know that is no result."""

    def verified(self, verified: Verified) -> None:
        """Whether all of it is as it was written."""

    def ends(self, results: ClusterResults, *, kept: bool) -> None:
        """What held, and where to look further; whether the services go on."""


async def conduct(
    path: Path,
    given: Cluster,
    *,
    runs: int,
    kills: int,
    seed: int,
    fresh: bool,
    keep: bool,
    audience: Audience,
) -> ClusterResults:
    """Run the demo on the engines of a cluster, under a name of its own, and tell the audience.

    With `keep` the services go on until a signal.

    Raises:
        InvalidInput: the folder is not a demo's, or its cluster holds somebody's work.
        Unavailable: an engine doesn't answer; the agents' process or a service failed by itself.
    """
    began = time.perf_counter()
    chosen = shipped_runs(runs)
    total = sum(map(planned, chosen))
    names = [*map(agent_of, chosen), fork_name(chosen[0])]
    async with contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(engines.opened(given))
        stack.enter_context(folder.claimed(path, names))
        cleared = await place.clear(path, opened, names, fresh=fresh)
        cluster = place.planned_cluster(path, given, len(services.NAMES))
        place.write(path, cluster)
        audience.begins(path, cluster, len(chosen), kills, seed, cleared=cleared)
        with audience.progress("starting the services", len(services.NAMES)) as ready:
            running = await stack.enter_async_context(services.running(path, cluster, ready))
        url = f"perdure://{cluster.gateway_host}:{cluster.gateway_port}/{DEFAULT_STORE}"

        with audience.working(total) as watcher:
            async with watched(opened, cluster, watcher.behind) as lag:
                working = Working(path, url, chosen, services=running, lag=lag, watcher=watcher)
                work = await working.done(kills, random.Random(seed))
        audience.work(work)

        other = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with audience.at_work("the same in one folder, to compare", total) as embedded:
            await crashes.work_and_kill(other, chosen, 0, random.Random(seed), embedded)
        store = await stack.enter_async_context(perdure.connect(f"{url}?ack=recorded"))
        uninterrupted = await stack.enter_async_context(perdure.connect(other, create=False))
        events = await outcome.streams(store)
        tally = judged(journal.read(path / JOURNAL), events, await outcome.streams(uninterrupted))
        agents = [
            await outcome.compared(store, uninterrupted, run, working.cut_short) for run in chosen
        ]
        audience.events(work, tally, agents)

        with audience.progress("looking up every past state", tally.recorded) as progress:
            past = await look_back(store, chosen, events, progress)
        audience.past(past)
        fork = await go_another_way(store, chosen[0])
        audience.fork(fork)
        with audience.progress("asking the agent's memory", None):
            recall = await ask(store, chosen[0])
        audience.recall(recall)
        with audience.progress("counting rows and objects", None):
            stored = await look(
                store,
                opened,
                cluster,
                folder=path,
                runs=chosen,
                events=events,
                snapshot_bytes=past.snapshot_bytes,
            )
        audience.stored(stored)
        replayed = await rebuild(
            store,
            opened,
            cluster,
            chosen,
            before=recall,
            tell=audience.note,
            progress=audience.progress,
        )
        audience.replayed(replayed, stored)
        with audience.progress("verifying", None):
            verified = await outcome.verified(store)
        audience.verified(verified)

        results = ClusterResults(
            folder=str(path),
            cluster=cluster.name,
            store=url,
            seed=seed,
            runs=len(chosen),
            seconds=time.perf_counter() - began,
            work=work,
            tally=tally,
            agents=agents,
            past=past,
            fork=fork,
            recall=recall,
            stored=stored,
            replayed=replayed,
            verified=verified,
            checks={
                **outcome.checks_of_events(tally, agents),
                "whoever was killed came back": {kill.victim for kill in work.kills}
                >= set(services.NAMES)
                and all(kill.away is not None for kill in work.kills if kill.victim != AGENTS),
                "every service caught up": not any(work.lag[-1].behind.values()),
                **outcome.checks_of_views(past, fork, recall),
                "the rebuilt generation equals the one before": replayed.switched
                and not replayed.different
                and all(each.equal for each in replayed.chains)
                and replayed.states_equal
                and replayed.recall_equal,
                "verify found nothing": not verified.findings,
            },
            commands=_commands(path, past, fork, recall),
        )
        audience.ends(results, kept=keep)
        if keep:
            with stop_on_signals() as stop:
                await stop.wait()
        return results


def _commands(path: Path, past: Past, fork: Fork, recall: Recall) -> list[list[str]]:
    """What to type to look further, while the services run."""
    then, until = str(past.then), str(past.until)
    return [
        ["perdure", *arguments, "--store", str(path / place.SETTINGS)]
        for arguments in (
            ["agents"],
            ["events", past.agent, "--type", "tool.*"],
            ["state", past.agent, "--at", then],
            ["diff", past.agent, then, until],
            ["events", fork.fork, "--first", str(fork.at)],
            ["recall", recall.agent, "how does the customer want to pay?"],
            ["checkpoints", past.agent],
            ["verify"],
        )
    ]
