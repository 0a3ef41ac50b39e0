"""Objects as stored: compressed, named by their content, and checked when they are read."""

import hashlib
import resource
import subprocess
import sys

import numpy as np
import pytest
import zstandard

from perdure.checkpointer.graph import Classes, encode
from perdure.checkpointer.objects import check, pack, unpack
from perdure.errors import Corrupt, NotCheckpointable

CLASSES = Classes()
VALUE = {"weights": np.arange(2000, dtype=np.float32), "steps": (1, 2, {"a"}), "text": "x" * 5000}


def test_what_is_packed_comes_back():
    """The digest and the size are of the encoded bytes, and the object is the same."""
    packed = pack(VALUE, CLASSES)
    encoded = encode(VALUE, CLASSES)
    assert hashlib.sha256(encoded).hexdigest() == packed.digest
    assert len(encoded) == packed.size
    assert len(packed.data) < packed.size
    result = unpack(packed.data, packed.digest, CLASSES)
    assert VALUE["steps"] == result["steps"]
    assert VALUE["weights"].tobytes() == result["weights"].tobytes()


def test_the_frame_says_what_is_in_it():
    """Any zstd tool can check and unpack it: content size and checksum are in the frame."""
    parameters = zstandard.get_frame_parameters(pack(VALUE, CLASSES).data)
    assert len(encode(VALUE, CLASSES)) == parameters.content_size
    assert parameters.has_checksum


def test_the_same_object_has_the_same_digest_at_any_level():
    """Compressing harder doesn't make another object of it."""
    assert pack(VALUE, CLASSES, level=1).digest == pack(VALUE, CLASSES, level=19).digest


def test_large_objects_that_hardly_compress():
    """Tens of megabytes of noise and of zeros come back."""
    noise = np.random.default_rng(7).bytes(12_000_000)
    value = [noise, bytes(12_000_000)]
    packed = pack(value, CLASSES)
    assert value == unpack(packed.data, packed.digest, CLASSES)


def test_every_truncation_is_corrupt():
    """A file that ends early names its digest, wherever it ends, checksum included."""
    packed = pack(VALUE, CLASSES)
    for end in [*range(40), *range(len(packed.data) - 40, len(packed.data)), len(packed.data) // 2]:
        with pytest.raises(Corrupt, match=packed.digest) as caught:
            unpack(packed.data[:end], packed.digest, CLASSES)
        assert "verify" in caught.value.hint


def test_bytes_added_are_corrupt():
    """Neither noise nor a second frame may follow."""
    packed = pack(VALUE, CLASSES)
    for more in (b"\0", packed.data):
        with pytest.raises(Corrupt, match="bytes added"):
            unpack(packed.data + more, packed.digest, CLASSES)


def test_every_flipped_byte_is_corrupt_or_harmless():
    """No damage gives another object: it is noticed, or (a bit without meaning) changes nothing."""
    packed = pack(VALUE, CLASSES)
    noticed = 0
    for position in range(len(packed.data)):
        damaged = bytearray(packed.data)
        damaged[position] ^= 0x10
        try:
            result = unpack(bytes(damaged), packed.digest, CLASSES)
        except Corrupt as error:
            assert packed.digest in error.message  # noqa: PT017 - not every bit has a meaning
            noticed += 1
        else:
            assert VALUE["steps"] == result["steps"]
            assert VALUE["weights"].tobytes() == result["weights"].tobytes()
    assert noticed > 0.99 * len(packed.data)


def test_another_object_under_the_digest():
    """Sound bytes of another object are not what was asked for."""
    one, two = pack([1], CLASSES), pack([2], CLASSES)
    with pytest.raises(Corrupt, match="other content"):
        unpack(two.data, one.digest, CLASSES)
    with pytest.raises(Corrupt, match="other content"):
        check(two.data, one.digest)
    check(one.data, one.digest)


def test_what_is_checked_but_not_decodable():
    """Bytes with the right digest that are no object name it all the same."""
    content = b"not an encoded object"
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(Corrupt, match=digest):
        unpack(zstandard.compress(content), digest, CLASSES)


def test_declared_sizes():
    """A frame that is larger than allowed, or doesn't say, is refused before it is unpacked."""
    packed = pack(VALUE, CLASSES)
    with pytest.raises(Corrupt, match="over the limit of 100"):
        unpack(packed.data, packed.digest, CLASSES, bytes_max=100)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(Corrupt, match="doesn't say how large"):
        unpack(silent, packed.digest, CLASSES)
    with pytest.raises(Corrupt, match="no zstd frame"):
        unpack(b"", packed.digest, CLASSES)


def test_a_bomb_takes_no_memory():
    """Neither the claimed size nor what a small frame would become is allocated."""
    code = """
import resource, struct
from perdure.checkpointer.objects import check
from perdure.errors import Corrupt
resource.setrlimit(resource.RLIMIT_AS, (1_200_000_000, 1_200_000_000))
magic = b"\\x28\\xb5\\x2f\\xfd"
block = struct.pack("<I", (128 * 1024) << 3 | 0b010)[:3] + b"x"  # 128 KiB of x
last = struct.pack("<I", (128 * 1024) << 3 | 0b011)[:3] + b"x"
claims = magic + bytes([0b10100000]) + struct.pack("<I", 900_000_000)  # says so, and ends
becomes = magic + bytes([0b01000000, 0x58]) + struct.pack("<H", 1000 - 256) + block * 7000 + last
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in (claims, becomes):
    try:
        check(data, "0" * 64)
    except Corrupt:
        pass
    else:
        raise SystemExit("not noticed")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout) < 200  # MiB; either would be 900


def test_what_cannot_be_packed():
    """The path inside the object comes through."""
    with pytest.raises(NotCheckpointable, match=r'value\["f"\]'):
        pack({"f": resource.getrusage}, CLASSES)
