"""Objects in a folder and in S3: complete or not there, in bounded memory, errors in our words."""

import asyncio
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import zlib

import pytest
from tests.stack import s3 as s3_of_tests

from perdure.blobs.store import PART_BYTES, FsspecBlobs
from perdure.errors import InvalidInput, NotFound, StoreFull, Unavailable

DATA = b"an object" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
LARGE = 200 * 2**20

# Warnings of the S3 client about its own loop and connections, which it closes with the process.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="session")
def s3_server():
    """The address of a server that speaks S3."""
    with s3_of_tests.server() as address:
        yield address


@pytest.fixture
def s3(s3_server, monkeypatch, request):
    """The URL of an empty bucket; the client finds its way there by the environment."""
    for name, value in s3_of_tests.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    bucket = f"perdure-{zlib.crc32(request.node.name.encode()):08x}"
    s3_of_tests.make_bucket(s3_server, bucket)
    return f"s3://{bucket}/checkpoints"


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path):
    """The URL of an empty place, of each kind."""
    return (
        f"file://{tmp_path}/blobs" if request.param == "folder" else request.getfixturevalue("s3")
    )


@pytest.fixture
async def blobs(url):
    """Checkpoint storage there."""
    blobs = FsspecBlobs(url)
    yield blobs
    await blobs.close()


def pieces_of(size, piece=b"perdure!" * 131072):
    """`size` bytes in pieces, without ever having them all."""

    async def pieces():
        for start in range(0, size, len(piece)):
            yield piece[: size - start]

    return pieces()


async def test_what_is_put_is_there(blobs, url):
    """Under its digest, and found by another opener."""
    assert len(DATA) == await blobs.put(DIGEST, DATA)
    other = FsspecBlobs(url)
    assert await other.get(DIGEST) == DATA
    assert len(DATA) == await other.size(DIGEST)
    await other.close()


async def test_putting_again_is_harmless_and_mends(blobs):
    """Also at the same time; where other bytes are under the digest, they are replaced."""
    await asyncio.gather(*(blobs.put(DIGEST, DATA) for _ in range(8)))
    assert await blobs.get(DIGEST) == DATA
    for damaged in (DATA[:-1], b"X" + DATA[1:]):
        await blobs.put_stream(DIGEST, pieces_of(len(damaged), damaged))
        assert damaged == await blobs.get(DIGEST)
        await blobs.put(DIGEST, DATA)
        assert await blobs.get(DIGEST) == DATA


async def test_objects_of_several_parts(blobs):
    """Come back as they were, whether their size is a multiple of a part's or not."""
    for size in (PART_BYTES, 2 * PART_BYTES, 2 * PART_BYTES + 17):
        digest = hashlib.sha256(str(size).encode()).hexdigest()
        assert size == await blobs.put_stream(digest, pieces_of(size))
        expected, found = hashlib.sha256(), hashlib.sha256()
        async for piece in pieces_of(size):
            expected.update(piece)
        async for piece in blobs.stream(digest):
            assert len(piece) <= PART_BYTES
            found.update(piece)
        assert expected.digest() == found.digest()


async def test_what_is_not_there(blobs):
    """The digest is named."""
    for ask in (blobs.get, blobs.size):
        with pytest.raises(NotFound, match=DIGEST):
            await ask(DIGEST)
    with pytest.raises(NotFound, match=DIGEST):
        await anext(blobs.stream(DIGEST))


async def test_only_digests_become_paths(blobs):
    """Nothing else reaches the storage."""
    for digest in ("", "../" * 5 + "etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n"):
        for call in (
            blobs.get(digest),
            blobs.size(digest),
            blobs.put(digest, b""),
            blobs.put_stream(digest, pieces_of(1)),
        ):
            with pytest.raises(InvalidInput, match="no digest"):
                await call


async def test_a_writer_that_gives_up_leaves_nothing(blobs):
    """What was there before stays; without anything before, nothing is there."""

    async def failing():
        for _ in range(3):
            yield b"x" * PART_BYTES
        raise InvalidInput("no more")

    with pytest.raises(InvalidInput, match="no more"):
        await blobs.put_stream(DIGEST, failing())
    with pytest.raises(NotFound):
        await blobs.get(DIGEST)
    await blobs.put(DIGEST, DATA)
    with pytest.raises(InvalidInput, match="no more"):
        await blobs.put_stream(DIGEST, failing())
    assert await blobs.get(DIGEST) == DATA
    assert await blobs.clean(-60) == 0


