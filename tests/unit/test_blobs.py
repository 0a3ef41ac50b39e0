"""Objects in a folder: complete or not there, whatever happens while they are written."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perdure.embedded.blobs import LEFTOVER_SECONDS, FolderBlobs
from perdure.errors import Corrupt, InvalidInput, NotFound, StoreFull, StoreReadOnly, Unavailable

DATA = b"an object" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


def files(folder):
    """All files below a folder, by their path in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_what_is_put_is_there(tmp_path):
    """Under its digest, in a folder named after its start, and found by another opener."""
    size = await FolderBlobs(tmp_path / "objects").put(DIGEST, DATA)
    assert len(DATA) == size
    other = FolderBlobs(tmp_path / "objects")
    assert await other.get(DIGEST) == DATA
    assert len(DATA) == await other.size(DIGEST)
    assert [f"objects/{DIGEST[:2]}/{DIGEST}"] == files(tmp_path)


async def test_the_same_content_is_stored_once(tmp_path):
    """Putting it again, also at the same time, writes no second file and leaves the first alone."""
    blobs = FolderBlobs(tmp_path)
    await asyncio.gather(*(blobs.put(DIGEST, DATA) for _ in range(20)))
    before = (tmp_path / DIGEST[:2] / DIGEST).stat().st_mtime_ns
    assert len(DATA) == await blobs.put(DIGEST, DATA)
    assert before == (tmp_path / DIGEST[:2] / DIGEST).stat().st_mtime_ns
    assert [f"{DIGEST[:2]}/{DIGEST}"] == files(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"X" + data[1:], lambda _: b""]
)
async def test_putting_again_mends_a_damaged_file(tmp_path, damage):
    """An object is acknowledged only if it really is there."""
    blobs = FolderBlobs(tmp_path)
    await blobs.put(DIGEST, DATA)
    path = tmp_path / DIGEST[:2] / DIGEST
    path.write_bytes(damage(DATA))
    await blobs.put(DIGEST, DATA)
    assert await blobs.get(DIGEST) == DATA


async def test_what_is_not_there(tmp_path):
    """Also in a folder that doesn't exist: the digest is named, and nothing is made."""
    blobs = FolderBlobs(tmp_path / "nowhere")
    for ask in (blobs.get, blobs.size):
        with pytest.raises(NotFound, match=DIGEST):
            await ask(DIGEST)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "digest",
    ["", "../" * 5 + "etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "/" + "a" * 63, "é" * 64],
)
async def test_only_digests_become_paths(tmp_path, digest):
    """Nothing else reaches the file system."""
    blobs = FolderBlobs(tmp_path)
    for call in (blobs.get(digest), blobs.size(digest), blobs.put(digest, b"")):
        with pytest.raises(InvalidInput, match="no digest"):
            await call
    assert files(tmp_path) == []


async def test_order_of_a_put(tmp_path, monkeypatch):
    """Content is synced before the name is there, and the folder before the answer is given."""
    calls = []
    sync, replace = os.fsync, type(tmp_path).replace

    def fsync(descriptor):
        # Folders are given by number, files as the object that is written.
        calls.append("folder" if isinstance(descriptor, int) else "file")
        sync(descriptor)

    def rename(path, target):
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(type(tmp_path), "replace", rename)
    await FolderBlobs(tmp_path).put(DIGEST, DATA)
    assert calls[-3:] == ["file", "rename", "folder"]


def run(code, *arguments):
    """A Python process of its own that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk(tmp_path):
    """Told as StoreFull with what to do; what was there stays, and nothing half is left."""
    code = """
import asyncio, hashlib, pathlib, resource, sys
from perdure.embedded.blobs import FolderBlobs
from perdure.errors import StoreFull
async def main():
    blobs = FolderBlobs(pathlib.Path(sys.argv[1]))
    small, large = b"s" * 1000, b"l" * 100_000
    await blobs.put(hashlib.sha256(small).hexdigest(), small)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        await blobs.put(hashlib.sha256(large).hexdigest(), large)
    except StoreFull as error:
        print("full", bool(error.hint))
    assert await blobs.get(hashlib.sha256(small).hexdigest()) == small
