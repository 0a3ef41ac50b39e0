"""How services run and stop, as processes: health from the start, and a clean end."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import textwrap
import time

import httpx
import pytest

from perdure import serving
from perdure.serving import Health

SECONDS_MAX = 30

SERVICE = """
import asyncio, sys
from faststream.asgi import AsgiFastStream
from perdure.errors import Unreachable
from perdure.serving import Health, configure_logs, logger, logged, run

tries = 0
health = Health("recorder")
started = False

async def engine():
    global tries
    tries += 1
    if tries < {tries}:
        raise Unreachable("Cassandra does not answer", hint="start it")

async def lifespan(scope, receive, send):
    await receive()
    await health.patiently("Cassandra", engine)
    await send({{"type": "lifespan.startup.complete"}})
    await receive()
    print("finished", flush=True)
    await send({{"type": "lifespan.shutdown.complete"}})

routes = dict(health.routes())

async def slow(scope, receive, send):
    print("working", flush=True)
    await asyncio.sleep(1.0)
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"done"}})

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    else:
        await routes.get(scope["path"], slow)(scope, receive, send)

configure_logs("info")
with logged(agent="airline/mia"):
    logger("test").info("hello", offset=7)
asyncio.run(run(application, "127.0.0.1", {port}, service="recorder"))
"""


def free_port():
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A service as a process."""

    def __init__(self, *, tries=1, port=None):
        self.port = port or free_port()
        source = textwrap.dedent(SERVICE.format(tries=tries, port=self.port))
        self.popen = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def get(self, path):
        """What it answers, as soon as it does."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            try:
                return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=SECONDS_MAX)
            except httpx.TransportError:
                if time.monotonic() > deadline or self.popen.poll() is not None:
                    raise

    def wait_ready(self):
        """Wait until it says that it is."""
        while self.get("/readyz").status_code != httpx.codes.OK:
            pass

    def end(self, number=signal.SIGTERM):
        """Its exit status, what it printed, and its log, after a signal."""
        if number is not None:
            self.popen.send_signal(number)
        printed, log = self.popen.communicate(timeout=SECONDS_MAX)
        return self.popen.returncode, printed, [json.loads(line) for line in log.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_with_zero(number):
    """What it began is finished first."""
    process = Process()
    process.wait_ready()
    status, printed, _ = process.end(number)
    assert (status, printed) == (0, "finished\n")


def test_a_request_in_flight_is_answered_before_the_end():
    """The signal comes while it is worked on."""
    process = Process()
    process.wait_ready()
    asking = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import httpx; print(httpx.get('http://127.0.0.1:{process.port}/work').text)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.popen.stdout.readline() == "working\n"
    status, printed, _ = process.end()
    assert asking.communicate(timeout=SECONDS_MAX)[0] == "done\n"
    assert (status, printed) == (0, "finished\n")


def test_health_is_answered_while_engines_are_waited_for():
    """It lives and is not ready, and says what it waits for; a signal ends it all the same."""
    process = Process(tries=1_000_000)
    assert process.get("/livez").json() == {"service": "recorder"}
    ready = process.get("/readyz")
    assert ready.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "Cassandra does not answer" in ready.json()["not_ready"][0]
    status, printed, _ = process.end()
    assert (status, printed) == (0, "")


def test_an_engine_that_comes_later_is_enough():
    """It is tried again until it answers."""
    process = Process(tries=4)
    process.wait_ready()
    assert "process_resident_memory_bytes" in process.get("/metrics").text
    assert process.end()[0] == 0


def test_logs_are_json_with_the_service_and_the_agent():
    """Every line, those of libraries too."""
    process = Process()
    process.wait_ready()
    log = process.end()[2]
    assert {line["event"] for line in log} >= {"hello", "serving", "started", "stopped"}
    [hello] = [line for line in log if line["event"] == "hello"]
    assert (hello["agent"], hello["offset"], hello["level"]) == ("airline/mia", 7, "info")
    assert all(line["service"] == "recorder" for line in log if line["event"] == "stopped")


def test_an_address_that_is_taken_is_said_and_ends_it():
    """Not with 0: whoever started it has to know."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = Process(port=taken.getsockname()[1])
        _, log = process.popen.communicate(timeout=SECONDS_MAX)
    assert process.popen.returncode != 0
    assert "can't be served" in log


async def answer(health, path="/readyz"):
    """Status and body of a path of a service's health."""
    sent = []

    async def send(message):
        sent.append(message)

    await dict(health.routes())[path]({"method": "GET"}, None, send)
    return sent[0]["status"], sent[1]["body"]


async def test_work_that_fails_is_begun_again_and_told_meanwhile(monkeypatch):
    """Whatever it fails with; a service that can't do its work doesn't say that it is ready."""
    monkeypatch.setattr(serving, "PAUSE_SECONDS_MIN", 0.05)
    health, begun, works = Health("recorder"), 0, asyncio.Event()

    async def work():
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ValueError("nobody thought of it")
        works.set()
        await asyncio.Event().wait()

    working = asyncio.create_task(health.persistently("saving", work))
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            told = await answer(health)
            if told[0] != httpx.codes.OK:
                break
            await asyncio.sleep(0)
        assert told[0] == httpx.codes.SERVICE_UNAVAILABLE
        assert b"saving" in told[1]
        assert b"nobody thought of it" in told[1]
        await works.wait()
    assert begun == 3
    assert (await answer(health))[0] == httpx.codes.OK
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_work_that_is_done_is_not_begun_again():
    """It ends as the work does."""
    health, begun = Health("recorder"), 0

    async def work():
        nonlocal begun
        begun += 1

    await health.persistently("opening", work)
    assert begun == 1
