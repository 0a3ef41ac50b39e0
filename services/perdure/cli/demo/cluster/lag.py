"""How far the services are behind the topics, sampled while the work goes on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from perdure.cli.demo.cluster.engines import Engines
from perdure.cli.demo.cluster.results import Sample
from perdure.errors import Unavailable
from perdure.settings import Cluster

SAMPLE_SECONDS: Final = 0.25
DRAIN_SECONDS: Final = 60.0
"""How long the services may take to read what is left, once the work is done."""

BLOCKS: Final = " ▁▂▃▄▅▆▇█"


class Lag:
    """Samples since the work began. `watched` gives one that is filled."""

    def __init__(self, engines: Engines, cluster: Cluster, told: Callable[[Sample], None]) -> None:
        self.samples: list[Sample] = []
        self._engines = engines
        self._cluster = cluster
        self._told = told
        self._began = time.perf_counter()

    @property
    def second(self) -> float:
        """How long the work goes on already."""
        return time.perf_counter() - self._began

    async def sample(self) -> Sample:
        """How far each service is behind now. Raises Unreachable."""
        second = self.second
        sample = Sample(second, await self._engines.lag(self._cluster))
        self.samples.append(sample)
        self._told(sample)
        return sample

    async def follow(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def drained(self) -> None:
        """Wait until every service has committed everything.

        Raises:
            Unavailable: one of them takes too long.
        """

        async def done() -> bool:
            return not any((await self.sample()).behind.values())

        def late(_: object) -> bool:
            behind = {name: count for name, count in self.samples[-1].behind.items() if count}
            raise Unavailable(
                f"after {DRAIN_SECONDS:.0f} s services are behind: {behind}",
                hint="their logs are in the demo's folder",
            )

        await AsyncRetrying(
            retry=retry_if_result(lambda done: not done),
            wait=wait_fixed(SAMPLE_SECONDS),
            stop=stop_after_delay(DRAIN_SECONDS),
            retry_error_callback=late,
        )(done)


@contextlib.asynccontextmanager
async def watched(
    engines: Engines, cluster: Cluster, told: Callable[[Sample], None]
) -> AsyncIterator[Lag]:
    """The lag from now on, while the context lasts."""
    lag = Lag(engines, cluster, told)
    following = asyncio.create_task(lag.follow())
    try:
        yield lag
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def columns(samples: Sequence[Sample], service: str, width: int) -> list[int]:
    """The most that a service was behind in each of `width` equal parts of the time.

    A part without a sample has what the one before has.

    >>> samples = [Sample(0, {"x": 1}), Sample(1, {"x": 5}), Sample(3, {"x": 2})]
    >>> columns([*samples, Sample(4, {"x": 0})], "x", 4)
    [1, 5, 5, 2]
    """
    end = max((sample.second for sample in samples), default=0) or 1
    found: list[int | None] = [None] * width
    for sample in samples:
        at = min(width - 1, int(sample.second / end * width))
        found[at] = max(found[at] or 0, sample.behind.get(service, 0))
    filled, last = [], 0
    for value in found:
        last = last if value is None else value
        filled.append(last)
    return filled


def bars(values: Sequence[int], height: int) -> list[str]:
    """Columns of text, `height` lines from the top; the largest value fills them.

    >>> bars([0, 1, 2, 4], 2)
    ['   █', ' ▄██']
    """
    top = max(values, default=0) or 1
    steps = len(BLOCKS) - 1
    # Whatever is not nothing is seen.
    levels = [max(value > 0, round(value / top * height * steps)) for value in values]
    return [
        "".join(BLOCKS[min(steps, max(0, level - line * steps))] for level in levels)
        for line in reversed(range(height))
    ]