WRITER = """
import asyncio, sys
from perdure.blobs.store import FsspecBlobs
async def pieces():
    for number in range(10**9):
        yield b"x" * 2**20
        if number == 20:
            print("many", flush=True)
asyncio.run(FsspecBlobs(sys.argv[1]).put_stream("a" * 64, pieces()))
"""


async def test_leftovers_of_killed_writers_are_removed(blobs, url):
    """Once they are old, and not while somebody may be writing them."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, url, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    await writer.stdout.readline()
    if url.startswith("file:"):
        assert await blobs.clean(-60) == 0
    writer.kill()
    await writer.wait()
    with pytest.raises(NotFound):
        await blobs.get("a" * 64)
    if url.startswith("file:"):  # the S3 of the tests says of each upload that it began in 2010
        assert await blobs.clean(3600) == 0
    assert await blobs.clean(-60) == 1
    assert await blobs.clean(-60) == 0


MEASURED = """
import asyncio, hashlib, resource, sys
from perdure.blobs.store import FsspecBlobs
async def main():
    blobs = FsspecBlobs(sys.argv[1])
    async def pieces(count):
        for _ in range(count):
            yield b"perdure!" * 65536
    await blobs.put_stream("b" * 64, pieces(20))
    async for _ in blobs.stream("b" * 64): pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stored = await blobs.put_stream("a" * 64, pieces(400))
    read = 0
    async for piece in blobs.stream("a" * 64):
        read += len(piece)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(stored, read, (after - before) // 1024)
    await blobs.close()
asyncio.run(main())
"""


@pytest.mark.slow
def test_large_objects_in_bounded_memory(url):
    """200 MB written and read take no more than some parts of main memory."""
    out = subprocess.run(
        [sys.executable, "-c", MEASURED, url],
        check=True,
        stdout=subprocess.PIPE,
        env=dict(os.environ),
        text=True,
    ).stdout
    stored, read, grown = map(int, out.split())
    assert (stored, read) == (LARGE, LARGE)
    assert grown < 8 * PART_BYTES // 2**20


async def test_a_bucket_that_is_not_there(s3):
    """Is no missing object: the storage is told as unavailable, with what to mend."""
    blobs = FsspecBlobs("s3://perdure-no-such-bucket/checkpoints")
    for call in (blobs.put(DIGEST, DATA), blobs.get(DIGEST), blobs.size(DIGEST)):
        with pytest.raises(Unavailable, match="perdure-no-such-bucket") as caught:
            await call
        assert caught.value.hint
    await blobs.close()


async def test_a_storage_that_does_not_answer(s3, monkeypatch):
    """Is told as unavailable, and names the storage."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    blobs = FsspecBlobs(s3)
    with pytest.raises(Unavailable, match=s3):
        await blobs.get(DIGEST)
    await blobs.close()


async def test_a_full_folder(tmp_path):
    """Told as StoreFull with what to do; what was there stays, and nothing half is left."""
    blobs = FsspecBlobs(f"file://{tmp_path}")
    await blobs.put(DIGEST, DATA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(StoreFull) as caught:
            await blobs.put("a" * 64, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.hint
    assert await blobs.get(DIGEST) == DATA
    await blobs.close()
    assert [tmp_path / DIGEST[:2] / DIGEST] == [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("folder", ["/proc/self/blobs", "/dev/null/blobs"])
async def test_a_folder_that_cannot_be_written(folder):
    """Told as an error of perdure that names the folder."""
    blobs = FsspecBlobs(f"file://{folder}")
    with pytest.raises(Unavailable, match=folder):
        await blobs.put(DIGEST, DATA)
    await blobs.close()


async def test_a_folder_that_was_removed(tmp_path):
    """Is made again by the next object."""
    blobs = FsspecBlobs(f"file://{tmp_path}/blobs")
    await blobs.put(DIGEST, DATA)
    shutil.rmtree(tmp_path / "blobs")
    await blobs.put(DIGEST, DATA)
    assert await blobs.get(DIGEST) == DATA
    await blobs.close()


def test_other_urls():
    """A kind that nobody knows, and one whose package isn't there, are told when it is opened."""
    for url in ("nonsense://somewhere", "gs://bucket/prefix"):
        with pytest.raises(InvalidInput, match=url) as caught:
            FsspecBlobs(url)
        assert caught.value.hint
