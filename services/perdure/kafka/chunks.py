"""Objects on their way to checkpoint storage: chunks on the topic `chunks`, one record each.

The key is the object's digest, so that all chunks of it are in one partition, in order. What they
are is said in headers:

`perdure-upload`    names this attempt to upload, so that two of one object aren't mixed
`perdure-digest`    of the object: SHA-256 in hexadecimal of what the zstd frame holds
`perdure-index`     of the chunk, from 0
`perdure-count`     of the chunks of the upload
`perdure-bytes`     of all chunks together
`perdure-crc`       CRC-32 of this chunk, 8 hexadecimal digits
`perdure-uploader`  which process sent it

Invariants:
- An object that is stored already is not sent.
- Of an object that comes in pieces, no more than `IN_FLIGHT` chunks are in memory.
"""

import asyncio
import re
import zlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Sequence
from typing import Final, Protocol

from aiokafka.errors import KafkaError
from uuid_utils import uuid7

from perdure.checkpointer.uploads import Chunk
from perdure.errors import InvalidInput, Unreachable

CHUNK_BYTES: Final = 512 * 1024
"""The most bytes of one chunk: below what brokers take of a record by default."""

OBJECT_BYTES_MAX: Final = 1 << 33
"""The most bytes of a stored object, 8 GiB: what a number in a header can make a service expect."""

IN_FLIGHT: Final = 4
"""How many chunks are sent before the first of them is acknowledged."""

STORED_SECONDS: Final = 300.0
"""How long an upload waits, after its last chunk, for the object to be stored."""

_ASK_SECONDS: Final = 20.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_UPLOAD: Final = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_CRC: Final = re.compile(r"[0-9a-f]{8}")
_PREFIX: Final = "perdure-"


