"""The services of a cluster as processes: started, killed, suspended and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import msgspec

SERVICES = ("recorder", "checkpointer", "memorizer", "projector", "gateway")
READY_SECONDS = 120
STOP_SECONDS = 40


def free_port():
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(path, size=2000):
    """The end of a file, or nothing where there is none."""
    return path.read_text("utf-8", "replace")[-size:] if path.exists() else ""


class Service:
    """One process of `perdure serve NAME`."""

    def __init__(self, name, cluster, folder, *, port=None, number=1):
        self.name, self.cluster = name, cluster
        self.port = port or free_port()
        self.log = folder / f"{name}-{number}.log"
        self.process = None

    @property
    def url(self):
        """Where it answers HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Start it, again where it was ended."""
        values = msgspec.to_builtins(self.cluster)
        environment = {f"PERDURE_{key.upper()}": str(value) for key, value in values.items()}
        environment |= {"PERDURE_GATEWAY_PORT": str(self.port)} if self.name == "gateway" else {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "perdure", "serve", self.name, "--port", str(self.port)],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def ready(self):
        """Whether it says that it can do its work."""
        return self.not_ready() == ""

    def not_ready(self):
        """What it says that is not ready; nothing where it can do its work."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5)
        except httpx.TransportError as error:
            return repr(error)
        return "" if answer.status_code == httpx.codes.OK else answer.text

    def wait_ready(self):
        """Wait until it can do its work; its log is shown where it can't."""
        deadline = time.monotonic() + READY_SECONDS
        while said := self.not_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready: {said}\n{self.told()}")
            time.sleep(0.05)
        return self

    def kill(self, number=signal.SIGKILL):
        """Send it a signal; after SIGKILL, wait until it is gone."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(STOP_SECONDS)

    def stop(self):
        """End it as an operator would; its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def metrics(self):
        """Its metrics, by name and labels as Prometheus writes them."""
        lines = httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
        }

    def told(self):
        """Whether it runs, what it says that is not ready, and the end of its log."""
        ended = self.process.poll()
        said = f"ended with {ended}" if ended is not None else self.not_ready() or "ready"
        return f"=== {self.name}: {said}\n{tail(self.log, 4000)}"

    def logged(self):
        """The lines of its log, those that are JSON."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class Services:
    """Several services of one cluster; each is there once unless more are started."""

    def __init__(self, cluster, folder, names=SERVICES):
        self.cluster, self.folder = cluster, folder
        self.all = []
        gateway_port = free_port()
        self.cluster = msgspec.structs.replace(cluster, gateway_port=gateway_port)
        for name in names:
            self.add(name, port=gateway_port if name == "gateway" else None)

    def add(self, name, *, port=None):
        """One more of a service."""
        number = 1 + sum(service.name == name for service in self.all)
        service = Service(name, self.cluster, self.folder, port=port, number=number)
        self.all.append(service)
        return service

    def __getitem__(self, name):
        return next(service for service in self.all if service.name == name)

    def __enter__(self):
        for service in self.all:
            service.start()
        try:
            for service in self.all:
                service.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for service in self.all:
            if service.process is not None and service.process.poll() is None:
                service.kill(signal.SIGCONT)
                service.process.terminate()
        for service in self.all:
            try:
                service.stop()
            except subprocess.TimeoutExpired:
                service.kill()

    def url(self, store, **options):
        """The URL of a store of the cluster."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"perdure://127.0.0.1:{self.cluster.gateway_port}/{store}" + (
            f"?{query}" if query else ""
        )
