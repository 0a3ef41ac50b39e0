"""A disk that is full, and one that can't be written: clear errors, old data intact.

Real file systems where this machine lets a test mount them; otherwise limits and permissions.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
from perdure import StoreFull, StoreReadOnly

AGENT = "disk/one"
DISK_BYTES = 1 << 20


def _mounted(folder: Path, *options: str) -> None:
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a small disk is mounted by root only: run the tests as root in a container")
    command = [mount, *options, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount a disk: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    _mounted(disk, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class _Frozen:
    """Makes folders read-only for whoever runs the tests, root included."""

    def __init__(self) -> None:
        self._thaw: list[list[str]] = []

    def __call__(self, folder: Path) -> None:
        if os.geteuid() == 0:
            _mounted(folder, "--bind", str(folder))
            self._thaw.append(["umount", str(folder)])
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        else:
            for path in (*folder.rglob("*"), folder):
                path.chmod(0o555 if path.is_dir() else 0o444)
            self._thaw.append(["chmod", "-R", "u+w", str(folder)])

    def thaw(self) -> None:
        """Undo it."""
        while self._thaw:
            subprocess.run(self._thaw.pop(), check=True)


@pytest.fixture
def freeze() -> Iterator[_Frozen]:
    """Call it with a folder that nobody may write from then on."""
    frozen = _Frozen()
    yield frozen
    frozen.thaw()


async def test_a_full_disk_is_told_and_harms_nothing(small_disk):
    """A full disk raises StoreFull; what was answered is there, and with space it goes on."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(DISK_BYTES // 4))
    async with perdure.connect(small_disk / "store") as store:
        agent = await store.agent(AGENT)
        answered = []
        with pytest.raises(StoreFull, match="no space"):  # noqa: PT012 - at some turn
            while True:
                data = {"text": os.urandom(500).hex()}
                answered.append(await agent.emit("note", data))
        with pytest.raises(StoreFull):
            await agent.emit_many([("note", {"text": os.urandom(500).hex()})] * 100)
        assert answered == [event async for event in agent.events()]
        assert agent.state == await agent.state_at()
        ballast.unlink()
        answered.append(await agent.emit("note", {"after": True}))
        assert len(answered) == answered[-1].sequence
    async with perdure.connect(small_disk / "store") as store:
        view = store.view(AGENT)
        assert answered == [event async for event in view.events()]
        assert (await view.verify()).sound


async def test_a_full_disk_can_be_read_and_refuses_new_stores(small_disk):
    """On a disk without one free byte a store is read, and one that is to be made is refused."""
    async with perdure.connect(small_disk / "store") as store:
        agent = await store.agent(AGENT)
        event = await agent.emit("note", 1)
        _fill(small_disk / "ballast")
        assert [event] == [event async for event in agent.events()]
        with pytest.raises(StoreFull):
            await agent.checkpoint("large", os.urandom(100_000))
        assert await agent.checkpoints() == {}
        with pytest.raises(StoreFull):
            async with perdure.connect(small_disk / "new"):
                pass
    (small_disk / "ballast").unlink()
    async with perdure.connect(small_disk / "store") as store:
        agent = await store.agent(AGENT)
        await agent.checkpoint("large", "as small as it was")
        assert await agent.restore("large") == "as small as it was"


async def test_a_file_that_may_not_grow_is_like_a_full_disk(forks, tmp_path):
    """A limit on the size of files stops the writes with an error, and goes when it goes."""
    child = forks.start("fill", folder=str(tmp_path), agent=AGENT, file_bytes_max=300_000)
    _, answered, _, message = child.until("refused")
    assert "perdure.db" in message
    assert ["after", answered + 1, True] == child.until("after")
    assert list(child.reports()) == []


async def test_a_folder_that_can_not_be_written_is_read(freeze, tmp_path):
    """In a read-only folder everything reads, writing raises StoreReadOnly, no byte changes."""
    folder = tmp_path / "store"
    async with perdure.connect(folder) as store, await store.agent(AGENT) as agent:
        events = await agent.emit_many([("note", n) for n in range(200)])
        await agent.checkpoint("weights", [1, 2])
        state = agent.state
    before = _bytes_in(folder)
    freeze(folder)
    async with perdure.connect(folder) as store:
        view = store.view(AGENT)
        assert events == [event async for event in view.events(last=200)]
        assert state == await view.state_at()
        assert await view.restore("weights") == [1, 2]
        assert (await view.verify()).sound
        with pytest.raises(StoreReadOnly):
            await store.agent(AGENT)
        with pytest.raises(StoreReadOnly):
            await store.emit(AGENT, "note", 1)
    assert before == _bytes_in(folder)


async def test_what_a_killed_writer_left_is_read_where_nothing_can_be_written(
    freeze, forks, tmp_path
):
    """A store whose log was not tidied up reads in a read-only folder, all that was answered."""
    folder = tmp_path / "store"
    child = forks.start("contribute", folder=str(folder), agent=AGENT, life="x", count=0)
    for _ in range(20):
        child.until("ack")
    child.kill()
    freeze(folder)
    async with perdure.connect(folder) as store:
        assert await store.view(AGENT).sequence() >= 20
        assert (await store.view(AGENT).verify()).sound
        with pytest.raises(StoreReadOnly):
            await store.agent(AGENT)


async def test_a_store_can_not_be_made_where_nothing_can_be_written(freeze, tmp_path):
    """Making a store in a read-only folder raises StoreReadOnly, which names the folder."""
    (tmp_path / "there").mkdir()
    freeze(tmp_path / "there")
    for folder in (tmp_path / "there", tmp_path / "there" / "new"):
        with pytest.raises(StoreReadOnly, match="there"):
            async with perdure.connect(folder):
                pass


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(512))


def _bytes_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
