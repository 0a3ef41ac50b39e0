"""The services of a cluster that is measured: processes that are started, suspended and watched."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec
from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from perdure.cli.bench import reader
from perdure.errors import PerdureError, Unreachable
from perdure.settings import VARIABLE_PREFIX, Cluster

READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 40.0
POLL_SECONDS: Final = 0.1


class Services:
    """Processes of `perdure serve` on one cluster; all of them end with the block."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = msgspec.structs.replace(cluster, gateway_port=_free_port())
        self._folder = folder
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    @property
    def url(self) -> str:
        """What agents connect to."""
        return f"perdure://{self.cluster.gateway_host}:{self.cluster.gateway_port}"

    @property
    def gateway(self) -> str:
        """Where the gateway answers HTTP."""
        return f"http://{self.cluster.gateway_host}:{self.cluster.gateway_port}"

    async def start(self, service: str) -> None:
        """Start a service, and wait until it can do its work.

        Raises:
            PerdureError: it ended.
            Unreachable: it takes too long.
        """
        port = self.cluster.gateway_port if service == "gateway" else _free_port()
        values = msgspec.to_builtins(self.cluster)
        variables = {f"{VARIABLE_PREFIX}{key.upper()}": str(value) for key, value in values.items()}
        file = self._folder / f"{service}.log"
        with file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "perdure", "serve", service, "--port", str(port), "--with-parent"),
                env=os.environ | variables,
                stdin=asyncio.subprocess.PIPE,  # ends when this process does
                stdout=log,
                stderr=log,
                cwd=self._folder,  # settings that lie here are not for it
            )
        self._processes[service] = process
        host = self.cluster.gateway_host if service == "gateway" else self.cluster.health_host
        try:
            async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as client:
                await _ready(client, f"http://{host}:{port}/readyz", process)
        except TimeoutError as error:
            raise Unreachable(
                f"{service} is not ready after {READY_SECONDS:.0f} s: {_tail(file)}",
                hint="look whether the engines are up (make stack-status)",
            ) from error
        if process.returncode is not None:
            raise PerdureError(
                f"{service} ended with status {process.returncode}: {_tail(file)}",
                hint="look whether the engines are up (make stack-status)",
            )

    @contextlib.contextmanager
    def suspended(self, service: str) -> Iterator[None]:
        """The service stands still. For less than its session with Kafka lasts: 6 seconds."""
        self.suspend(service)
        try:
            yield
        finally:
            self.resume(service)

    def suspend(self, service: str) -> None:
        """Have a service stand still."""
        self._processes[service].send_signal(signal.SIGSTOP)

    def resume(self, service: str) -> None:
        """Have a service go on."""
        self._processes[service].send_signal(signal.SIGCONT)

    def resident(self) -> dict[str, int]:
        """The resident memory of each service, in bytes."""
        return {name: reader.resident(one.pid) for name, one in self._processes.items()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(_stop(process) for process in self._processes.values()))


async def _ready(
    client: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process
) -> None:
    """Wait until a service says that it is ready, or has ended."""

    async def done() -> bool:
        if process.returncode is not None:
            return True
        try:
            async with client.get(url) as answer:
                return answer.status == HTTPStatus.OK
        except aiohttp.ClientError:
            return False

    await AsyncRetrying(
        wait=wait_fixed(POLL_SECONDS), retry=retry_if_result(lambda found: not found)
    )(done)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _tail(file: Path) -> str:
    return file.read_text("utf-8", "replace").strip()[-1000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
