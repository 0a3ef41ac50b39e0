"""``python -m ops.stack up|down|status|logs``: the engines from the command line.

With Docker where an engine answers, as processes of this machine elsewhere (or with ``--native``).
"""

import logging
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from ops.stack import docker
from ops.stack.ports import Ports
from ops.stack.stack import Stack

from perdure.errors import InvalidInput, PerdureError

DATA: Final = Path(__file__).parents[2] / ".stack"

app = typer.Typer(
    help="Kafka, Cassandra and Weaviate on this machine.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Data = Annotated[Path, typer.Option(help="The folder that holds everything.")]
_Native = Annotated[bool, typer.Option("--native", help="Without Docker, even where it answers.")]


@app.command()
def up(
    *,
    data: _Data = DATA,
    native: _Native = False,
    brokers: Annotated[int | None, typer.Option(help="Kafka brokers, on 127.0.0.1, .2, ….")] = None,
    nodes: Annotated[int | None, typer.Option(help="Cassandra nodes, on 127.0.0.1, .2, ….")] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help=f"Of: {', '.join(asdict(Ports()))}."),
    ] = None,
) -> None:
    """Start what doesn't run, and return when it is ready."""
    if _native(data, asked=native):
        stack = Stack(data, brokers=brokers, nodes=nodes, ports=_ports(port or []))
        stack.up()
        _show(stack)
    elif brokers or nodes or port:
        raise InvalidInput(
            "docker-compose.yml has one broker, one node and its own ports",
            hint="--native starts several, on the ports you choose",
        )
    else:
        docker.up()
        docker.status()


@app.command()
def down(
    *,
    data: _Data = DATA,
    native: _Native = False,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete the data as well.")] = False,
) -> None:
    """Stop everything cleanly; the data stay."""
    if not _native(data, asked=native):
        docker.down(wipe=wipe)
    elif _used(data):
        stack = Stack.open(data)
        if wipe:
            stack.wipe()
        else:
            stack.down()


@app.command()
def status(*, data: _Data = DATA, native: _Native = False) -> None:
    """Show what runs, where, and whether it is ready."""
    if _native(data, asked=native):
        _show(Stack.open(data))
    else:
        docker.status()


@app.command()
def logs(
    members: Annotated[
        list[str] | None, typer.Argument(metavar="[MEMBER]...", help="kafka-1, cassandra-2, ….")
    ] = None,
    *,
    data: _Data = DATA,
    native: _Native = False,
    lines: Annotated[int, typer.Option(help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing new ones.")] = False,
) -> None:
    """Show what the members printed last."""
    if not _native(data, asked=native):
        docker.logs(follow=follow, lines=lines)
        return
    known = Stack.open(data).members
    if unknown := set(members or []) - set(known):
        raise InvalidInput(f"no member {min(unknown)!r}", hint=f"one of {', '.join(known)}")
    files = [f"{known[name].log}" for name in members or known if known[name].log.exists()]
    tail = [shutil.which("tail") or "tail", "-n", f"{lines}", *(["-F"] if follow else []), "--"]
    subprocess.run([*tail, *files], check=False)


def _native(data: Path, *, asked: bool) -> bool:
    """Without Docker: because it was asked for, was so before, or because there is no engine."""
    return asked or _used(data) or not docker.answers()


def _used(data: Path) -> bool:
    return (data / "stack.json").exists()


def _ports(chosen: list[str]) -> Ports | None:
    ports = Ports()
    for choice in chosen:
        name, _, number = choice.partition("=")
        if name not in asdict(ports) or not number.isdecimal():
            raise InvalidInput(f"no port {choice!r}", hint=f"{name or 'kafka'}=19092, for one")
        ports = replace(ports, **{name: int(number)})
    return ports if chosen else None


def _show(stack: Stack) -> None:
    for name, member in stack.members.items():
        state = "stopped" if not member.running else "ready"
        if member.running and not stack.ready(name):
            state = "not ready"
        process = f"process {member.pid}" if member.running else ""
        typer.echo(f"{name:<12} {member.address:<16} {state:<10} {process:<16} {member.log}")


def main() -> int:
    """Run the command line; the exit status."""
    logging.basicConfig(level=logging.INFO, format="perdure: %(message)s", stream=sys.stderr)
    try:
        app()
    except PerdureError as problem:
        typer.echo(f"error: {problem.message}", err=True)
        if problem.hint:
            typer.echo(f"hint: {problem.hint}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
