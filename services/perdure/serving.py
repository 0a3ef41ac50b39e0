"""What all services share: logs, health, metrics, and how they run and stop.

Invariants:
- `/livez` answers from the moment the process runs, also while engines are waited for: it says that
  the event loop turns, and nothing else.
- `/readyz` names what is not ready; a service that is waiting for an engine says so there.
- On SIGTERM and SIGINT what is in flight is finished, and the process ends with 0.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import (
    Awaitable,
    Callable,
    Generator,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import structlog
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from perdure.errors import InvalidInput, Unavailable

DRAIN_SECONDS: Final = 30
"""How long requests that are in flight may take after a signal."""

BACKLOG: Final = 1024
"""Connections that may wait to be taken."""

KEEP_ALIVE_SECONDS: Final = 75
"""How long an idle connection is kept: longer than clients keep theirs, so that none is cut."""

PATIENCE_SECONDS_MAX: Final = 5
"""The longest pause before an engine is tried again."""

PAUSE_SECONDS_MIN: Final = 0.5
"""The shortest pause after a failure that nobody thought of."""

REPEATED_SECONDS: Final = 10.0
"""How often a library may write the same line."""

REPEATED_MAX: Final = 1000
"""Lines of libraries that are remembered."""

T = TypeVar("T")

_stopping: ContextVar[asyncio.Event] = ContextVar("stopping")

# The three callables of ASGI 3, as its specification types them.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def _ready() -> Sequence[str]:
    return ()


@dataclass(slots=True)
class Health:
    """What a service says about itself.

    `ready` gives what is not ready, a line each, and nothing when the service can do its work.
    `registry` holds the service's metrics, those of the process among them.

    >>> health = Health("recorder", ready=lambda: ["Cassandra at 127.0.0.1:9042 does not answer"])
    >>> [path for path, _ in health.routes()]
    ['/livez', '/readyz', '/metrics']
    """

    service: str
    ready: Callable[[], Sequence[str]] = _ready
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _waiting: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ProcessCollector(registry=self.registry)

    def routes(self) -> list[tuple[str, Application]]:
        """The paths and what answers them, as `AsgiFastStream(asgi_routes=…)` takes them."""
        return [
            ("/livez", self._answer(self._livez)),
            ("/readyz", self._answer(self._readyz)),
            ("/metrics", self._answer(self._metrics)),
        ]

    async def patiently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it doesn't raise Unavailable any more; meanwhile `/readyz` says why.

        Without a limit: a service waits for its engines as long as nobody stops it.
        """
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Unavailable),
                wait=wait_random_exponential(multiplier=0.1, max=PATIENCE_SECONDS_MAX),
                before_sleep=lambda state: self._told(what, state),
            ):
                with attempt:
                    return await call()
        finally:
            self._waiting.pop(what, None)
        raise Unavailable(f"{what} was given up", hint="start the service again")

    async def persistently(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Work until it is done: begun again after whatever nobody thought of, which is logged.

        Between its end and its next beginning `/readyz` says what it failed with.
        """

        def told(state: RetryCallState) -> None:
            error = None if state.outcome is None else state.outcome.exception()
            logger("perdure.serving").error("begun again", what=what, exc_info=error)
            self._waiting[what] = f"it failed, and is begun again: {error!r}"

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Exception),
                wait=wait_random_exponential(
                    multiplier=PAUSE_SECONDS_MIN, min=PAUSE_SECONDS_MIN, max=PATIENCE_SECONDS_MAX
                ),
                before_sleep=told,
            ):
                with attempt:
                    self._waiting.pop(what, None)
                    await work()
        finally:
            self._waiting.pop(what, None)

    def _told(self, what: str, state: RetryCallState) -> None:
        reason = str(state.outcome.exception()) if state.outcome is not None else ""
        if self._waiting.get(what) != reason:
            logger("perdure.serving").warning("waiting", what=what, reason=reason)
        self._waiting[what] = reason

    def _livez(self) -> tuple[int, str, bytes]:
        return 200, "application/json", msgspec.json.encode({"service": self.service})

    def _readyz(self) -> tuple[int, str, bytes]:
        missing = [f"{what}: {why}" for what, why in self._waiting.items()]
        missing += [] if missing else self.ready()
        body = msgspec.json.encode({"service": self.service, "not_ready": missing})
        return 503 if missing else 200, "application/json", body

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self.registry)

    @staticmethod
    def _answer(make: Callable[[], tuple[int, str, bytes]]) -> Application:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
            status, kind, body = make()
            headers = [
                (b"content-type", kind.encode()),
                (b"content-length", str(len(body)).encode()),
            ]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            body = b"" if scope["method"] == "HEAD" else body
            await send({"type": "http.response.body", "body": body})

        return application


def configure_logs(level: str = "info") -> None:
    """Write every log line of this process, those of libraries too, as JSON on standard error.

    A line has `time`, `level`, `logger`, `event` and what is bound: `service`, `agent`,
    `traceparent`.

    Raises:
        InvalidInput: there is no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidInput(f"log level {level!r} is not known", hint="for example info or warning")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Repeated())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in ("cassandra", "aiokafka", "httpx", "uvicorn.error"):
        # What they tell at info is told here in a line, or is no news: a reconnection.
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; keyword arguments of its methods become fields of the line."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound


