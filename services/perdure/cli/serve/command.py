"""`perdure serve`: one service of a cluster, or all of them."""

import asyncio
import importlib
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from perdure import settings
from perdure.cli import session
from perdure.cli.serve import supervisor
from perdure.serving import Application, configure_logs, run

EXAMPLES: Final = """Examples:

  perdure serve all

  perdure serve recorder --config perdure.toml

  PERDURE_KAFKA=k1:9092,k2:9092 perdure serve gateway --port 8787
"""


MODULES: Final = {
    "recorder": "perdure.recorder.service",
    "checkpointer": "perdure.checkpointer.service",
    "memorizer": "perdure.memorizer.service",
    "projector": "perdure.projector.service",
    "gateway": "perdure.gateway.app",
}


class Service(StrEnum):
    """The services of a cluster, and all of them together."""

    RECORDER = "recorder"
    CHECKPOINTER = "checkpointer"
    MEMORIZER = "memorizer"
    PROJECTOR = "projector"
    GATEWAY = "gateway"
    ALL = "all"


def serve(
    service: Annotated[Service, typer.Argument(help="Which one to run", show_default=False)],
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The cluster's settings (TOML). Default: ./perdure.toml if there is one; variables"
            " such as PERDURE_KAFKA win over it",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Where to answer HTTP. Default: from the settings"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="The same. Default: from the settings"),
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(
            "--load",
            metavar="MODULE_OR_FILE",
            help="Python module or .py file with your projections and upcasters (repeatable)",
            show_default=False,
        ),
    ] = None,
    with_parent: Annotated[
        bool,
        typer.Option("--with-parent", hidden=True, help="Stop when standard input ends"),
    ] = False,
) -> None:
    """Run a service of a cluster until SIGTERM or Ctrl-C; what is in flight is finished then.

    Every service can be started any number of times; they share the work. Each answers /livez,
    /readyz and /metrics at its address. `all` starts one of each, at ports that count up from
    the settings' health_port, and starts again what ends.
    """
    here = Path("perdure.toml")
    chosen = config or (here if here.is_file() else None)
    cluster = settings.load(chosen)
    if service is Service.ALL:
        session.run(
            supervisor.supervise(
                [each.value for each in Service if each is not Service.ALL],
                cluster,
                config=chosen,
                load=load or [],
            )
        )
        return
    configure_logs(cluster.log_level)
    session.load(load)
    own = (
        (cluster.gateway_host, cluster.gateway_port)
        if service is Service.GATEWAY
        else (cluster.health_host, cluster.health_port)
    )
    address = (host or own[0], port or own[1])
    application = _application(service.value)(cluster)
    asyncio.run(_serve(application, address, service.value, with_parent=with_parent))


async def _serve(
    application: Application, address: tuple[str, int], service: str, *, with_parent: bool
) -> None:
    if not with_parent:
        await run(application, *address, service=service)
        return
    await supervisor.while_parent_lives(
        lambda stop: run(application, *address, service=service, stop=stop)
    )


def _application(service: str) -> Callable[[settings.Cluster], Application]:
    found: Callable[[settings.Cluster], Application] = importlib.import_module(
        MODULES[service]
    ).application
    return found
