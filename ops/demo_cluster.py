"""`make demo-cluster`: the demo on the real engines, which are started if they don't run.

Engines that somebody names (PERDURE_KAFKA and so on, or --config) are taken as they are; so are
those that listen on the usual ports already. The engines go on when the demo is over.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import typer
from ops.stack.__main__ import DATA
from ops.stack.ports import Ports, is_free
from ops.stack.stack import Stack

NAMED = ("PERDURE_KAFKA", "PERDURE_CASSANDRA", "PERDURE_WEAVIATE")


def main(arguments: list[str]) -> int:
    """Show the demo; its exit status."""
    named = any(name in os.environ for name in NAMED) or any(
        each.startswith("--config") for each in arguments
    )
    ours = not named and (_is_ours() or not _listen(Ports()))
    environment = dict(os.environ)
    if ours:
        started = subprocess.run([sys.executable, "-m", "ops.stack", "up"], check=False)
        if started.returncode:
            return started.returncode
        environment |= _addresses()
    # Ctrl-C is for the demo, which ends what it started; this waits until it has.
    signal.signal(signal.SIGINT, lambda *_: None)
    # By the path that the reader would type: the demo names it in what there is to do next.
    program = os.path.relpath(Path(sys.executable).with_name("perdure"))
    command = [program, "demo", "--cluster", *arguments]
    ended = subprocess.run(command, env=environment, check=False)
    if ours:
        typer.echo(
            "The engines go on: `make stack-status` shows them, `make stack-down` stops them."
        )
    return ended.returncode


def _is_ours() -> bool:
    """Whether this project's stack was started natively before: then it is where it says."""
    return (DATA / "stack.json").exists()


def _listen(ports: Ports) -> bool:
    """Whether somebody listens on the ports of all engines."""
    return not any(is_free(port) for port in (ports.kafka, ports.cassandra, ports.weaviate))


def _addresses() -> dict[str, str]:
    """Where the stack is, as variables; nothing where it runs in Docker, on the usual ports."""
    if not _is_ours():
        return {}
    stack = Stack.open(DATA)
    host = stack.weaviate.partition(":")[0]
    return {
        "PERDURE_KAFKA": stack.kafka,
        "PERDURE_CASSANDRA": ",".join(f"{node}:{stack.cassandra_port}" for node in stack.cassandra),
        "PERDURE_WEAVIATE": stack.weaviate,
        "PERDURE_WEAVIATE_GRPC": f"{host}:{stack.weaviate_grpc_port}",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
