"""All services of a cluster as child processes, started again when they end.

Invariants:
- A child never outlives its parent: it stops when its standard input ends.
- A child that ends is started again, after a pause that grows while it keeps failing.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

import aiohttp
from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from perdure.cli import output
from perdure.serving import stop_on_signals
from perdure.settings import Cluster

STOP_SECONDS: Final = 40
"""How long a child may take to finish what is in flight."""

PAUSE_SECONDS_MAX: Final = 10.0
HEALTHY_SECONDS: Final = 30.0
"""A child that lived this long is started again at once."""


async def supervise(
    services: Sequence[str], cluster: Cluster, *, config: Path | None, load: Sequence[str]
) -> None:
    """Run the services until a signal, then let all of them finish."""
    with stop_on_signals() as stop:
        children = [
            _Child(service, _address(service, number, cluster), config, load)
            for number, service in enumerate(services)
        ]
        keeping = [asyncio.create_task(child.keep(stop)) for child in children]
        telling = asyncio.create_task(_tell_when_ready(children))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([*keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        telling.cancel()
        await asyncio.gather(*keeping)


async def while_parent_lives(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Serve until a signal, or until standard input ends because its writer is gone."""
    with stop_on_signals() as stop:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )

        async def watch() -> None:
            await reader.read()
            stop.set()

        watching = asyncio.create_task(watch())
        try:
            await serve(stop)
        finally:
            watching.cancel()
            transport.close()


class _Child:
    """A service in a process of its own."""

    def __init__(
        self, service: str, address: tuple[str, int], config: Path | None, load: Sequence[str]
    ) -> None:
        self.service = service
        self.url = f"http://{address[0]}:{address[1]}"
        self._command = [sys.executable, "-m", "perdure", "serve", service, "--with-parent"]
        self._command += ["--host", address[0], "--port", str(address[1])]
        if config is not None:
            self._command += ["--config", str(config)]
        for module in load:
            self._command += ["--load", module]

    async def keep(self, stop: asyncio.Event) -> None:
        """Have the service run until `stop`."""
        pause = 0.0
        while not stop.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                env=os.environ,
                start_new_session=True,  # Ctrl-C is for the parent, which tells its children
            )
            await _first(process.wait(), stop.wait())
            if stop.is_set():
                await _stop(process)
                return
            if time.monotonic() - started > HEALTHY_SECONDS:
                pause = 0.0
            output.note(
                f"{self.service} ended with status {process.returncode}"
                f" and is started again in {pause:.0f} s"
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(max(1.0, pause * 2), PAUSE_SECONDS_MAX)


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for the first of them, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _tell_when_ready(children: Sequence[_Child]) -> None:
    async with aiohttp.ClientSession() as client:
        await asyncio.gather(*(_tell(client, child) for child in children))
    output.note("all services are ready")


async def _tell(client: aiohttp.ClientSession, child: _Child) -> None:
    async def ready() -> bool:
        try:
            async with client.get(f"{child.url}/readyz") as answer:
                return answer.status == HTTPStatus.OK
        except aiohttp.ClientError:
            return False

    await AsyncRetrying(wait=wait_fixed(0.2), retry=retry_if_result(lambda found: not found))(ready)
    output.note(f"{child.service:12} ready at {child.url}")


def _address(service: str, number: int, cluster: Cluster) -> tuple[str, int]:
    if service == "gateway":
        return cluster.gateway_host, cluster.gateway_port
    return cluster.health_host, cluster.health_port + number
