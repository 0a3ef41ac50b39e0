"""`perdure doctor`: a diagnosis of whatever is in the folder, and nothing changed by it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from tests.unit.cli import filled, runner

from perdure.embedded import doctor


@pytest.fixture
def store(tmp_path):
    """A folder with a sound store."""
    folder = tmp_path / "store"
    filled(folder)
    return folder


@pytest.fixture
def run(capsys, tmp_path):
    """Runs a command on a store of this test."""
    return runner(capsys, tmp_path / "store")


def _problems(diagnosis):
    return [check["name"] for check in diagnosis["checks"] if check["level"] == "problem"]


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sound_store_is_described(store, run):
    """What it is, its versions, sizes and counts, and that nothing is wrong."""
    before = _contents(store)
    told = run("doctor", "--json")
    found = told.json()
    assert told.status == 0
    assert (found["kind"], found["sound"], found["format"]) == ("embedded", True, 1)
    assert set(found["versions"]) == {"perdure", "python", "sqlite", "system"}
    assert (found["counts"]["agents"], found["counts"]["events"]) == (1, 8)
    assert (found["counts"]["memories"], found["counts"]["objects"]) == (2, 1)
    assert found["sizes"]["database"] == (store / "perdure.db").stat().st_size
    assert _contents(store) == before
    shown = run("doctor").out
    assert "a store on one folder" in shown
    assert "1 agents, 8 events" in shown


def _empty_file(folder):
    (folder / "perdure.db").write_bytes(b"")


def _no_file(folder):
    (folder / "perdure.db").unlink()


def _garbage(folder):
    (folder / "perdure.db").write_bytes(b"no database" * 1000)


def _cut(folder):
    path = folder / "perdure.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeroed_page(folder):
    path = folder / "perdure.db"
    data = bytearray(path.read_bytes())
    data[8192:12288] = bytes(4096)
    path.write_bytes(data)


def _newer(folder):
    _execute(folder, "PRAGMA user_version = 99")


def _foreign(folder):
    _execute(folder, "PRAGMA application_id = 7")


def _other_columns(folder):
    _execute(folder, "ALTER TABLE agents ADD COLUMN colour TEXT")


def _execute(folder, statement):
    connection = sqlite3.connect(folder / "perdure.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


def _gone(folder):
    shutil.rmtree(folder)


def _nothing_in_it(folder):
    _gone(folder)
    folder.mkdir()


def _something_else(folder):
    _nothing_in_it(folder)
    (folder / "thesis.txt").write_text("chapter one")


def _a_file(folder):
    _gone(folder)
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_gone, "missing"),
        (_nothing_in_it, "empty"),
        (_something_else, "foreign"),
        (_a_file, "foreign"),
        (_no_file, "damaged"),
        (_empty_file, "empty"),
        (_garbage, "damaged"),
        (_cut, "damaged"),
        (_zeroed_page, "damaged"),
        (_other_columns, "damaged"),
        (_newer, "newer"),
        (_foreign, "foreign"),
    ],
)
def test_what_is_wrong_is_told_with_a_way_out(store, run, damage, kind):
    """Whatever is there instead of a store: what it is, what to do, status 1, no traceback."""
    damage(store)
    told = run("doctor", "--json")
    found = told.json()
    assert (told.status, found["kind"], found["sound"]) == (1, kind, False)
    assert all(check["hint"] for check in found["checks"] if check["level"] == "problem")
    assert _problems(found)
    shown = run("doctor")
    assert shown.status == 1
    assert "PROBLEM" in shown.out
    assert "hint:" in shown.out


def _objects(folder):
    return [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]


def test_missing_checkpoint_is_named(store, run):
    """An object that an event names and that isn't there is told with that event."""
    for path in _objects(store):
        path.unlink()
    found = run("doctor", "--json").json()
    assert _problems(found) == ["checkpoints"]
    assert "'policy' of airline/mia@8" in found["checks"][-1]["message"]


def test_damaged_checkpoint_is_named(store, run):
    """A flipped byte in an object is told."""
    (path,) = _objects(store)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert _problems(run("doctor", "--json").json()) == ["checkpoints"]


def test_damaged_row_of_events_is_told(store, run):
    """A flipped byte in an event row is told, and that verify names the event."""
    connection = sqlite3.connect(store / "perdure.db")
    position, body = connection.execute("SELECT position, body FROM segments LIMIT 1").fetchone()
    body = bytes(body[:20]) + bytes([body[20] ^ 1]) + bytes(body[21:])
    connection.execute("UPDATE segments SET body = ? WHERE position = ?", (body, position))
    connection.commit()
    connection.close()
    found = run("doctor", "--json").json()
    assert _problems(found) == ["events"]
    assert run("verify").status == 1


def test_what_nobody_needs_is_a_note(store, run):
    """Objects without an event and old temporary files take space, and nothing is wrong."""
    (kept,) = _objects(store)
    unused = kept.parent / ("0" * 64)
    unused.write_bytes(kept.read_bytes())
    leftover = kept.parent / ".writing-abc"
    leftover.write_bytes(b"half an obj")
    long_ago = time.time() - 2 * doctor.LEFTOVER_SECONDS
    os.utime(leftover, (long_ago, long_ago))
    found = run("doctor", "--json").json()
    notes = [check["name"] for check in found["checks"] if check["level"] == "note"]
    assert "leftovers" in notes
    assert "checkpoints" in notes


def test_folder_that_can_not_be_written_is_told(store, run, monkeypatch):
    """A folder without the right to write says so, and is read all the same."""
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found = run("doctor", "--json").json()
    assert _problems(found) == ["permissions"]
    assert found["counts"]["events"] == 8


def test_little_space_and_network_folders_are_told(store, run, monkeypatch):
    """What will go wrong soon is told before it does."""
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 62)
    monkeypatch.setattr(doctor, "_file_system", lambda path: "nfs4")
    assert _problems(run("doctor", "--json").json()) == ["free space", "file system"]


def test_store_of_a_killed_process_is_sound_and_left_as_it_is(tmp_path, run):
    """What a SIGKILL leaves in the log is counted, and the log is still there afterwards."""
    store = tmp_path / "store"
    code = (
        "import asyncio, os, signal, sys, perdure\n"
        "async def main():\n"
        "    store = await perdure.connect(sys.argv[1])\n"
        "    for number in range(20):\n"
        "        await store.emit('a/b', 'tick', number)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(store)], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = (store / "perdure.db-wal").read_bytes()
    assert before
    found = run("doctor", "--json").json()
    assert (found["sound"], found["counts"]["events"]) == (True, 20)
    assert (store / "perdure.db-wal").read_bytes() == before