class Producer(Protocol):
    """What sends records; aiokafka's producer does."""

    async def send(
        self, topic: str, value: bytes, key: bytes, *, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[object]:
        """Queue a record; what it gives back is done when the record is acknowledged."""
        ...


class Stored(Protocol):
    """Asks the cluster for an object; the gateway's client does."""

    def __call__(self, digest: str, *, upload: str = "", wait: float = 0) -> Awaitable[int | None]:
        """How many bytes are stored of it, None if it isn't there within `wait` seconds.

        Raises: Corrupt (this upload was refused; the message says why), Unavailable.
        """
        ...


def encode(chunk: Chunk) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """The key, the value and the headers of a chunk's record."""
    fields = {
        "upload": chunk.upload,
        "digest": chunk.digest,
        "index": str(chunk.index),
        "count": str(chunk.count),
        "bytes": str(chunk.size),
        "crc": f"{zlib.crc32(chunk.data):08x}",
        "uploader": chunk.uploader,
    }
    headers = [(_PREFIX + name, value.encode()) for name, value in fields.items()]
    return chunk.digest.encode(), chunk.data, headers


def decode(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> Chunk:
    """The chunk of a record.

    Raises:
        InvalidInput: it is none, or was damaged; names what is wrong.
    """
    fields = {
        name.removeprefix(_PREFIX): _text(name, header)
        for name, header in headers
        if name.startswith(_PREFIX)
    }
    digest = _checked(fields, "digest", _DIGEST)
    chunk = Chunk(
        upload=_checked(fields, "upload", _UPLOAD),
        digest=digest,
        index=_number(fields, "index", 0, OBJECT_BYTES_MAX),
        count=_number(fields, "count", 1, OBJECT_BYTES_MAX),
        size=_number(fields, "bytes", 1, OBJECT_BYTES_MAX),
        data=value or b"",
        uploader=fields.get("uploader", "")[:200],
    )
    if key != digest.encode():
        raise InvalidInput(
            f"chunk {chunk.index} of object {digest} has the key {(key or b'')[:80]!r}",
            hint="the key of a chunk is the object's digest",
        )
    if chunk.index >= chunk.count:
        raise InvalidInput(
            f"chunk {chunk.index} of object {digest} is not one of {chunk.count}",
            hint="chunks are counted from 0",
        )
    if not chunk.data:
        raise InvalidInput(
            f"chunk {chunk.index} of object {digest} is empty", hint="send no empty chunks"
        )
    crc = f"{zlib.crc32(chunk.data):08x}"
    if crc != _checked(fields, "crc", _CRC):
        raise InvalidInput(
            f"chunk {chunk.index} of object {digest} is damaged: its CRC-32 is {crc}",
            hint=f"{_PREFIX}crc is the CRC-32 of the record's value; upload the object again",
        )
    return chunk


async def upload(
    producer: Producer,
    topic: str,
    digest: str,
    data: bytes | AsyncIterable[bytes],
    *,
    stored: Stored,
    size: int | None = None,
    uploader: str = "",
    timeout: float = STORED_SECONDS,  # noqa: ASYNC109 - of one phase, not of the call
) -> int:
    """Bring a packed object into checkpoint storage; how many bytes are stored when it returns.

    `data` is the object's zstd frame, whole or in pieces of any size; of pieces `size` is what they
    have together. Idempotent: an object that is there is not sent.

    Raises:
        InvalidInput: no digest, nothing in it, too large, or pieces of another size than `size`.
        Corrupt: what arrived is not the object of `digest`; the message says what is wrong.
        Unreachable: the cluster doesn't take it, or it wasn't stored within `timeout` seconds.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"{digest[:80]!r} is no digest", hint="give 64 hexadecimal digits of SHA-256"
        )
    total = len(data) if isinstance(data, bytes) else size
    if total is None or not 0 < total <= OBJECT_BYTES_MAX:
        raise InvalidInput(
            f"object {digest} of {total} bytes can't be uploaded",
            hint=f"say how many bytes it has: 1 to {OBJECT_BYTES_MAX}",
        )
    known = await stored(digest)
    if known is not None:
        return known
    attempt = str(uuid7())
    chunks = _chunks(data, attempt, digest, total, uploader)
    await _send(producer, topic, digest, chunks)
    try:
        async with asyncio.timeout(timeout):
            while True:
                known = await stored(digest, upload=attempt, wait=_ASK_SECONDS)
                if known is not None:
                    return known
    except TimeoutError as error:
        raise Unreachable(
            f"object {digest} was sent but not stored within {timeout:g} s",
            hint="is the checkpointer running? saving it again is harmless",
        ) from error


async def _send(producer: Producer, topic: str, digest: str, chunks: AsyncIterable[Chunk]) -> None:
    waiting: deque[asyncio.Future[object]] = deque()
    try:
        async for chunk in chunks:
            key, value, headers = encode(chunk)
            sent = await producer.send(topic, value, key, headers=headers)
            sent.add_done_callback(_seen)
            waiting.append(sent)
            if len(waiting) >= IN_FLIGHT:
                await waiting.popleft()
        while waiting:
            await waiting.popleft()
    except KafkaError as error:
        raise Unreachable(
            f"object {digest} can't be sent to topic {topic}: {error}",
            hint="is Kafka up? saving it again is harmless",
        ) from error


def _seen(sent: asyncio.Future[object]) -> None:
    # The first failure is raised; those after it are the same, and nobody waits for them.
    if not sent.cancelled():
        sent.exception()


async def _chunks(
    data: bytes | AsyncIterable[bytes], attempt: str, digest: str, size: int, uploader: str
) -> AsyncIterator[Chunk]:
    count = -(-size // CHUNK_BYTES)
    index = found = 0
    async for piece in _pieces(data):
        found += len(piece)
        if found > size:
            break
        yield Chunk(attempt, digest, index, count, size, piece, uploader)
        index += 1
    if found != size:
        has = found if found < size else "more"
        raise InvalidInput(
            f"object {digest} should have {size} bytes and has {has}",
            hint="give the number of bytes that the pieces have together",
        )


async def _pieces(data: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `CHUNK_BYTES`, the last one of what is left."""
    if isinstance(data, bytes):
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
        return
    kept = bytearray()
    async for piece in data:
        view = memoryview(piece)
        while view:
            taken = view[: CHUNK_BYTES - len(kept)]
            kept += taken
            view = view[len(taken) :]
            if len(kept) == CHUNK_BYTES:
                yield bytes(kept)
                kept.clear()
    if kept:
        yield bytes(kept)


def _text(name: str, value: bytes | None) -> str:
    try:
        return (value or b"").decode("ascii" if name != f"{_PREFIX}uploader" else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"header {name} of a chunk is no text", hint="send text") from error


def _checked(fields: dict[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(name, "")
    if not pattern.fullmatch(value):
        raise InvalidInput(
            f"header {_PREFIX}{name} of a chunk is {value[:80]!r}",
            hint=f"it has to be there and to match {pattern.pattern}",
        )
    return value


def _number(fields: dict[str, str], name: str, least: int, most: int) -> int:
    value = fields.get(name, "")
    number = int(value) if value.isdecimal() and len(value) < 20 else -1
    if not least <= number <= most:
        raise InvalidInput(
            f"header {_PREFIX}{name} of a chunk is {value[:80]!r}",
            hint=f"it has to be a number from {least} to {most}",
        )
    return number
