"""Objects as checkpoints: encoded, compressed, named by the SHA-256 of what they are.

Invariants:
- The digest is of the encoded bytes, before compression: the same object is the same checkpoint at
  any level and with any version of zstd, and what is restored has been compared with it.
- Stored bytes are decoded only after their digest was found right.
"""

import hashlib
from typing import Final, NamedTuple

import zstandard

from perdure.checkpointer.frames import HINT, Frame
from perdure.checkpointer.graph import Classes, decode, encode
from perdure.errors import Corrupt

BYTES_MAX: Final = 1 << 30
"""1 GiB: the largest object that is restored unless the caller allows more."""

LEVEL: Final = 3
"""zstd level: weights hardly compress better at higher ones, and are many bytes."""


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
        raise Corrupt(f"object {digest}: {error.message}", hint=HINT) from error


def check(data: bytes, digest: str, *, bytes_max: int = BYTES_MAX) -> None:
    """Raises Corrupt if stored bytes are not the object of `digest`; makes no object of them."""
    _checked(data, digest, bytes_max)


def _checked(data: bytes, digest: str, bytes_max: int) -> bytes:
    return b"".join(Frame(digest, bytes_max=bytes_max).feed(data, last=True))
