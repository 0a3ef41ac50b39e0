"""The gateway as an application: its routes, and the adapters that it reads from."""

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from litestar import Litestar, Request, asgi
from litestar.datastructures import State
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.response import Response
from litestar.types import (
    ASGIApp,
    ControllerRouterHandler,
    Message,
    Receive,
    Scope,
    Send,
)

from perdure.blobs.store import FsspecBlobs
from perdure.cassandra.catalog import DROPPED, Catalog
from perdure.cassandra.event_table import CassandraEventTable
from perdure.cassandra.objects import CassandraManifest
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session
from perdure.cassandra.state_table import CassandraStateTable
from perdure.cassandra.tables import Generations, OneGeneration, Tables
from perdure.errors import NotFound, PerdureError
from perdure.gateway.memories import Memories
from perdure.gateway.messages import ErrorBody, error_body, status_of
from perdure.gateway.routes.agents import AgentRoutes
from perdure.gateway.routes.cluster import ClusterRoutes
from perdure.gateway.routes.memories import MemoryRoutes
from perdure.gateway.routes.objects import ObjectRoutes
from perdure.gateway.routes.states import StateTableRoutes
from perdure.gateway.service import Gateway
from perdure.gateway.sources import Sources, StoreSources
from perdure.kafka.wire import key_of, partition_of
from perdure.model.projection import default_projections
from perdure.model.upcast import default_upcasters
from perdure.projector.asking import Desk
from perdure.projector.routes import StateRoutes
from perdure.serving import Health, logger
from perdure.settings import Cluster
from perdure.version import __version__

_log = logger("perdure.gateway")


def application(cluster: Cluster) -> Litestar:
    """The gateway of a cluster. No I/O before it is started."""
    gateway = Gateway(
        cluster,
        functools.partial(opened, cluster),
        default_projections,
        default_upcasters,
    )
    return build(gateway, gateway_routes(gateway), lifespan=[lambda _: gateway.running()])


def gateway_routes(gateway: Gateway) -> list[ControllerRouterHandler]:
    """All that a gateway answers."""
    return [
        ClusterRoutes,
        AgentRoutes,
        StateRoutes,
        StateTableRoutes,
        ObjectRoutes,
        MemoryRoutes,
        *(asgi(path, copy_scope=False)(answer) for path, answer in gateway.health.routes()),
    ]


def build(
    gateway: Gateway,
    routes: Sequence[ControllerRouterHandler],
    lifespan: Sequence[Callable[[Litestar], AbstractAsyncContextManager[None]]] = (),
) -> Litestar:
    """Routes as an application: what they work with, and how they fail."""

    def the_gateway() -> Gateway:
        return gateway

    def the_desk() -> Desk:
        return gateway.desk

    return Litestar(
        routes,
        dependencies={
            "gateway": Provide(the_gateway, sync_to_thread=False),
            "desk": Provide(the_desk, sync_to_thread=False),
        },
        exception_handlers={
            PerdureError: _answered,
            HTTPException: _not_understood,
            Exception: _unexpected,
        },
        lifespan=lifespan,
        middleware=[lambda app: _measured(app, gateway)],
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="perdure gateway",
            version=__version__,
            summary="Reads of a cluster: events, states, memories, checkpoints, and verdicts.",
            path="/v1/schema",
        ),
    )


@contextlib.asynccontextmanager
async def opened(
    cluster: Cluster, health: Health, *, with_memories: bool = True
) -> AsyncIterator[Sources]:
    """The sources of a cluster, on Cassandra, Weaviate and checkpoint storage.

    Weaviate is waited for in the background: all but memories is read without it.

    Raises:
        Unavailable: Cassandra does not answer.
        UnsupportedFormat: the tables are of a newer version.
    """
    async with contextlib.AsyncExitStack() as stack:
        session = await Session.connect(cluster)
        stack.push_async_callback(session.close)
        generations, refresh = await _generations(session, cluster)
        objects = FsspecBlobs(cluster.blobs)
        stack.push_async_callback(objects.close)
        memories = Memories(cluster, health)
        if with_memories:
            await stack.enter_async_context(memories.connecting())

        def of(store: str) -> StoreSources:
            events = CassandraEventTable(session, store, generations)
            states = CassandraStateTable(session, store, generations)
            return StoreSources(events, states, memories.of(store, events, generations))

        manifest = CassandraManifest(session, cluster)
        yield Sources(of, objects, manifest, refresh)


async def _generations(
    session: Session, cluster: Cluster
) -> tuple[Generations, Callable[[], Awaitable[object]]]:
    """Where agents are read, and what looks for that again."""
    catalog = await Catalog.open(session, cluster)
    if not cluster.generation:
        live = await LiveGenerations.open(
            session,
            cluster,
            catalog,
            lambda store, agent: partition_of(key_of(store, agent), cluster.partitions),
        )
        return live, live.refresh
    generation = await catalog.generation(cluster.generation)
    if generation.state == DROPPED:
        raise NotFound(f"generation {generation.number} was dropped", hint="perdure replay --list")
    keyspace = cluster.keyspace(generation.number)
    return OneGeneration(await Tables.prepare(session, keyspace)), _always


async def _always() -> None:
    """It stays where it is."""


def _measured(app: ASGIApp, gateway: Gateway) -> ASGIApp:
    """Times each request from its first byte to the first of its answer."""

    async def measured(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        started, method = time.perf_counter(), scope["method"]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                labels = (scope.get("path_template", ""), method, message["status"])
                seconds = time.perf_counter() - started
                gateway.metrics.seconds.labels(*labels).observe(seconds)
            await send(message)

        await app(scope, receive, sent)

    return measured


def _answered(request: Request[object, object, State], error: PerdureError) -> Response[ErrorBody]:
    status = status_of(error)
    if status >= 500:
        _log.warning("not answered", reason=str(error), **_fields(request))
    headers = {"retry-after": "1"} if error.retriable else {}
    return Response(error_body(error), status_code=status, headers=headers)


def _not_understood(
    request: Request[object, object, State], error: HTTPException
) -> Response[ErrorBody]:
    details = getattr(error, "extra", None)
    message = f"{request.method} {request.url.path}: {error.detail}"
    name = "NotFound" if error.status_code == 404 else "InvalidInput"
    hint = str(details) if details else "/v1/schema describes what can be asked"
    return Response(ErrorBody(name, message, hint), status_code=error.status_code)


def _unexpected(request: Request[object, object, State], error: Exception) -> Response[ErrorBody]:
    _log.error("failed", exc_info=error, **_fields(request))
    body = ErrorBody(
        "Unavailable",
        f"the gateway failed on {request.method} {request.url.path}: {type(error).__name__}",
        "report this, with the gateway's log",
    )
    return Response(body, status_code=500)


def _fields(request: Request[object, object, State]) -> dict[str, str]:
    """What a log line says of a request."""
    fields = {"path": request.url.path}
    names = request.path_params
    if "namespace" in names:
        fields["agent"] = f"{names['namespace']}/{names.get('name')}"
    if (traceparent := request.headers.get("traceparent")) is not None:
        fields["traceparent"] = traceparent
    return fields
