"""The folder of a demo on a cluster: its settings, the services' logs, and the objects.

::

    perdure-demo-cluster/
    ├── demo.json            says that a demo made the folder
    ├── perdure.toml         the cluster: `--config` and `--store` take it
    ├── acknowledged.jsonl   the agents' own record of what was acknowledged to them
    ├── blobs/  archive/     checkpoint storage, and the archive of the log
    └── logs/                what the services said

Invariants:
- Whatever a demo made in the engines has the name in `perdure.toml`, which is written before it
  and deleted after it.
"""

import shutil
import socket
import uuid
from pathlib import Path
from typing import Final

import msgspec

from perdure import settings
from perdure.cli.demo.cluster.engines import Engines
from perdure.cli.demo.folder import made, mark
from perdure.cli.demo.journal import JOURNAL
from perdure.errors import InvalidInput
from perdure.settings import Cluster

SETTINGS: Final = "perdure.toml"
LOGS: Final = "logs"
BLOBS: Final = "blobs"
ARCHIVE: Final = "archive"

PARTITIONS: Final = 4
"""Of each topic: ten agents need no more, and few are quickly made."""

QUIET_SECONDS: Final = 5
"""After which an agent that is done gets its state saved."""

_PREFIX: Final = "demo_"
_PORTS_TRIED: Final = 200


def planned_cluster(folder: Path, given: Cluster, services: int) -> Cluster:
    """A cluster of a new name on the engines of the given one, with ports that are free."""
    folder = folder.absolute()
    health = _free(given.health_host, given.health_port, services)
    return msgspec.structs.replace(
        given,
        name=f"{_PREFIX}{uuid.uuid4().hex[:8]}",
        partitions=PARTITIONS,
        quiet_seconds=QUIET_SECONDS,
        blobs=(folder / BLOBS).as_uri(),
        archive=(folder / ARCHIVE).as_uri(),
        gateway_port=_free(
            given.gateway_host, given.gateway_port, 1, range(health, health + services)
        ),
        health_port=health,
    )


def write(folder: Path, cluster: Cluster) -> None:
    """Note the settings: from now on the next demo clears what this one makes."""
    values = msgspec.to_builtins(cluster)
    # A JSON string or number is one of TOML as well.
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in values.items()]
    (folder / LOGS).mkdir(exist_ok=True)
    (folder / SETTINGS).write_text("\n".join(lines) + "\n")


def earlier(folder: Path) -> Cluster | None:
    """The cluster that an earlier demo in this folder made.

    Raises:
        InvalidInput: the settings are not a demo's.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    found = settings.load(path, environment={})
    if not found.name.startswith(_PREFIX):
        raise InvalidInput(
            f"{path} describes the cluster {found.name!r}, which no demo made: it is left as it is",
            hint="choose another folder with --store",
        )
    return found


async def clear(folder: Path, engines: Engines, agents: list[str], *, fresh: bool) -> bool:
    """Drop what an earlier demo made, in the engines and in the folder; whether there was any.

    The next one makes `agents`.

    Raises:
        InvalidInput: it holds agents that the demo did not make (`fresh` drops them too).
        Unreachable: an engine doesn't answer.
    """
    before = earlier(folder)
    if before is None:
        return False
    others = sorted(set(await engines.agents(before)) - made(folder))
    if others and not fresh:
        raise InvalidInput(
            f"the cluster of {folder} holds agents that the demo did not make:"
            f" {', '.join(others[:3])}" + (" …" if len(others) > 3 else ""),
            hint="--fresh drops them too; or choose another folder with --store",
        )
    await engines.drop(before)
    for name in (BLOBS, ARCHIVE, LOGS):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    (folder / JOURNAL).unlink(missing_ok=True)
    (folder / SETTINGS).unlink()
    mark(folder, agents)
    return True


def _free(host: str, first: int, count: int, taken: range = range(0)) -> int:
    """The first of `count` ports in a row that nobody listens on: `first`, or the next that do."""
    for port in range(first, first + _PORTS_TRIED):
        wanted = range(port, port + count)
        if not set(wanted) & set(taken) and all(_is_free(host, each) for each in wanted):
            return port
    raise InvalidInput(
        f"ports {first} to {first + _PORTS_TRIED} of {host} are taken",
        hint="set gateway_port and health_port to others",
    )


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
