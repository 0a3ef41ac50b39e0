"""Server processes that outlive whoever started them.

- A process is known by its number *and* its start time: a number that the system has given to
  another process since is never signalled.
- It has a session of its own: Ctrl-C in the caller's terminal doesn't reach it.
- What it prints goes to a log file, appended.
"""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.stack.waiting import wait_until

from perdure.errors import Unavailable

_log = logging.getLogger(__name__)

STOP_SECONDS = 45.0
"""How long a server may take to stop cleanly before it is killed."""
KILL_SECONDS = 30.0
"""How long a signal that nobody can refuse may take: a thread ends what it has the disk do."""


@dataclass(frozen=True)
class Process:
    """A process that was started once; it may have ended since."""

    pid: int
    started: str
    """When, in the operating system's own notation: compared, never read."""

    @property
    def running(self) -> bool:
        """Whether it still runs (a suspended process does)."""
        _reap(self.pid)
        return _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it; nothing happens when it has ended."""
        if self.running:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """End it at once, without giving it a word, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        wait_until(
            lambda: not self.running, within_seconds=KILL_SECONDS, what=f"process {self.pid} ends"
        )

    def suspend(self) -> None:
        """Stop it from doing anything until it gets SIGCONT; return when no thread runs."""
        self.signal(signal.SIGSTOP)
        wait_until(
            lambda: _suspended(self.pid) or not self.running,
            within_seconds=KILL_SECONDS,
            what=f"process {self.pid} is suspended",
        )


def launch(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start a command in a session of its own; what it prints is appended to `log`."""
    pid = os.posix_spawn(
        command[0],
        list(command),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
        setsigmask=[],
    )
    return Process(pid, _started(pid) or "ended at once")


def stop(processes: Iterable[Process]) -> None:
    """Ask all of them to end and wait; kill those that take longer than `STOP_SECONDS`."""
    asked = list(processes)
    for process in asked:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a suspended process hears nothing else
    try:
        wait_until(
            lambda: not any(process.running for process in asked),
            within_seconds=STOP_SECONDS,
            what="the processes end",
        )
    except Unavailable:
        for process in asked:
            if process.running:
                _log.warning("process %d did not stop by itself", process.pid)
            process.kill()


def remember(process: Process, path: Path) -> None:
    """Write down which process it is, so that another caller finds it."""
    path.write_text(json.dumps({"pid": process.pid, "started": process.started}))


def recall(path: Path) -> Process | None:
    """The process that was written down; `None` when none was, or a crash cut the note short."""
    try:
        noted = json.loads(path.read_text())
        return Process(int(noted["pid"]), str(noted["started"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _reap(pid: int) -> None:
    # An ended child stays a process until its parent asks how it ended.
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _started(pid: int) -> str | None:
    """When the process with this number started; `None` when there is none, or only its remains."""
    if _has_proc():
        return _started_linux(pid)
    state, _, started = _ps(pid).partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _suspended(pid: int) -> bool:
    """Whether every thread of the process is stopped: they stop one by one."""
    if not _has_proc():
        return _ps(pid).startswith("T")
    try:
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False  # one of them ended just now: look again
    return bool(threads) and all(stat.rpartition(")")[2].split()[0] == "T" for stat in threads)


def _has_proc() -> bool:
    return Path("/proc/self/stat").exists()


def _ps(pid: int) -> str:
    """The state of a process, a blank, and when it started; empty when there is none."""
    return subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", f"{pid}"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


def _started_linux(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): after the command's name, which may itself hold parentheses and blanks, come the
    # state (field 3), the number of threads (20) and the start in clock ticks (22).
    after_name = stat.rpartition(")")[2].split()
    state, threads, ticks = after_name[0], int(after_name[17]), after_name[19]
    # While other threads are still ending, the first is a zombie and the ports are still taken.
    if state in {"Z", "X"} and threads <= 1:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{ticks}"
