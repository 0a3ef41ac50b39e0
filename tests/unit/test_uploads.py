"""Uploads are assembled, verified and stored whole, whatever comes between, twice or not at all."""

import asyncio
import hashlib
import random
import subprocess
import sys

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.blobs.store import FsspecBlobs
from perdure.checkpointer.spool import Spool
from perdure.checkpointer.storage import Known
from perdure.checkpointer.uploads import Chunk, Uploads
from perdure.errors import Corrupt, InvalidInput, NotFound, Unavailable, Unreachable

NOW = 1_800_000_000.0


class Table:
    """A manifest in memory that can be away."""

    def __init__(self):
        self.objects, self.refused, self.away = {}, {}, 0

    def _answer(self):
        if self.away:
            self.away -= 1
            raise Unreachable("the table is away")

    async def find(self, digest):
        """What is known."""
        self._answer()
        refused = {up: why for (of, up), why in self.refused.items() if of == digest}
        return Known(self.objects.get(digest), refused)

    async def add(self, stored):
        """Note it."""
        self._answer()
        self.objects[stored.digest] = stored

    async def refuse(self, digest, upload, reason):
        """Note the reason."""
        self._answer()
        self.refused[digest, upload] = reason


@pytest.fixture
async def place(tmp_path):
    """Storage in a folder, a manifest, and a place for chunks."""
    blobs, table, spool = FsspecBlobs(f"file://{tmp_path}/blobs"), Table(), Spool(tmp_path)
    yield blobs, table, spool
    spool.close()
    await blobs.close()


def chunks_of(upload, plain, size=100, digest=None):
    """The chunks of an upload of `plain`, of `size` bytes each."""
    data = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(plain)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    digest = digest or hashlib.sha256(plain).hexdigest()
    return [
        Chunk(upload, digest, index, len(pieces), len(data), piece, "host:1")
        for index, piece in enumerate(pieces)
    ]


def noise(seed, size=1000):
    """Bytes that hardly compress."""
    return random.Random(seed).randbytes(size)


async def test_an_object_in_chunks(place):
    """With the last chunk, and not before, the object is in storage and in the manifest."""
    blobs, table, spool = place
    uploads = Uploads(blobs, table, spool)
    plain = noise(1)
    *first, last = chunks_of("u1", plain)
    for offset, chunk in enumerate(first, 40):
        assert await uploads.take(chunk, offset, NOW) is None
    assert (uploads.position, uploads.under_way) == (40, 1)
    with pytest.raises(NotFound):
        await blobs.get(last.digest)
    stored = await uploads.take(last, 99, NOW + 2)
    assert zstandard.decompress(await blobs.get(last.digest)) == plain
    assert table.objects == {last.digest: stored}
    assert (stored.size, stored.stored, stored.uploader) == (len(plain), last.size, "host:1")
    assert stored.created.timestamp() == NOW + 2
    assert (uploads.position, uploads.under_way) == (None, 0)


@settings(max_examples=60)
@given(st.data())
async def test_interleaved_repeated_and_restarted(tmp_path_factory, data):
    """In whatever order uploads mix, chunks repeat and processes die, each object is stored."""
    folder = tmp_path_factory.mktemp("place")
    blobs, table, spool = FsspecBlobs(f"file://{folder}/blobs"), Table(), Spool(folder)
    queues = [
        chunks_of(f"u{number}", noise(data.draw(st.integers(0, 2)), 400), size=150)
        for number in range(4)
    ]
    plain = {chunk.digest for queue in queues for chunk in queue}
    log = []
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        log.append(queue.pop(0))
        if data.draw(st.integers(0, 4)) == 0:
            log.append(log[-1])
    uploads, committed, at = Uploads(blobs, table, spool), 0, 0
    crashes = 6
    while at < len(log):
        if crashes and data.draw(st.integers(0, 3)) == 0:
            # Killed: only what was committed counts, and another process begins there.
            crashes -= 1
            spool.close()
            uploads, at = Uploads(blobs, table, spool), committed
            continue
        table.away = data.draw(st.integers(0, 1))
        try:
            await uploads.take(log[at], at, NOW)
        except Unreachable:
            continue
        at += 1
        if data.draw(st.booleans()):
            committed = at if uploads.position is None else uploads.position
    assert table.objects.keys() == plain
    assert not table.refused
    assert uploads.under_way == 0
    for digest in plain:
        assert hashlib.sha256(zstandard.decompress(await blobs.get(digest))).hexdigest() == digest
    assert list(folder.glob("perdure-uploads-*/*")) == []
    spool.close()
    await blobs.close()


