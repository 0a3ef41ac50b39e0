"""The services of the demo's cluster as child processes: started, killed and started again.

Invariants:
- No service outlives the demo: each stops when its standard input ends.
- A service that ends without being told to is an error, at once.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

import aiohttp
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from perdure.cli.demo.cluster.place import LOGS, SETTINGS
from perdure.errors import Unavailable
from perdure.settings import VARIABLE_PREFIX, Cluster

NAMES: Final = ("recorder", "checkpointer", "memorizer", "projector", "gateway")

READY_SECONDS: Final = 90.0
STOP_SECONDS: Final = 40.0
POLL_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 2.0

T = TypeVar("T")


class Service:
    """One service in a process of its own."""

    def __init__(
        self,
        name: str,
        folder: Path,
        address: tuple[str, int],
        failed: Callable[[Unavailable], None],
    ) -> None:
        self.name = name
        self.log = folder / LOGS / f"{name}.log"
        self._folder = folder
        self._address = address
        self._failed = failed
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, or start it again."""
        host, port = self._address
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "perdure", "serve", self.name, "--with-parent"),
                *("--config", os.fspath(self._folder / SETTINGS)),
                *("--host", host, "--port", str(port)),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                # The file says it all: a variable that is set here would win over it.
                env={n: v for n, v in os.environ.items() if not n.startswith(VARIABLE_PREFIX)},
                start_new_session=True,  # Ctrl-C is for the demo, which tells its children
            )
        self._watching = asyncio.create_task(self._watch(self._process))

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._expect_its_end()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        """Have it finish what is in flight, and wait until it is gone."""
        self._expect_its_end()
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            await self.kill()

    async def ready(self, client: aiohttp.ClientSession) -> None:
        """Wait until it says that it can do its work.

        Raises:
            Unavailable: it takes too long.
        """
        await AsyncRetrying(
            retry=retry_if_result(lambda ready: not ready),
            wait=wait_fixed(POLL_SECONDS),
            stop=stop_after_delay(READY_SECONDS),
            retry_error_callback=self._late,
        )(self._answers, client)

    async def _answers(self, client: aiohttp.ClientSession) -> bool:
        host, port = self._address
        try:
            async with client.get(f"http://{host}:{port}/readyz") as answer:
                return answer.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        self._failed(self._problem(f"ended with status {status}"))

    def _expect_its_end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def _late(self, _: object) -> bool:
        raise self._problem(f"is not ready after {READY_SECONDS:.0f} s")

    def _problem(self, what: str) -> Unavailable:
        return Unavailable(f"the {self.name} {what}", hint=f"its log is {self.log}")


class Services:
    """One of each service. `running` gives them."""

    def __init__(self, folder: Path, cluster: Cluster, client: aiohttp.ClientSession) -> None:
        self._client = client
        self._restarts: list[asyncio.Task[None]] = []
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises when a service has ended by itself, or doesn't come back."""
        self._all = {
            name: Service(
                name,
                folder,
                (cluster.gateway_host, cluster.gateway_port)
                if name == "gateway"
                else (cluster.health_host, cluster.health_port + number),
                self._fail,
            )
            for number, name in enumerate(NAMES)
        }

    async def kill_and_start(self, name: str, ready: Callable[[float], None]) -> None:
        """SIGKILL a service and start it at once; `ready` hears how many seconds it was away."""
        service = self._all[name]
        began = time.perf_counter()
        await service.kill()
        await service.start()

        async def wait() -> None:
            try:
                await service.ready(self._client)
            except Unavailable as error:
                self._fail(error)
            else:
                ready(time.perf_counter() - began)

        self._restarts.append(asyncio.create_task(wait()))

    async def restarted(self) -> None:
        """Wait until all that were started again are ready. Raises as `unless_broken`."""
        restarts, self._restarts = self._restarts, []
        await self.unless_broken(asyncio.gather(*restarts))

    async def start(self, ready: Callable[[int], None]) -> None:
        """Start all of them; `ready` hears how many are. Raises as `unless_broken`."""
        await asyncio.gather(*(service.start() for service in self._all.values()))

        async def wait() -> None:
            waits = [service.ready(self._client) for service in self._all.values()]
            for done, each in enumerate(asyncio.as_completed(waits), start=1):
                await each
                ready(done)

        await self.unless_broken(asyncio.create_task(wait()))

    async def unless_broken(self, work: asyncio.Future[T]) -> T:
        """What the work gives; it is cancelled when a service has ended by itself.

        Raises:
            Unavailable: one has, or it doesn't come back; names its log.
        """
        try:
            both: set[asyncio.Future[T] | asyncio.Future[None]] = {work, self.broken}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self.broken
            return await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def stop(self) -> None:
        """Have all of them finish and end."""
        for restart in self._restarts:
            restart.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)
        await asyncio.gather(*(service.stop() for service in self._all.values()))

    def _fail(self, error: Unavailable) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)
            self.broken.exception()  # it is told where somebody waits


@contextlib.asynccontextmanager
async def running(
    folder: Path, cluster: Cluster, ready: Callable[[int], None]
) -> AsyncIterator[Services]:
    """All services of a cluster, ready, for as long as the context lasts.

    Raises:
        Unavailable: one of them ended by itself, or is not ready in time.
    """
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        services = Services(folder, cluster, client)
        try:
            await services.start(ready)
            yield services
        finally:
            await services.stop()