asyncio.run(main())
"""
    out, err = run(code, tmp_path).communicate()
    assert (out, err) == ("full True\n", "")
    assert len(files(tmp_path)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_no_space_is_told_as_full():
    """The error of a real full device, not only that of a limit, is StoreFull."""
    from perdure.embedded.blobs import _translated

    with pytest.raises(OSError, match="No space") as caught:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert isinstance(_translated(caught.value, "x"), StoreFull)


async def test_a_folder_that_cannot_be_written(tmp_path):
    """Told as StoreReadOnly, naming the folder (asked as a user without the right)."""
    if os.geteuid() == 0:
        code = """
import asyncio, concurrent.futures.thread, os, pathlib, sys
from perdure.embedded.blobs import FolderBlobs
from perdure.errors import StoreReadOnly
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    asyncio.run(FolderBlobs(pathlib.Path(sys.argv[1])).put("a" * 64, b"x"))
except StoreReadOnly as error:
    print(sys.argv[1] in error.message, bool(error.hint))
"""
        for parent in [tmp_path, *tmp_path.parents][:4]:
            parent.chmod(0o755)
        out, err = await asyncio.to_thread(run(code, tmp_path).communicate)
        assert (out, err) == ("True True\n", "")
    else:
        tmp_path.chmod(0o555)
        with pytest.raises(StoreReadOnly, match=str(tmp_path)):
            await FolderBlobs(tmp_path).put(DIGEST, DATA)
        tmp_path.chmod(0o755)


async def test_a_file_in_the_way(tmp_path):
    """Other troubles of the file system are errors of perdure too."""
    (tmp_path / DIGEST[:2]).write_text("a file where a folder belongs")
    with pytest.raises(Unavailable):
        await FolderBlobs(tmp_path).put(DIGEST, DATA)
    (tmp_path / "ab" / ("ab" + "c" * 62)).mkdir(parents=True)
    with pytest.raises(Corrupt):
        await FolderBlobs(tmp_path).get("ab" + "c" * 62)


WRITER = """
import asyncio, hashlib, os, pathlib, sys
from perdure.embedded.blobs import FolderBlobs
async def main():
    blobs = FolderBlobs(pathlib.Path(sys.argv[1]))
    for number in range(10**9):
        data = str(number).encode() * 200_000
        digest = hashlib.sha256(data).hexdigest()
        await blobs.put(digest, data)
        print(digest, flush=True)
asyncio.run(main())
"""


def test_killed_in_the_middle(tmp_path):
    """Whatever has its final name is whole, and what was acknowledged is there."""
    acknowledged = 0
    for round_ in range(8):
        writer = run(WRITER, tmp_path)
        told = [writer.stdout.readline().strip()]
        timer = threading.Timer(0.01 * round_, writer.send_signal, [signal.SIGKILL])
        timer.start()
        told += [line.strip() for line in writer.stdout]
        writer.communicate()
        timer.join()
        for digest in told:
            if len(digest) == 64:
                path = tmp_path / digest[:2] / digest
                assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
                acknowledged += 1
        for path in tmp_path.glob("??/" + "[0-9a-f]" * 64):
            assert path.name == hashlib.sha256(path.read_bytes()).hexdigest()
    assert acknowledged >= 8


async def test_leftovers_of_killed_writers_are_removed(tmp_path):
    """Once they are old and nobody holds them; a slow writer's file is left alone."""
    import fcntl

    folder = tmp_path / "ab"
    folder.mkdir()
    old, fresh, held, kept = (
        folder / name for name in (".writing-old", ".writing-new", ".writing-held", "ab" + "c" * 62)
    )
    long_ago = time.time() - LEFTOVER_SECONDS - 60
    for path in (old, fresh, held, kept):
        path.write_bytes(b"x")
    for path in (old, held, kept):
        os.utime(path, (long_ago, long_ago))
    with held.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        await FolderBlobs(tmp_path).put("1" * 64, b"one")
    assert [fresh, held, kept] == [path for path in (old, fresh, held, kept) if path.exists()]
    await FolderBlobs(tmp_path).put("2" * 64, b"two")
    assert not held.exists()