@contextlib.contextmanager
def logged(**fields: str | None) -> Iterator[None]:
    """Bind fields (`agent`, `traceparent`) to every line that is logged within.

    >>> with logged(agent="airline/mia", traceparent=None):
    ...     structlog.contextvars.get_contextvars()["agent"]
    'airline/mia'
    """
    given = {name: value for name, value in fields.items() if value is not None}
    with structlog.contextvars.bound_contextvars(**given):
        yield


@contextlib.contextmanager
def stop_on_signals() -> Generator[asyncio.Event, None, None]:
    """An event that is set by the first SIGTERM or SIGINT while the context lasts."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def stopping() -> asyncio.Event:
    """Set when the service was told to stop: what waits for others has to end then.

    For what runs within `run`; elsewhere an event that nobody sets.
    """
    return _stopping.get(None) or asyncio.Event()


async def run(
    app: Application,
    host: str,
    port: int,
    *,
    service: str = "",
    stop: asyncio.Event | None = None,
) -> None:
    """Serve an application until it is told to stop, and finish what is in flight.

    Its routes answer while it is still starting, so that `/livez` and `/readyz` do. Without `stop`
    the process's signals are what stops it; several services in one process share an event of
    `stop_on_signals`.

    Raises:
        Unavailable: the address can't be bound.
        Exception: whatever the application's start-up raised.
    """
    if stop is None:
        with stop_on_signals() as signalled:
            await run(app, host, port, service=service, stop=signalled)
        return
    log = logger("perdure.serving")
    _stopping.set(stop)
    with logged(service=service or None), contextlib.closing(_bound(host, port)) as bound:
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",  # it is ours, below: routes answer before start-up is through
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        lifespan = _Lifespan(app)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        living = asyncio.create_task(lifespan.run())
        stopping = asyncio.create_task(stop.wait())
        log.info("serving", host=host, port=port)
        try:
            await asyncio.wait({serving, living, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First the requests in flight, then what the application does behind them.
            server.should_exit = True
            stopping.cancel()
            try:
                await serving
            finally:
                await lifespan.stop(living)
        log.info("stopped")


class _Repeated(logging.Filter):
    """Lets a library say the same thing once in a while only.

    While a broker is away its client says so hundreds of times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("perdure"):
            return True
        said = (record.name, record.getMessage())
        if record.created < self._said.get(said, 0.0) + REPEATED_SECONDS:
            return False
        if len(self._said) >= REPEATED_MAX:
            self._said.clear()
        self._said[said] = record.created
        return True


class _Server(uvicorn.Server):
    """Leaves signals to `run`: uvicorn would raise them again, and not end with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Lifespan:
    """The lifespan protocol of ASGI, from the server's side."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._stopping = asyncio.Event()
        self._started = False
        self._told = False

    async def run(self) -> None:
        """From start-up to shutdown; ends early only when the application fails."""
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        await self._app(scope, self._receive, self._send)
        if not self._stopping.is_set():
            raise Unavailable("the service ended by itself", hint="its log says why")

    async def stop(self, living: asyncio.Task[None]) -> None:
        """Let the application end what it began. Raises what it failed with."""
        self._stopping.set()
        if not self._started:
            # Told to stop before it was up: what it waits for may never come.
            living.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await living

    async def _receive(self) -> Message:
        if not self._told:
            self._told = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self._started = True
            logger("perdure.serving").info("started")


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there."""
    listening = None
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        # The protocol is named: for a socket without it asyncio doesn't turn Nagle's algorithm off,
        # and each answer takes 40 ms.
        listening = socket.socket(family, kind, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise Unavailable(
            f"the address {host}:{port} can't be served: {error.strerror or error}",
            hint="another process has it, or the host is not of this machine",
        ) from error
    return listening


def _json(value: object, **_: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
