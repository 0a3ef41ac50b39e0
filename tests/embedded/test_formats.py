"""Files of other formats, of other programs, and of no format at all."""

import random
import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest
from tests.embedded.data import make_format_1

import perdure
from perdure import Corrupt, StoreReadOnly, UnsupportedFormat
from perdure.embedded.database import APPLICATION_ID, Database
from perdure.embedded.folder import DATABASE
from perdure.embedded.schema import MIGRATIONS

AGENT = "formats/one"


async def _store(folder: Path) -> Path:
    async with perdure.connect(folder) as store:
        agent = await store.agent(AGENT)
        await agent.emit_many([("note", {"n": n, "text": "x" * 100}) for n in range(300)])
    return folder / DATABASE


def _pragma(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def test_a_store_of_format_1_reads_as_it_did_when_it_was_written(tmp_path):
    """Every event, state, object and fork of the frozen store is what it was.

    New fields of a state may come; none that was there may change.
    """
    folder = Path(shutil.copytree(make_format_1.FOLDER, tmp_path / "store"))
    expected = msgspec.json.decode(make_format_1.EXPECTED.read_bytes())
    said = await make_format_1.read(folder)
    for name, was in expected.items():
        now = said[name]
        assert was["events"] == now["events"]
        assert was["checkpoints"] == now["checkpoints"]
        assert (was["sound"], now["sound"]) == (True, True)
        for at, state in was["states"].items():
            assert state == {key: now["states"][at][key] for key in state}


async def test_a_store_of_format_1_can_be_written_on(tmp_path):
    """The frozen store opens for writing, knows what it has, and goes on where it stopped."""
    folder = Path(shutil.copytree(make_format_1.FOLDER, tmp_path / "store"))
    expected = msgspec.json.decode(make_format_1.EXPECTED.read_bytes())
    async with perdure.connect(folder) as store:
        agent = await store.agent(make_format_1.ONE)
        before = len(expected[make_format_1.ONE]["events"])
        again = await agent.emit("plan.generated", {"steps": []}, id="an-id-of-its-own")
        assert again.sequence == 2
        again = await agent.emit("decision.made", {"choice": 1}, writer="w", writer_sequence=7)
        assert again.sequence == 3
        assert before + 1 == (await agent.emit("note", "after")).sequence
        assert (await agent.verify()).sound


async def test_a_migration_lifts_old_data_once_and_whole(tmp_path):
    """Opening lifts a file of the format before; a migration that fails leaves it as it was."""
    file = await _store(tmp_path)
    before = _dump(file)

    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (made)")
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(perdure.PerdureError):
        Database(file, [*MIGRATIONS, fails])
    assert before == _dump(file)

    def lift(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE more (made)")

    for _ in range(2):  # the second time there is nothing to do
        database = Database(file, [*MIGRATIONS, lift])
        assert len(MIGRATIONS) + 1 == database.format
        await database.close()
    with pytest.raises(UnsupportedFormat):  # and the code of before says so
        async with perdure.connect(tmp_path):
            pass


async def test_an_old_format_that_may_not_be_lifted_is_not_read_wrongly(tmp_path):
    """Opened for reading only, a file of an older format is refused rather than misread."""
    file = await _store(tmp_path)
    with pytest.raises(StoreReadOnly, match="format version"):
        Database(file, [*MIGRATIONS, lambda _connection: None], writable=False)


async def test_a_newer_format_is_refused_untouched(tmp_path):
    """A store of a newer perdure raises UnsupportedFormat, which says to update."""
    file = await _store(tmp_path)
    _pragma(file, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    await _refused(tmp_path, file, UnsupportedFormat, "pip install -U perdure")


async def test_a_file_of_another_program_is_refused_untouched(tmp_path):
    """A SQLite file with other tables raises UnsupportedFormat and is not written to."""
    file = tmp_path / DATABASE
    connection = sqlite3.connect(file)
    connection.executescript("CREATE TABLE bookmarks (url); INSERT INTO bookmarks VALUES ('x');")
    connection.close()
    await _refused(tmp_path, file, UnsupportedFormat, "another program")


async def test_random_bytes_are_refused_untouched(tmp_path):
    """A file that is no database raises Corrupt and is not written to."""
    file = tmp_path / DATABASE
    file.write_bytes(random.Random(1).randbytes(50_000))
    await _refused(tmp_path, file, Corrupt, DATABASE)


@pytest.mark.parametrize("place", [0, 16, 18, 28, 40, 56])
async def test_a_damaged_header_is_refused_or_harmless(tmp_path, place):
    """Bytes of SQLite's header are overwritten: either nothing is lost, or perdure says so."""
    file = await _store(tmp_path)
    data = bytearray(file.read_bytes())
    data[place : place + 2] = b"\xa5\x5a"
    file.write_bytes(data)
    try:
        async with perdure.connect(tmp_path) as store:
            events = [event.data["n"] async for event in store.view(AGENT).events()]
    except (Corrupt, perdure.Unavailable, UnsupportedFormat) as error:
        refusal = error
    else:
        assert events == list(range(300))
        return
    assert refusal.hint
    assert DATABASE in refusal.message or AGENT in refusal.message


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
async def test_a_truncated_file_is_never_read_wrongly(tmp_path, share):
    """A file that was cut off raises an error, and never gives events that were not written."""
    file = await _store(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    read = []
    with pytest.raises(perdure.PerdureError):
        await _read_into(read, tmp_path)
    assert list(range(len(read))) == read


async def test_an_empty_file_is_a_new_store(tmp_path):
    """A file of zero bytes, as a crash may leave it, is where a store is made."""
    (tmp_path / DATABASE).touch()
    async with perdure.connect(tmp_path) as store:
        assert (await store.emit(AGENT, "note", 1)).sequence == 1
    header = (tmp_path / DATABASE).read_bytes()
    assert int.from_bytes(header[68:72]) == APPLICATION_ID
    assert len(MIGRATIONS) == int.from_bytes(header[60:64])


async def test_a_folder_in_place_of_the_file_is_told(tmp_path):
    """Where the file should be is a folder: the error names it."""
    (tmp_path / DATABASE).mkdir()
    with pytest.raises(perdure.Unavailable, match=DATABASE):
        async with perdure.connect(tmp_path):
            pass


async def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    """The store's folder is a file: the error names it, and the file stays."""
    (tmp_path / "store").write_text("mine")
    with pytest.raises(perdure.PerdureError, match="store"):
        async with perdure.connect(tmp_path / "store"):
            pass
    assert (tmp_path / "store").read_text() == "mine"


async def _read_into(read: list[int], folder: Path) -> None:
    async with perdure.connect(folder) as store:
        async for event in store.view(AGENT).events():
            read.append(event.data["n"])  # noqa: PERF401 - what is read before it fails counts


async def _refused(folder: Path, file: Path, error: type[Exception], says: str) -> None:
    before = _bytes_in(folder)
    assert list(before) == [file.name]
    for _ in range(2):
        with pytest.raises(error, match=says):
            async with perdure.connect(folder):
                pass
    assert _bytes_in(folder) == before


def _bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _dump(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    dump = list(connection.iterdump())
    dump.append(str(connection.execute("PRAGMA user_version").fetchone()))
    connection.close()
    return dump
