"""A store of a cluster, as an agent process holds it: writes by Kafka, reads from the gateway."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple, get_args
from urllib.parse import parse_qs, urlsplit

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from perdure.embedded.scratch import MemoryScratchIndex
from perdure.errors import InvalidInput, Unreachable
from perdure.gateway.client import (
    HttpBlobs,
    HttpEventTable,
    HttpMemoryIndex,
    HttpStateTable,
    HttpStored,
    HttpVerdicts,
)
from perdure.gateway.connection import Connection
from perdure.gateway.messages import ClusterBody
from perdure.kafka import chunks
from perdure.kafka.log import KafkaLog
from perdure.kafka.wire import DEFAULT_STORE, RECORD_BYTES_MAX, store_name
from perdure.ports import Ack, Backend

PORT: Final = 8787
ACKS: Final[tuple[Ack, ...]] = get_args(Ack)


class Place(NamedTuple):
    """What a URL of a cluster names: the gateway, a store, and what writes wait for."""

    gateway: str
    store: str
    ack: Ack


def place_of(url: str) -> Place:
    """Take the URL of a cluster apart.

    Raises:
        InvalidInput: it names no gateway, no store, or no acknowledgement.

    >>> place_of("perdure://example.com:9000/lab?ack=recorded")
    Place(gateway='http://example.com:9000', store='lab', ack='recorded')
    >>> place_of("perdure://127.0.0.1")
    Place(gateway='http://127.0.0.1:8787', store='default', ack='durable')
    """
    parts = urlsplit(url)
    try:
        port = parts.port or PORT
    except ValueError as error:
        raise InvalidInput(f"the URL {url!r} has no port: {error}", hint=_FORM) from error
    if parts.scheme != "perdure" or not parts.hostname:
        raise InvalidInput(f"the URL {url!r} names no gateway", hint=_FORM)
    given = parse_qs(parts.query)
    if set(given) - {"ack"}:
        raise InvalidInput(f"the URL {url!r} asks for {sorted(set(given) - {'ack'})}", hint=_FORM)
    wanted = given.get("ack", ["durable"])[-1]
    ack = next((known for known in ACKS if known == wanted), None)
    if ack is None:
        raise InvalidInput(f"the URL {url!r} has ack={wanted}", hint=f"one of {', '.join(ACKS)}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    store = parts.path.strip("/") or DEFAULT_STORE
    return Place(f"http://{host}:{port}", store_name(store), ack)


async def open_cluster(url: str, *, version_of: Callable[[str], int]) -> Backend:
    """Connect to a store of a cluster. `version_of` gives the version new events are in.

    Raises:
        InvalidInput: the URL is none of a cluster.
        Unreachable: the gateway or Kafka does not answer.
    """
    place = place_of(url)
    writer = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
    async with contextlib.AsyncExitStack() as stack:
        connection = Connection(place.gateway)
        stack.push_async_callback(connection.close)
        cluster = await connection.ask("/v1/cluster", ClusterBody)
        verdicts = HttpVerdicts(connection)
        stack.push_async_callback(verdicts.close)
        events = HttpEventTable(connection, place.store, verdicts, cluster.partitions)
        log = KafkaLog(
            bootstrap=cluster.kafka,
            topic=cluster.topics["events"],
            partitions=cluster.partitions,
            store=place.store,
            writer=writer,
            verdicts=verdicts,
            chain_at=events.chain_at,
            version_of=version_of,
        )
        await log.start()
        stack.push_async_callback(log.close)
        uploads = _Uploads(cluster, writer, HttpStored(connection))
        stack.push_async_callback(uploads.close)
        return Backend(
            url=url,
            writer=writer,
            log=log,
            events=events,
            states=HttpStateTable(connection, place.store),
            blobs=HttpBlobs(connection, uploads),
            memories=HttpMemoryIndex(connection, place.store),
            scratch_memories=MemoryScratchIndex,
            changed=events.changed,
            close=stack.pop_all().aclose,
            keeps_states=True,
            ack=place.ack,
        )


_FORM: Final = "for example perdure://gateway:8787/store?ack=recorded"


class _Uploads:
    """Sends objects to checkpoint storage; connects when the first one comes."""

    def __init__(self, cluster: ClusterBody, writer: str, stored: chunks.Stored) -> None:
        self._cluster = cluster
        self._writer = writer
        self._stored = stored
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self, digest: str, data: bytes) -> int:
        return await chunks.upload(
            await self._connected(),
            self._cluster.topics["chunks"],
            digest,
            data,
            stored=self._stored,
            uploader=self._writer,
        )

    async def close(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def _connected(self) -> chunks.Producer:
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._cluster.kafka,
                    # Not idempotent: once a batch has expired, such a producer's numbers are out
                    # of order for good. A chunk that is sent twice is taken once.
                    enable_idempotence=False,
                    acks="all",
                    max_request_size=RECORD_BYTES_MAX,
                )
                try:
                    await producer.start()
                except (KafkaError, OSError) as error:
                    await producer.stop()
                    raise Unreachable(
                        f"Kafka at {self._cluster.kafka} does not answer: {error}",
                        hint="look whether it is up",
                    ) from error
                self._producer = producer
            connected: chunks.Producer = self._producer
            return connected
