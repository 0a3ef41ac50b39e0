"""A connection to Weaviate: the only module that knows how its client fails.

Invariants:
- Whatever the client raises leaves as one of `perdure.errors`.
- No call waits for longer than it was given: the client itself would retry for a minute.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeAlias

import grpc  # type: ignore[import-untyped]
import httpx
import weaviate
from weaviate import exceptions
from weaviate.classes.data import DataObject
from weaviate.classes.init import AdditionalConfig, Timeout
from weaviate.collections import CollectionAsync
from weaviate.config import GrpcConfig

from perdure.errors import InvalidData, Unavailable, Unreachable
from perdure.settings import Cluster, addresses

HTTP_PORT: Final = 8080
GRPC_PORT: Final = 50051

QUERY_SECONDS: Final = 10.0
"""How long a query may take; one of 10,000 memories takes a hundredth of it in a bad case."""

WRITE_SECONDS: Final = 60.0
"""How long a batch of objects, or a change of the schema, may take."""

OBJECTS_MAX: Final = 256
"""The most objects that are written at once."""

BATCH_CHARS: Final = 4_000_000
"""About how many characters are written at once: far below what a message may hold (100 MB)."""

Table: TypeAlias = CollectionAsync[dict[str, object], None]
"""A collection, or one tenant's part of it, as the client gives it."""

Row: TypeAlias = DataObject[dict[str, object], None]

_REFUSED: Final = (
    exceptions.AuthenticationFailedError,
    exceptions.InsufficientPermissionsError,
    exceptions.MissingScopeError,
    exceptions.WeaviateUnsupportedFeatureError,
)
_MISUSED: Final = (
    exceptions.WeaviateInvalidInputError,
    exceptions.WeaviateInsertInvalidPropertyError,
    exceptions.WeaviateAddInvalidPropertyError,
    exceptions.SchemaValidationError,
    exceptions.InvalidDataModelError,
)


class Session:
    """A connection to a cluster's Weaviate. Use from one event loop; close it at the end."""

    def __init__(self, client: weaviate.WeaviateAsyncClient, address: str) -> None:
        self.client = client
        self.address = address
        self._http = httpx.AsyncClient(base_url=f"http://{address}", timeout=QUERY_SECONDS)

    @classmethod
    async def connect(cls, cluster: Cluster) -> "Session":
        """Connect, and learn what the server can do.

        Raises:
            Unreachable: it doesn't answer.
        """
        [(host, port)] = addresses(cluster.weaviate, port=HTTP_PORT)
        [(grpc_host, grpc_port)] = addresses(cluster.weaviate_grpc, port=GRPC_PORT)
        client = weaviate.use_async_with_custom(
            http_host=host,
            http_port=port,
            http_secure=False,
            grpc_host=grpc_host,
            grpc_port=grpc_port,
            grpc_secure=False,
            # They ask a package registry for newer versions.
            skip_init_checks=True,
            additional_config=AdditionalConfig(
                timeout=Timeout(init=QUERY_SECONDS, query=QUERY_SECONDS, insert=WRITE_SECONDS),
                grpc_config=GrpcConfig(
                    # By default a channel that failed a few times waits for two minutes.
                    channel_options=[
                        ("grpc.initial_reconnect_backoff_ms", 100),
                        ("grpc.min_reconnect_backoff_ms", 1_000),
                        ("grpc.max_reconnect_backoff_ms", 2_000),
                    ]
                ),
            ),
        )
        session = cls(client, cluster.weaviate)
        try:
            async with session.calling("connecting"):
                await client.connect()
        except BaseException:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        """Close the connection. Harmless when it is closed."""
        await self._http.aclose()
        await self.client.close()

    @contextlib.asynccontextmanager
    async def calling(self, what: str, *, seconds: float = QUERY_SECONDS) -> AsyncIterator[None]:
        """The surroundings of each call: bounded in time, its errors are ours.

        Raises:
            Unreachable: the server doesn't answer, or not in time, or could not do it just now.
            Unavailable: it refuses us.
        """
        try:
            async with asyncio.timeout(seconds):
                yield
        except Exception as error:
            translated = self._translated(what, error)
            if translated is None:
                raise
            raise translated from error

    async def definition(self, name: str) -> dict[str, object]:
        """A collection as the server has it: the client knows only a part of that.

        Raises:
            Unreachable: the server doesn't answer.
        """
        async with self.calling("reading a collection's definition"):
            answer = await self._http.get(f"/v1/schema/{name}")
            answer.raise_for_status()
            found: dict[str, object] = answer.json()
        return found

    async def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write objects, replacing those that have the same ids.

        Not all or none: after an error some may be there. Writing the same again mends that.

        Raises:
            Unreachable: the server doesn't answer or could not write.
            InvalidData: a vector has other dimensions than those that are there.
        """
        for batch in _batches(rows):
            async with self.calling("writing memories", seconds=WRITE_SECONDS):
                # Errors of single objects are not raised by the client.
                written = await table.data.insert_many(batch)
                if written.has_errors:
                    raise exceptions.WeaviateBatchError(
                        "; ".join(sorted({error.message for error in written.errors.values()})[:3])
                    )

    def _translated(self, what: str, error: Exception) -> Exception | None:
        """Our error for one of the client's; None for any other."""
        text = str(getattr(error, "message", "") or error) or type(error).__name__
        message = f"Weaviate at {self.address}, {what}: {text[:500]}"
        if isinstance(error, _MISUSED):
            return InvalidData(message, hint="Weaviate's client refuses it")
        if isinstance(error, _REFUSED):
            return Unavailable(message, hint="check what its server allows and its version")
        if "dimension" in text and isinstance(error, exceptions.WeaviateBaseError):
            return InvalidData(
                message, hint="give every embedder, and every version of it, a name of its own"
            )
        if isinstance(error, TimeoutError):
            return Unreachable(f"Weaviate at {self.address}, {what}: no answer in time", hint=_AWAY)
        if isinstance(error, exceptions.WeaviateBaseError | httpx.HTTPError | grpc.RpcError):
            return Unreachable(message, hint=_AWAY)
        return None


_AWAY: Final = "check that it is up; nothing is lost: what is missing there is entered again"


def _batches(rows: Sequence[Row]) -> list[list[Row]]:
    batches: list[list[Row]] = []
    size = 0
    for row in rows:
        chars = sum(len(value) for value in (row.properties or {}).values() if type(value) is str)
        if not batches or len(batches[-1]) == OBJECTS_MAX or size + chars > BATCH_CHARS:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += chars
    return batches
