"""Stored objects, one zstd frame each, checked as they are read.

Invariants:
- Never more is decompressed than the frame declares, nor than the caller allows.
- However much a few bytes expand to, no more than 32 MiB of it is in memory here.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

import zstandard

from perdure.errors import Corrupt

HINT: Final = "restore an older checkpoint; `perdure verify` lists the damaged ones"

_RATIO_MAX: Final = 1 << 15
"""What zstd can make of a byte at most: a block of 128 KiB out of four."""
_STEP_BYTES: Final = 1024
"""Compressed bytes that are decompressed at a time, at least: into 32 MiB at most."""
_STEP_BYTES_MAX: Final = 256 * 1024
"""And at most, so that what comes out is hashed while it is in the processor's cache."""
_HEADER_BYTES_MAX: Final = 18
"""The longest header of a frame."""


class Frame:
    """The object of `digest`, whose stored bytes are fed piece by piece.

    >>> frame = Frame(hashlib.sha256(b"an object").hexdigest(), bytes_max=100)
    >>> stored = zstandard.compress(b"an object")
    >>> b"".join([*frame.feed(stored[:9], last=False), *frame.feed(stored[9:], last=True)])
    b'an object'
    >>> frame.size
    9
    """

    def __init__(self, digest: str, *, bytes_max: int) -> None:
        self._digest = digest
        self._bytes_max = bytes_max
        self._head: bytes | None = b""
        self._found = 0
        self._hash = hashlib.sha256()
        self._decompressor = zstandard.ZstdDecompressor().decompressobj()
        self.size = 0
        """How many bytes the object has; known from the first 18 stored ones."""

    def feed(self, data: bytes, *, last: bool) -> Iterator[bytes]:
        """What the next stored bytes hold; with the last ones everything has been checked.

        Raises: Corrupt (truncated, damaged, another object, or over `bytes_max` bytes).
        """
        if self._head is not None:
            data = self._head + data
            if len(data) < _HEADER_BYTES_MAX and not last:
                self._head = data
                return
            self._head = None
            self.size = self._declared(data)
        yield from self._decompressed(data)
        if last:
            self._check_all()

    def _declared(self, data: bytes) -> int:
        try:
            size = zstandard.get_frame_parameters(data).content_size
        except zstandard.ZstdError as error:
            raise Corrupt(f"object {self._digest} is no zstd frame: {error}", hint=HINT) from error
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            raise Corrupt(f"object {self._digest} doesn't say how large it is", hint=HINT)
        if size > self._bytes_max:
            raise Corrupt(
                f"object {self._digest} declares {size} bytes, over the limit of {self._bytes_max}",
                hint=HINT,
            )
        return size

    def _decompressed(self, data: bytes) -> Iterator[bytes]:
        # In steps: a frame of a few bytes that declares a gigabyte must not get a gigabyte
        # allocated.
        view = memoryview(data)
        while view:
            if self._decompressor.eof or self._found > self.size:
                raise self._incomplete()
            step = min(max(_STEP_BYTES, (self.size - self._found) // _RATIO_MAX), _STEP_BYTES_MAX)
            try:
                piece = self._decompressor.decompress(view[:step])
            except zstandard.ZstdError as error:
                raise Corrupt(f"object {self._digest} is damaged: {error}", hint=HINT) from error
            view = view[step:]
            self._found += len(piece)
            self._hash.update(piece)
            if piece:
                yield piece

    def _check_all(self) -> None:
        if self._found != self.size or not self._decompressor.eof or self._decompressor.unused_data:
            raise self._incomplete()
        if self._hash.hexdigest() != self._digest:
            raise Corrupt(f"object {self._digest} has other content than was saved", hint=HINT)

    def _incomplete(self) -> Corrupt:
        return Corrupt(
            f"object {self._digest} is truncated or has bytes added: "
            f"{self._found} of {self.size} bytes are there",
            hint=HINT,
        )