@pytest.mark.parametrize(
    ("spoil", "error", "what"),
    [
        (lambda c: [msgspec.structs.replace(x, digest="a" * 64) for x in c], Corrupt, "other"),
        (
            lambda c: [*c[:3], msgspec.structs.replace(c[3], data=bytes(100)), *c[4:]],
            Corrupt,
            "obj",
        ),
        (lambda c: [c[0], c[2]], InvalidInput, "chunk 1 of at most"),
        (lambda c: [c[1]], InvalidInput, "without those before it"),
        (lambda c: [c[0], msgspec.structs.replace(c[1], size=1)], InvalidInput, "something else"),
        (lambda c: [c[0], msgspec.structs.replace(c[1], data=bytes(9999))], InvalidInput, "most"),
        (
            lambda c: [msgspec.structs.replace(x, count=2) for x in c[:2]],
            InvalidInput,
            "200 bytes in 2 chunks",
        ),
        (
            lambda c: [msgspec.structs.replace(c[0], size=100, count=1)],
            Corrupt,
            "truncated",
        ),
        (lambda c: [Chunk("u", "a" * 64, 0, 1, 4, b"junk")], Corrupt, "no zstd frame"),
    ],
)
async def test_refused_uploads(place, spoil, error, what):
    """What is not the object it says leaves nothing but the reason; the next one is taken."""
    blobs, table, spool = place
    uploads = Uploads(blobs, table, spool)
    good = chunks_of("u", noise(5, 900))
    *first, last = spoil(good)
    for offset, chunk in enumerate(first):
        assert await uploads.take(chunk, offset, NOW) is None
    with pytest.raises(error, match=what):
        await uploads.take(last, 50, NOW)
    assert what in table.refused[last.digest, "u"]
    assert (uploads.position, table.objects) == (None, {})
    with pytest.raises(NotFound):
        await blobs.get(last.digest)
    assert await uploads.take(last, 51, NOW) is None  # told once
    for offset, chunk in enumerate(chunks_of("again", noise(5, 900)), 60):
        await uploads.take(chunk, offset, NOW)
    assert good[0].digest in table.objects


async def test_abandoned_uploads(place, tmp_path):
    """Given up by the time of their last chunk; position, disk and sender learn of it."""
    blobs, table, spool = place
    uploads = Uploads(blobs, table, spool)
    old, new = chunks_of("old", noise(1)), chunks_of("new", noise(2))
    for offset, chunk in enumerate([*old[:3], *new[:3]]):
        await uploads.take(chunk, offset, NOW + offset)
    table.away = 1
    with pytest.raises(Unreachable):
        await uploads.abandon(NOW + 3)
    assert uploads.position == 0
    assert [upload.first.upload for upload in await uploads.abandon(NOW + 3)] == ["old"]
    assert "3 of" in table.refused[old[0].digest, "old"]
    assert uploads.position == 3
    assert [path.name for path in tmp_path.glob("perdure-uploads-*/*")] == ["2"]
    assert await uploads.take(old[3], 6, NOW + 6) is None
    for offset, chunk in enumerate(new[3:], 7):
        await uploads.take(chunk, offset, NOW)
    assert new[0].digest in table.objects


