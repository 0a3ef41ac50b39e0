"""HTTP to one gateway: a pool of connections, errors as what they are, and patience.

Invariants:
- Every request may be sent again: a lost connection or a gateway that is starting costs time, and
  only after `PATIENCE_SECONDS` an error, which names the URL.
- A stream is read in pieces of bounded size; one that was cut raises.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)
from yarl import URL

from perdure.errors import PerdureError, StoreClosed, Unreachable
from perdure.gateway.messages import ErrorBody, Lines, as_error

PATIENCE_SECONDS: Final = 30.0
"""How long a request is tried again before it fails: a gateway starts in less."""

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 90.0
"""After so long without a byte a connection counts as lost: longer than any poll waits."""

CONNECTIONS_MAX: Final = 64
PIECE_BYTES: Final = 256 * 1024
"""What is read of a stream at a time, about."""

T = TypeVar("T")

_LOST: Final = (aiohttp.ClientError, TimeoutError)


class Answer(NamedTuple):
    """An answer with its headers (names in lower case) and its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Requests to the gateway at `url`: scheme, host and port."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
            ),
            read_bufsize=PIECE_BYTES,
            auto_decompress=False,
        )

    async def ask(self, path: str, kind: type[T], **parameters: str | float) -> T:
        """GET a JSON answer of a kind."""
        return _decoded(await self.request("GET", path, parameters), kind)

    async def post(self, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        """POST a question as JSON, for a JSON answer of a kind."""
        data = msgspec.json.encode(body)
        answer = await self.request("POST", path, body=data)
        return _decoded(answer, kind)

    async def request(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str | float] | None = None,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """One request, tried again while it may help.

        Raises:
            PerdureError: what the gateway answered, as its class.
            Unreachable: the gateway does not answer.
        """

        async def once() -> Answer:
            response = await self._send(method, path, parameters, body, content_type)
            async with response:
                data = await response.read()
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, headers, data)

        return await self._patiently(once)

    async def pieces(
        self, path: str, parameters: Mapping[str, str | float] | None = None
    ) -> AsyncIterator[bytes]:
        """The body of an answer as it comes in. Not tried again once it has begun.

        Raises:
            Unreachable: the gateway does not answer, or the body was cut.
        """
        response = await self._patiently(lambda: self._send("GET", path, parameters))
        try:
            async for piece in response.content.iter_any():
                yield piece
        except _LOST as error:
            raise self._lost(error) from error
        finally:
            response.close()

    async def lines(
        self, what: str, path: str, parameters: Mapping[str, str | float] | None = None
    ) -> AsyncIterator[bytes]:
        """Complete lines of a stream of lines, several at a time.

        Raises:
            PerdureError: what the gateway ended the stream with.
            Unreachable: the gateway does not answer, or the stream was cut.
        """
        reader = Lines(what)
        async for piece in self.pieces(path, parameters):
            for part in reader.take(piece):
                yield part
        reader.finish()

    async def close(self) -> None:
        """Close all connections. Closing twice is harmless."""
        await self._session.close()

    async def _send(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str | float] | None,
        body: bytes | None = None,
        content_type: str = "",
    ) -> aiohttp.ClientResponse:
        """An answer whose body is still to be read; what tells of an error is raised."""
        if self._session.closed:
            raise StoreClosed(
                f"the connection to {self.url} is closed", hint="connect to the store again"
            )
        response = await self._session.request(
            method,
            URL(self.url + path, encoded=True),
            params=parameters,
            data=body,
            headers={} if body is None else {"content-type": content_type},
        )
        if response.status < 400:
            return response
        async with response:
            data = await response.read()
        try:
            told = msgspec.json.decode(data, type=ErrorBody)
        except msgspec.MsgspecError:
            told = None
        if told is None and method == "HEAD" and response.status == 404:
            told = ErrorBody("NotFound", f"there is nothing at {path}")
        if told is None:
            raise Unreachable(
                f"{self.url}{path} answered {response.status} without saying why",
                hint="look whether it is a perdure gateway",
            )
        raise as_error(told)

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_help),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            reraise=True,
        ):
            with attempt:
                try:
                    return await once()
                except _LOST as error:
                    raise self._lost(error) from error
        raise Unreachable(f"the gateway at {self.url} was not asked")

    def _lost(self, error: BaseException) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(
            f"the gateway at {self.url} does not answer: {reason}",
            hint="look whether `perdure serve gateway` runs there",
        )


def agent_path(store: str, agent: str, *rest: str) -> str:
    """The path of something of an agent.

    >>> agent_path("default", "airline/mia", "head")
    '/v1/stores/default/agents/airline/mia/head'
    """
    parts = (store, "agents", *agent.split("/"), *rest)
    return "/v1/stores/" + "/".join(quote(part, safe="") for part in parts)


def _decoded(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreachable(
            f"the gateway's answer is not understood: {error}",
            hint="look whether it is a perdure gateway, of the same version",
        ) from error


def _may_help(error: BaseException) -> bool:
    return isinstance(error, PerdureError) and error.retriable
