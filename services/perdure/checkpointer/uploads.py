"""From chunks to objects: assembled on disk, verified, stored, and noted in the manifest.

Chunks of one partition come in the order of the log, those of several uploads among each other.

Invariants:
- An object is in the manifest only after it is in storage, and in storage only after the bytes that
  are stored were found to be the object of its digest.
- `position` is before every chunk that is still needed: whoever starts there after a crash, this
  process or another, does the same again, and what was done before is not done twice.
- Memory is bounded by a chunk and some pieces, at any size of an object.
- Every upload ends: stored, or refused with a reason that its sender can read.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from perdure.checkpointer.frames import Frame
from perdure.checkpointer.spool import Spool
from perdure.checkpointer.storage import Manifest, Storage, StoredObject
from perdure.errors import Corrupt, InvalidInput, PerdureError

PLAIN_BYTES_MAX: Final = 1 << 33
"""8 GiB: the most that a stored object may say it has before compression."""

ENDED_MAX: Final = 10_000
"""How many uploads that have ended are remembered, so that their late chunks are known."""


class Chunk(msgspec.Struct, frozen=True):
    """A piece of an upload: the `index`th (from 0) of `count`, of `size` bytes together."""

    upload: str
    digest: str
    index: int
    count: int
    size: int
    data: bytes
    uploader: str = ""


class Upload(msgspec.Struct):
    """An upload that is under way: what has arrived of it, and when the last chunk was sent."""

    first: Chunk
    file: int
    offset: int
    time: float
    chunks: int = 0
    bytes: int = 0


class Uploads:
    """The uploads of one partition of the topic of chunks."""

    def __init__(self, storage: Storage, manifest: Manifest, spool: Spool) -> None:
        self._storage = storage
        self._manifest = manifest
        self._spool = spool
        self._open: dict[str, Upload] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    @property
    def position(self) -> int | None:
        """The offset of the first chunk that is still needed; None where none is."""
        return min((upload.offset for upload in self._open.values()), default=None)

    @property
    def under_way(self) -> int:
        """How many uploads have begun and not ended."""
        return len(self._open)

    async def take(self, chunk: Chunk, offset: int, time: float) -> StoredObject | None:
        """Take the next chunk, sent at `time` (seconds since 1970); the object that it completed.

        Chunks that were taken before, and those of objects that are there, change nothing.

        Raises:
            Corrupt, InvalidInput: the upload is refused; nothing of it is kept, and the manifest
                has the reason.
            Unavailable: nothing was taken: call again with the same chunk.
        """
        if chunk.upload in self._ended:
            return None
        upload = self._open.get(chunk.upload)
        if upload is None:
            upload = await self._begun(chunk, offset, time)
        if upload is None:
            return None
        try:
            if chunk.index >= upload.chunks:
                self._check(upload, chunk)
                await asyncio.to_thread(self._spool.append, upload.file, chunk.data)
                upload.chunks += 1
                upload.bytes += len(chunk.data)
                upload.time = max(upload.time, time)
            whole = upload.chunks == upload.first.count
            return await self._finished(upload) if whole else None
        except (Corrupt, InvalidInput) as error:
            await self._refuse(upload.first, str(error))
            raise

    async def abandon(self, before: float) -> list[Upload]:
        """Give up uploads whose last chunk was sent before a time (seconds since 1970).

        Raises Unavailable: those that could not be given up are kept.
        """
        given_up = [upload for upload in self._open.values() if upload.time < before]
        for upload in given_up:
            first = upload.first
            reason = f"only {upload.chunks} of {first.count} chunks came; save it again"
            await self._refuse(first, reason)
        return given_up

    def close(self) -> None:
        """Let go of everything: this partition is another's now."""
        for upload in self._open.values():
            self._spool.remove(upload.file)
        self._open.clear()

    async def _begun(self, chunk: Chunk, offset: int, time: float) -> Upload | None:
        """A new upload; None where its end is known already."""
        known = await self._manifest.find(chunk.digest)
        if known.object is not None or chunk.upload in known.refused:
            self._end(chunk.upload)
            return None
        refusal: PerdureError | None = None
        if chunk.index != 0:
            refusal = InvalidInput(
                f"chunk {chunk.index} of object {chunk.digest} came without those before it",
                hint="they may have waited for longer than they are kept; save it again",
            )
        elif not self._spool.has_room(chunk.size):
            refusal = InvalidInput(
                f"there is no room for {chunk.size} more bytes of uploads",
                hint="save it again when others are through",
            )
        if refusal is not None:
            await self._refuse(chunk, str(refusal))
            raise refusal
        return self._open.setdefault(chunk.upload, Upload(chunk, self._spool.new(), offset, time))

    def _check(self, upload: Upload, chunk: Chunk) -> None:
        first = upload.first
        if (chunk.digest, chunk.count, chunk.size) != (first.digest, first.count, first.size):
            raise InvalidInput(
                f"chunk {chunk.index} says something else of its upload than chunk 0 did: "
                f"{chunk.count} chunks of {chunk.size} bytes, object {chunk.digest}",
                hint="give each attempt to upload a name of its own",
            )
        left = first.size - upload.bytes
        if chunk.index != upload.chunks or len(chunk.data) > left:
            raise InvalidInput(
                f"chunk {chunk.index} of object {first.digest} has {len(chunk.data)} bytes, where "
                f"chunk {upload.chunks} of at most {left} should follow",
                hint="send the chunks in order, all by one producer; save it again",
            )

    async def _finished(self, upload: Upload) -> StoredObject:
        first = upload.first
        if upload.bytes != first.size:
            raise InvalidInput(
                f"object {first.digest} has {upload.bytes} bytes in {first.count} chunks, "
                f"where {first.size} should be",
                hint="save it again",
            )
        frame = Frame(first.digest, bytes_max=PLAIN_BYTES_MAX)
        stored = await self._storage.put_stream(first.digest, self._verified(upload, frame))
        created = datetime.fromtimestamp(upload.time, UTC)
        entry = StoredObject(first.digest, frame.size, stored, created, first.uploader)
        await self._manifest.add(entry)
        for other in [each for each in self._open.values() if each.first.digest == first.digest]:
            self._end(other.first.upload)
        return entry

    async def _verified(self, upload: Upload, frame: Frame) -> AsyncIterator[bytes]:
        """The pieces of an upload; raises Corrupt instead of ending if they are not the object."""
        left = upload.bytes
        pieces = self._spool.pieces(upload.file)

        def verified() -> bytes:
            piece = next(pieces, b"")
            for _ in frame.feed(piece, last=len(piece) == left):
                pass
            return piece

        while piece := await asyncio.to_thread(verified):
            left -= len(piece)
            yield piece
            if not left:
                return
        raise InvalidInput(
            f"{left} bytes of upload {upload.first.upload} are gone from the local disk",
            hint="save it again",
        )

    async def _refuse(self, chunk: Chunk, reason: str) -> None:
        await self._manifest.refuse(chunk.digest, chunk.upload, reason)
        self._end(chunk.upload)

    def _end(self, upload: str) -> None:
        ended = self._open.pop(upload, None)
        if ended is not None:
            self._spool.remove(ended.file)
        self._ended[upload] = None
        while len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)
