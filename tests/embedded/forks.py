"""Processes that cost ten milliseconds: a server that has imported everything, and forks.

The tests kill many writers. Starting an interpreter for each takes half a second; here one process
imports perdure once and forks whenever it is asked. Each child has a pipe to report on, one JSON
value a line; the pipe ends when the child is dead.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUEST_BYTES_MAX = 65536


class Child:
    """A forked process, and what it reports."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = os.fdopen(pipe, "rb")

    def report(self) -> Any:
        """The next report; None when the child is dead. A report that was cut off is none."""
        if self._pipe.closed:
            return None
        line = self._pipe.readline()
        if not line.endswith(b"\n"):
            self._pipe.close()
            return None
        return json.loads(line)

    def reports(self) -> Iterator[Any]:
        """All reports to come, until the child is dead."""
        while (report := self.report()) is not None:
            yield report

    def until(self, kind: str) -> Any:
        """The next report of this kind; the child has to live until then."""
        for report in self.reports():
            if report[0] == "error":
                raise AssertionError(f"the process failed: {report[1]}")
            if report[0] == kind:
                return report
        raise AssertionError(f"the process died before it reported {kind!r}")

    def kill(self) -> list[Any]:
        """SIGKILL; gives what it had reported by then. Returns when the process is dead."""
        os.kill(self.pid, signal.SIGKILL)
        return list(self.reports())

    def close(self) -> None:
        """Let go of it: kill it if it still lives."""
        if self._pipe.closed:
            return
        os.set_blocking(self._pipe.fileno(), False)
        with self._pipe, contextlib.suppress(ProcessLookupError):
            try:
                while os.read(self._pipe.fileno(), 65536):
                    pass  # what it reported, and nobody asked for
            except BlockingIOError:
                os.kill(self.pid, signal.SIGKILL)


class Forks:
    """The server's other end."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._server = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"from tests.embedded.forks import serve; serve({theirs.fileno()})",
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
                pass_fds=[theirs.fileno()],
            )
        self._socket = ours

    def start(self, what: str, **arguments: object) -> Child:
        """Fork a process that runs a function of `tests.embedded.lives`."""
        reading, writing = os.pipe()
        request = json.dumps({"what": what, "arguments": arguments}).encode()
        try:
            socket.send_fds(self._socket, [request], [writing])
        finally:
            os.close(writing)
        answer = self._socket.recv(64)
        if not answer:
            raise AssertionError("the server of forked processes is dead")
        child = Child(int(answer), reading)
        self._children.append(child)
        return child

    def clear(self) -> None:
        """Let go of all children."""
        while self._children:
            self._children.pop().close()

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._server.wait()


def spin(seconds: float) -> None:
    """Let a process run on for a moment that is shorter than any clock tick `sleep` knows."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def seeded(name: str) -> random.Random:
    """A generator whose seed is printed; TEST_SEED repeats a run."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: TEST_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    return random.Random(f"{name}:{seed}")


def serve(control: int) -> None:
    """Fork a child for each request, until the other end is closed."""
    from tests.embedded import lives

    # Nobody waits for the children: the end of its pipe says that one is dead.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(fileno=control)
    while True:
        request, pipes, _, _ = socket.recv_fds(server, REQUEST_BYTES_MAX, 1)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(lives, json.loads(request), pipes[0])
        os.close(pipes[0])
        server.send(str(pid).encode())


def _run(functions: Any, request: dict[str, Any], pipe: int) -> None:
    def report(*values: object) -> None:
        # One write of less than PIPE_BUF bytes is whole or not there.
        os.write(pipe, json.dumps(values).encode() + b"\n")

    code = 1
    try:
        getattr(functions, request["what"])(report, **request["arguments"])
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test has to hear of it
        report("error", f"{type(error).__name__}: {error}"[:2000])
    finally:
        os._exit(code)
