"""What the checkpointer needs of where objects go: the ports that storage and tables fill."""

from collections.abc import AsyncIterable, Mapping
from datetime import datetime
from typing import Protocol

import msgspec


class StoredObject(msgspec.Struct, frozen=True):
    """A line of the manifest: an object that is in checkpoint storage.

    `size` is in bytes before compression, `stored` in bytes as it lies there; `created` is when its
    last chunk was sent, in UTC; `uploader` names the process that sent it.
    """

    digest: str
    size: int
    stored: int
    created: datetime
    uploader: str


class Known(msgspec.Struct, frozen=True):
    """What the manifest says of a digest: what is stored, and which uploads were refused, why."""

    object: StoredObject | None = None
    refused: Mapping[str, str] = {}


class Storage(Protocol):
    """Checkpoint storage that takes objects in pieces."""

    async def put_stream(self, digest: str, pieces: AsyncIterable[bytes]) -> int:
        """Keep what the pieces make together; how many bytes that is. Durable when it returns.

        Idempotent. Where `pieces` raises, nothing is kept. Raises Unavailable.
        """
        ...

    async def clean(self) -> int:
        """Remove what killed writers left unfinished; how many. Raises Unavailable."""
        ...


class Manifest(Protocol):
    """The list of objects. Each method raises Unavailable (retriable) where it can't serve now.

    What is stored and what was refused are noted apart, and noting the same again is harmless: in
    whatever order two processes write, both are known after.
    """

    async def find(self, digest: str) -> Known:
        """What is known of a digest; an empty `Known` of one that is not."""
        ...

    async def add(self, stored: StoredObject) -> None:
        """Note an object that is in storage; durable when it returns."""
        ...

    async def refuse(self, digest: str, upload: str, reason: str) -> None:
        """Tell whoever waits for an upload that it is not going to be stored, and why."""
        ...
