"""Chunks of uploads: what is sent is what is read, and whatever else arrives is named."""

import asyncio
import hashlib
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import InvalidInput
from perdure.kafka import chunks
from perdure.kafka.chunks import CHUNK_BYTES, Chunk, decode, encode, upload

DIGEST = hashlib.sha256(b"an object").hexdigest()
CHUNK = Chunk("u-1", DIGEST, 2, 5, 9, b"some bytes", "host:7")


@given(
    st.builds(
        Chunk,
        upload=st.from_regex(r"\A[0-9a-zA-Z_-]{1,64}\Z"),
        digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
        index=st.integers(0, 99),
        count=st.integers(100, 1000),
        size=st.integers(1, chunks.OBJECT_BYTES_MAX),
        data=st.binary(min_size=1),
        uploader=st.text(max_size=40),
    )
)
def test_what_is_sent_is_what_is_read(chunk):
    """Every field of a chunk survives the wire."""
    assert chunk == decode(*encode(chunk))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upload", b""),
        ("upload", b"u" * 65),
        ("upload", b"u/1"),
        ("upload", b"\xff"),
        ("digest", b"A" * 64),
        ("digest", b"../../etc/passwd"),
        ("index", b"-1"),
        ("index", b"1.5"),
        ("index", "²".encode()),
        ("count", b"0"),
        ("count", b"9" * 500),
        ("bytes", b"0"),
        ("bytes", b"8589934593"),
        ("crc", b"12"),
        ("uploader", b"\xff"),
    ],
)
def test_wrong_headers_are_named(name, value):
    """A header that is missing or wrong is refused, and the message names it."""
    key, data, headers = encode(CHUNK)
    rest = [header for header in headers if header[0] != f"perdure-{name}"]
    for wrong in (rest, [*rest, (f"perdure-{name}", value)], [*rest, (f"perdure-{name}", None)]):
        if wrong is rest and name == "uploader":
            assert not decode(key, data, wrong).uploader
        elif name != "uploader" or wrong[-1][1]:
            with pytest.raises(InvalidInput, match=f"perdure-{name}") as caught:
                decode(key, data, wrong)
            assert caught.value.hint


def test_damaged_chunks_are_refused():
    """A flipped byte, no bytes, another key, and an index beyond the last are noticed."""
    key, data, headers = encode(CHUNK)
    for wrong, what in (
        ((key, b"S" + data[1:], headers), "damaged"),
        ((key, b"", headers), "empty"),
        ((key, None, headers), "empty"),
        ((b"other", data, headers), "key"),
        ((None, data, headers), "key"),
        (encode(msgspec.structs.replace(CHUNK, index=5)), "not one of 5"),
    ):
        with pytest.raises(InvalidInput, match=what):
            decode(*wrong)


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), min_size=1, max_size=4))
async def test_pieces_of_any_size_become_chunks(sizes):
    """All have `CHUNK_BYTES`, but the last; together they are what the pieces were."""

    async def pieces():
        for number, size in enumerate(sizes):
            yield bytes([number]) * size

    found = [chunk async for chunk in chunks._chunks(pieces(), "u", DIGEST, sum(sizes), "")]
    assert all(len(chunk.data) == CHUNK_BYTES for chunk in found[:-1])
    assert list(range(len(found))) == [chunk.index for chunk in found]
    assert all(len(found) == chunk.count for chunk in found)
    crc = 0
    async for piece in pieces():
        crc = zlib.crc32(piece, crc)
    assert crc == zlib.crc32(b"".join(chunk.data for chunk in found))


async def never(*_, **__):
    """Nobody is asked, nothing is sent."""
    raise AssertionError


@pytest.mark.parametrize(
    ("digest", "data", "size"),
    [("short", b"x", None), (DIGEST, b"", None), (DIGEST, None, None), (DIGEST, None, 0)],
)
async def test_what_is_no_object_is_not_sent(digest, data, size):
    """Refused before anything is asked or sent."""

    async def pieces():
        yield b"x"

    class Nowhere:
        send = never

    with pytest.raises(InvalidInput):
        await upload(
            Nowhere(), "t", digest, pieces() if data is None else data, size=size, stored=never
        )


async def test_what_is_stored_is_not_sent():
    """The number of bytes that are stored is the answer, and nothing goes over the wire."""

    class Nowhere:
        send = never

    async def stored(digest, *, upload="", wait=0):
        await asyncio.sleep(0)
        return 17

    assert await upload(Nowhere(), "t", DIGEST, b"x" * 99, stored=stored) == 17


@pytest.mark.parametrize("said", [1, 1_000_000, 10_000_000])
async def test_pieces_of_another_size_than_said(said):
    """Are an error that names both sizes, before the upload can count as complete."""

    async def pieces():
        for _ in range(4):
            yield b"x" * 999_999

    with pytest.raises(InvalidInput, match=f"should have {said} bytes"):
        _ = [chunk async for chunk in chunks._chunks(pieces(), "u", DIGEST, said, "")]