async def test_the_same_object_twice_at_once(place, tmp_path):
    """When one upload of it is through, the others of it are no longer needed."""
    blobs, table, spool = place
    uploads = Uploads(blobs, table, spool)
    one, two = chunks_of("one", noise(1)), chunks_of("two", noise(1))
    for offset, chunk in enumerate([*two[:4], *one]):
        await uploads.take(chunk, offset, NOW)
    assert (uploads.position, uploads.under_way) == (None, 0)
    assert await uploads.take(two[4], 99, NOW) is None
    assert list(tmp_path.glob("perdure-uploads-*/*")) == []
    for chunk in chunks_of("three", noise(1)):
        assert await uploads.take(chunk, 100, NOW) is None
    assert uploads.position is None


async def test_no_room_for_more(place, tmp_path):
    """An upload that would take more disk than is allowed is refused; those under way go on."""
    blobs, table, _ = place
    spool = Spool(tmp_path, bytes_max=1500)
    uploads = Uploads(blobs, table, spool)
    one, two = chunks_of("one", noise(1)), chunks_of("two", noise(2))
    for offset, chunk in enumerate(one[:9]):
        await uploads.take(chunk, offset, NOW)
    with pytest.raises(InvalidInput, match="no room"):
        await uploads.take(two[0], 9, NOW)
    for offset, chunk in enumerate(one[9:], 10):
        await uploads.take(chunk, offset, NOW)
    assert table.objects.keys() == {one[0].digest}
    spool.close()


async def test_a_disk_that_cannot_be_written(place, tmp_path):
    """Is told with what to do; nothing was taken, so the same chunk is taken when it can be."""
    blobs, table, _ = place
    spool = Spool(tmp_path / "nowhere")
    uploads = Uploads(blobs, table, spool)
    [chunk] = chunks_of("u", noise(1), size=5000)
    with pytest.raises(Unavailable, match="nowhere") as caught:
        await uploads.take(chunk, 0, NOW)
    assert "TMPDIR" in caught.value.hint
    (tmp_path / "nowhere").mkdir()
    assert await uploads.take(chunk, 0, NOW) is not None
    spool.close()


async def test_chunks_that_somebody_removed_from_the_disk(place, tmp_path):
    """The upload is refused, so that its sender tries again; nothing half is stored."""
    blobs, table, spool = place
    uploads = Uploads(blobs, table, spool)
    *first, last = chunks_of("u", noise(1))
    for offset, chunk in enumerate(first):
        await uploads.take(chunk, offset, NOW)
    [file] = tmp_path.glob("perdure-uploads-*/*")
    file.unlink()
    with pytest.raises((InvalidInput, Corrupt)):
        await uploads.take(last, 9, NOW)
    assert (uploads.position, table.objects) == (None, {})


async def test_chunks_of_many_uploads_at_once(tmp_path):
    """Threads that spool at the same time, from the first one on, don't lose each other's files."""
    for round_ in range(20):
        spool = Spool(tmp_path)
        files = [spool.new() for _ in range(6)]
        for piece in (b"one", b"two"):
            await asyncio.gather(*(asyncio.to_thread(spool.append, file, piece) for file in files))
        assert {b"".join(spool.pieces(file)) for file in files} == {b"onetwo"}, round_
        assert len(list(tmp_path.iterdir())) == 1
        spool.close()


HOLDER = """
import pathlib, sys, time
from perdure.checkpointer.spool import Spool
spool = Spool(pathlib.Path(sys.argv[1]))
spool.append(spool.new(), b"x" * 1000)
print("there", flush=True)
sys.stdin.read()
"""


async def test_folders_of_killed_processes_are_removed(tmp_path):
    """By the next process that spools; the folder of one that lives is left alone."""
    holders = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            HOLDER,
            tmp_path,
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for holder in holders:
        await holder.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    holders[0].kill()
    await holders[0].wait()
    spool = Spool(tmp_path)
    file = spool.new()
    spool.append(file, b"y")
    assert len(list(tmp_path.iterdir())) == 2
    assert b"".join(spool.pieces(file)) == b"y"
    spool.close()
    holders[1].kill()
    await holders[1].wait()
    assert len(list(tmp_path.iterdir())) == 1
