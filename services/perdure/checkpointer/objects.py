"""Objects as checkpoints: encoded, compressed, named by the SHA-256 of what they are.

Invariants:
- The digest is of the encoded bytes, before compression: the same object is the same checkpoint at
  any level and with any version of zstd, and what is restored has been compared with it.
- Stored bytes are decoded only after their digest was found right.
- Never more is decompressed than the frame declares, nor than the caller allows.
"""

import hashlib
from typing import Final, NamedTuple

import zstandard

from perdure.checkpointer.graph import Classes, decode, encode
from perdure.errors import Corrupt

BYTES_MAX: Final = 1 << 30
"""1 GiB: the largest object that is restored unless the caller allows more."""

LEVEL: Final = 3
"""zstd level: weights hardly compress better at higher ones, and are many bytes."""

_RATIO_MAX: Final = 1 << 15
"""What zstd can make of a byte at most: a block of 128 KiB out of four."""
_STEP_BYTES: Final = 1024
"""Compressed bytes that are decompressed at a time, at least: into 32 MiB at most."""

_HINT: Final = "restore an older checkpoint; `perdure verify` lists the damaged ones"


class Packed(NamedTuple):
    """An object as it is stored.

    `digest` is the SHA-256 of the encoded bytes in hexadecimal, `size` their number, `data` one
    zstd frame with content size and checksum.
    """

    digest: str
    size: int
    data: bytes


def pack(value: object, classes: Classes, level: int = LEVEL) -> Packed:
    """Encode and compress an object. Raises NotCheckpointable with the path to what can't be kept.

    >>> packed = pack({"weights": [0.5] * 1000}, Classes())
    >>> packed.size > len(packed.data)
    True
    >>> unpack(packed.data, packed.digest, Classes()) == {"weights": [0.5] * 1000}
    True
    """
    encoded = encode(value, classes)
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    return Packed(hashlib.sha256(encoded).hexdigest(), len(encoded), compressor.compress(encoded))


def unpack(data: bytes, digest: str, classes: Classes, *, bytes_max: int = BYTES_MAX) -> object:
    """The object of `digest`, from its stored bytes.

    Raises: Corrupt (truncated, damaged, another object, or over `bytes_max` bytes),
    UnsupportedFormat, NotCheckpointable (a class that is not registered).
    """
    encoded = _checked(data, digest, bytes_max)
    try:
        return decode(encoded, classes)
    except Corrupt as error:
        raise Corrupt(f"object {digest}: {error.message}", hint=_HINT) from error


def check(data: bytes, digest: str, *, bytes_max: int = BYTES_MAX) -> None:
    """Raises Corrupt if stored bytes are not the object of `digest`; makes no object of them."""
    _checked(data, digest, bytes_max)


def _checked(data: bytes, digest: str, bytes_max: int) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
    except zstandard.ZstdError as error:
        raise Corrupt(f"object {digest} is no zstd frame: {error}", hint=_HINT) from error
    if size == zstandard.CONTENTSIZE_UNKNOWN:
        raise Corrupt(f"object {digest} doesn't say how large it is", hint=_HINT)
    if size > bytes_max:
        raise Corrupt(
            f"object {digest} declares {size} bytes, over the limit of {bytes_max}", hint=_HINT
        )
    encoded = _decompress(data, digest, size)
    if hashlib.sha256(encoded).hexdigest() != digest:
        raise Corrupt(f"object {digest} has other content than was saved", hint=_HINT)
    return encoded


def _decompress(data: bytes, digest: str, size: int) -> bytes:
    # By pieces: a frame of a few bytes that declares a gigabyte must not get a gigabyte allocated.
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    pieces: list[bytes] = []
    found = 0
    view = memoryview(data)
    try:
        while view and found <= size and not decompressor.eof:
            step = max(_STEP_BYTES, (size - found) // _RATIO_MAX)
            pieces.append(decompressor.decompress(view[:step]))
            found += len(pieces[-1])
            view = view[step:]
    except zstandard.ZstdError as error:
        raise Corrupt(f"object {digest} is damaged: {error}", hint=_HINT) from error
    if found != size or not decompressor.eof or decompressor.unused_data or view:
        raise Corrupt(
            f"object {digest} is truncated or has bytes added: {found} of {size} bytes are there",
            hint=_HINT,
        )
    return b"".join(pieces)
