"""The command `perdure demo`."""

import asyncio
import random
from pathlib import Path
from typing import Annotated, Final

import typer

from perdure.agent.connect import folder_of
from perdure.cli import options, output, session
from perdure.embedded.folder import DATABASE
from perdure.errors import NotFound

RUNS_MAX: Final = 10
KILLS_MAX: Final = 100
SEEDS: Final = 1_000_000

FOLDER: Final = "perdure-demo"
KILLS: Final = 5
CLUSTER_FOLDER: Final = "perdure-demo-cluster"
CLUSTER_KILLS: Final = 3


def demo(  # noqa: PLR0917 - options, each by its name
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="PATH",
            help=f"The folder that the demo leaves. Default: {FOLDER}; {CLUSTER_FOLDER} with"
            " --cluster",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Draws the moments of the kills; without one, others each time."),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, max=RUNS_MAX, help="How many recorded conversations to work on.")
    ] = RUNS_MAX,
    kills: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=KILLS_MAX,
            help=f"How often the agent process is killed. Default: {KILLS}; {CLUSTER_KILLS} with"
            " --cluster",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Clear what an earlier demo left even if you have added agents to it."
        ),
    ] = False,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="On Kafka, Cassandra and Weaviate: each service is killed as well, and the log is"
            " replayed.",
        ),
    ] = False,
    config: options.Config = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="With --cluster: the services go on until Ctrl-C."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON document.")
    ] = False,
) -> None:
    """Watch an agent being killed again and again, and losing nothing.

    Ten recorded conversations, one agent process, SIGKILL at random moments. Then: what the log
    holds, states as of any moment, a fork, a memory, sizes on disk. Takes some seconds and leaves
    a folder to look around in; the next demo clears it.

    With --cluster the same on the engines that --config names (those of `make stack` without one),
    under names of its own, which the next demo drops: a minute or two.
    """
    chosen = random.randrange(SEEDS) if seed is None else seed
    if cluster:
        path = folder_of(store or CLUSTER_FOLDER)
        killed = CLUSTER_KILLS if kills is None else kills
        held = _on_cluster(
            path, config, chosen, runs, killed, fresh=fresh, keep=keep, as_json=as_json
        )
    elif keep or config is not None:
        raise typer.BadParameter("--keep and --config are for --cluster")
    else:
        path = folder_of(store or FOLDER)
        killed = KILLS if kills is None else kills
        held = _embedded(path, chosen, runs, killed, fresh=fresh, as_json=as_json)
    if not held:
        raise typer.Exit(1)


def _embedded(path: Path, seed: int, runs: int, kills: int, *, fresh: bool, as_json: bool) -> bool:
    from perdure.cli.demo.conduct import conduct
    from perdure.cli.demo.page import console
    from perdure.cli.demo.printing import Printed

    audience = Printed(console(as_json=as_json), quiet=as_json)
    try:
        results = asyncio.run(
            conduct(path, runs=runs, kills=kills, seed=seed, fresh=fresh, audience=audience)
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
    return results.held


def _on_cluster(
    path: Path,
    config: Path | None,
    seed: int,
    runs: int,
    kills: int,
    *,
    fresh: bool,
    keep: bool,
    as_json: bool,
) -> bool:
    try:
        from perdure.cli.demo.cluster.conduct import conduct
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("perdure"):
            raise
        raise NotFound(
            f"the package {error.name} is not installed, which --cluster needs",
            hint="pip install 'perdure[cluster]'",
        ) from error
    from perdure.cli.demo.cluster.printing import ClusterPrinted
    from perdure.cli.demo.page import console

    try:
        results = asyncio.run(
            conduct(
                path,
                session.settings_of(config),
                runs=runs,
                kills=kills,
                seed=seed,
                fresh=fresh,
                keep=keep,
                audience=ClusterPrinted(console(as_json=as_json), quiet=as_json),
            )
        )
    except KeyboardInterrupt:
        output.note(
            "stopped: the agents and all services are ended; what they recorded is dropped by the"
            f" next demo in {path}"
        )
        raise
    if as_json:
        output.json_value(results)
    return results.held
