"""A replay: the log into a fresh generation of the tables, while the live one is read."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager

import perdure
from perdure.cli.demo.cluster.engines import Engines
from perdure.cli.demo.cluster.looking import FIRST_GENERATION
from perdure.cli.demo.cluster.results import Chains, Replayed
from perdure.cli.demo.remembering import ask
from perdure.cli.demo.results import Recall
from perdure.model.runs import Run
from perdure.model.upcast import default_upcasters
from perdure.replay import engines as replaying
from perdure.replay.replay import replay_all
from perdure.settings import Cluster


async def rebuild(
    store: perdure.Store,
    engines: Engines,
    cluster: Cluster,
    runs: Sequence[Run],
    *,
    before: Recall,
    tell: Callable[[str], None],
    progress: Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]],
) -> Replayed:
    """Replay everything, switch over, and compare; `before` is what was recalled until now.

    Raises:
        PerdureError: the log can't be replayed.
    """
    agents = [line.agent async for line in store.agents()]
    states = [await store.view(agent).state_at() for agent in agents]
    async with replaying.opened(cluster, tell) as opened, _read(store, agents) as reads:
        outcome = await replay_all(opened, default_upcasters, progress)
    built = outcome.generation
    recalled = await ask(store, runs[0])
    return Replayed(
        generation=built,
        seconds=outcome.seconds,
        records=outcome.records,
        events=outcome.events,
        states=outcome.states,
        memories=outcome.memories,
        different=outcome.different,
        switched=outcome.switched,
        chains=[
            Chains(
                agent,
                await engines.head(cluster, FIRST_GENERATION, agent),
                await engines.head(cluster, built, agent),
            )
            for agent in agents
        ],
        rows=await engines.rows(cluster, built),
        reads=len(reads),
        slowest=max(reads, default=0.0),
        states_equal=states == [await store.view(agent).state_at() for agent in agents],
        recall_equal=[hit.sequence for hit in recalled.hits]
        == [hit.sequence for hit in before.hits],
    )


@contextlib.asynccontextmanager
async def _read(store: perdure.Store, agents: Sequence[str]) -> AsyncIterator[list[float]]:
    """Reads states all along; gives what each took, in milliseconds. Raises what a read raises."""
    took: list[float] = []

    async def read() -> None:
        while True:
            for agent in agents:
                began = time.perf_counter()
                await store.view(agent).state_at()
                took.append((time.perf_counter() - began) * 1000)

    reading = asyncio.create_task(read())
    try:
        yield took
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
