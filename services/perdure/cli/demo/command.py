"""The command `perdure demo`."""

import asyncio
import random
from typing import Annotated, Final

import typer

from perdure.agent.connect import folder_of
from perdure.cli import output
from perdure.embedded.folder import DATABASE

RUNS_MAX: Final = 10
KILLS_MAX: Final = 100
SEEDS: Final = 1_000_000


def demo(  # noqa: PLR0917 - options, each by its name
    store: Annotated[
        str, typer.Option("--store", metavar="PATH", help="The folder that the demo leaves.")
    ] = "perdure-demo",
    seed: Annotated[
        int | None,
        typer.Option(help="Draws the moments of the kills; without one, others each time."),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, max=RUNS_MAX, help="How many recorded conversations to work on.")
    ] = RUNS_MAX,
    kills: Annotated[
        int, typer.Option(min=0, max=KILLS_MAX, help="How often the agent process is killed.")
    ] = 5,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Clear an earlier demo's folder even if you have added agents to it."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON document.")
    ] = False,
) -> None:
    """Watch an agent being killed again and again, and losing nothing.

    Ten recorded conversations, one agent process, SIGKILL at random moments. Then: what the log
    holds, states as of any moment, a fork, a memory, sizes on disk. Takes some seconds and leaves
    a folder to look around in; the next demo clears it.
    """
    from perdure.cli.demo import printing
    from perdure.cli.demo.conduct import conduct

    path = folder_of(store)
    audience = printing.Printed(printing.console(as_json=as_json), quiet=as_json)
    chosen = random.randrange(SEEDS) if seed is None else seed
    try:
        results = asyncio.run(
            conduct(path, runs=runs, kills=kills, seed=chosen, fresh=fresh, audience=audience)
        )
    except KeyboardInterrupt:
        there = (path / DATABASE).exists()
        output.note(
            "stopped: the agent process is ended"
            + (f", the folder {path} is sound (perdure verify --store {path})" if there else "")
        )
        raise
    if as_json:
        output.json_value(results)
    if not results.held:
        raise typer.Exit(1)
