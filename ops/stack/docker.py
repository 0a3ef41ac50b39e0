"""The engines of `docker-compose.yml`, where a Docker engine answers."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ops.stack import versions

from perdure.errors import Unavailable

_FILE = Path(__file__).parents[2] / "docker-compose.yml"
_ENGINES = tuple(versions.IMAGES)
_ASK_SECONDS = 10.0


def answers() -> bool:
    """Whether a Docker engine answers and its Compose is installed."""
    program = shutil.which("docker")
    return program is not None and all(
        _succeeds([program, *question]) for question in (["info"], ["compose", "version"])
    )


def up() -> None:
    """Start the engines and return when they are healthy; raises `Unavailable` when one isn't."""
    _compose("up", "--detach", "--wait", *_ENGINES)


def down(*, wipe: bool) -> None:
    """Stop and remove everything of the file; the volumes with the data stay unless `wipe`."""
    _compose("down", *(["--volumes"] if wipe else []))


def status() -> None:
    """Print what runs."""
    _compose("ps", "--all")


def logs(*, follow: bool, lines: int) -> None:
    """Print the last lines of the engines' logs."""
    following = ["--follow"] if follow else []
    _compose("logs", f"--tail={lines}", *following, *_ENGINES)


def _succeeds(command: Sequence[str]) -> bool:
    try:
        asked = subprocess.run(command, capture_output=True, timeout=_ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _compose(*arguments: str) -> None:
    command = ["docker", "compose", f"--file={_FILE}", *arguments]
    program = shutil.which(command[0]) or command[0]
    ended = subprocess.run([program, *command[1:]], check=False)
    if ended.returncode:
        raise Unavailable(
            f"{' '.join(command)} ended with {ended.returncode}",
            hint="`make stack ARGS=--native` starts the engines without Docker",
        )
