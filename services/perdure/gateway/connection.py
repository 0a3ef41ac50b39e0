"""HTTP to one gateway: a pool of connections, errors as what they are, and patience.

Invariants:
- Every request may be sent again: a lost connection, a gateway that is starting or an engine that
  is away costs time, and only after that which `gateway.patience` gives it an error.
- A stream is read in pieces of bounded size; one that was cut raises, and says that it was.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from perdure.errors import InvalidInput, StoreClosed, Unreachable
from perdure.gateway.messages import ErrorBody, Lines, as_error
from perdure.gateway.patience import Patience, Silent

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 90.0
"""After so long without a byte a connection counts as lost: longer than any poll waits."""

CONNECTIONS_MAX: Final = 64
PIECE_BYTES: Final = 256 * 1024
"""What is read of a stream at a time, about."""

T = TypeVar("T")

_LOST: Final = (aiohttp.ClientError, TimeoutError)


class Cut(Unreachable):
    """An answer that had begun was not sent to its end."""


class Answer(NamedTuple):
    """An answer with its headers (names in lower case) and its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Requests to the gateway at `url`: scheme, host and port."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._patience = Patience(url)
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
            with self._answering():
                async with response:
                    data = await response.read()
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, data)

        return await self._patience.ask(once)

    async def pieces(
        self, path: str, parameters: Mapping[str, str | float] | None = None
    ) -> AsyncIterator[bytes]:
        """The body of an answer as it comes in. Not tried again once it has begun.

        Raises:
            Unreachable: the gateway does not answer.
            Cut: it stopped in the middle.
        """
        response = await self._patience.ask(lambda: self._send("GET", path, parameters))
        try:
            async for piece in response.content.iter_any():
                yield piece
        except _LOST as error:
            raise Cut(
                f"{self.url}{path} was cut off: {_reason(error)}", hint="ask again"
            ) from error
        finally:
            response.close()

    async def lines(
        self, what: str, path: str, parameters: Mapping[str, str | float] | None = None
    ) -> AsyncIterator[bytes]:
        """Complete lines of a stream of lines, several at a time.

        Raises:
            PerdureError: what the gateway ended the stream with, where it is no use to ask again.
            Unreachable: the gateway does not answer.
            Cut: the stream stopped in the middle, or its engine did.
        """
        reader = Lines(what)
        async for piece in self.pieces(path, parameters):
            try:
                for part in reader.take(piece):
                    yield part
            except Unreachable as error:
                raise Cut(error.message, hint=error.hint) from error
        try:
            reader.finish()
        except Unreachable as error:
            raise Cut(error.message, hint=error.hint) from error

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
        headers = {} if body is None else {"content-type": content_type}
        url = URL(self.url + path, encoded=True)
        with self._answering():
            response = await self._session.request(
                method, url, params=parameters, data=body, headers=headers
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
        if told is None and 400 <= response.status < 500:
            raise InvalidInput(
                f"{self.url} is no perdure gateway: it answered {response.status} to {path}",
                hint="the URL's port is that of `perdure serve gateway`, 8787 by default",
            )
        if told is None:
            raise Unreachable(
                f"{self.url}{path} answered {response.status} without saying why",
                hint="look whether it is a perdure gateway",
            )
        raise as_error(told)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except _LOST as error:
            raise Silent(
                f"the gateway at {self.url} does not answer: {_reason(error)}",
                hint="look whether `perdure serve gateway` runs there",
            ) from error


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


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
