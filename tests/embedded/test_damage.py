"""Bytes that are not what was written: every reader notices, `verify` names the event."""

import asyncio
import random
import re
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.embedded.forks import seeded

import perdure
from perdure import Corrupt, Event, PerdureError
from perdure.embedded import segments
from perdure.embedded.folder import DATABASE

AGENT, OTHER = "damage/one", "damage/two"
SEALED, EVENTS = 60, 66
"""The first 60 events lie in one sealed row, each of the others in a row of its own."""
IN_TAIL, IN_SEALED = 63, 30


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A store with sealed and single events and an object, of two agents."""
    folder = tmp_path_factory.mktemp("damage") / "store"
    with pytest.MonkeyPatch.context() as patch:
        # Closing would seal the last rows too.
        patch.setattr(segments, "SETTLE_ROWS", EVENTS + 1)
        asyncio.run(_write(folder))
    rows = _rows(folder)
    assert [len(rows[1]), len(rows[2])] == [EVENTS - SEALED + 1] * 2
    return folder


async def _write(folder: Path) -> None:
    async with perdure.connect(folder) as store:
        for name in (OTHER, AGENT):
            agent = await store.agent(name)
            await agent.emit_many([("message.added", _message(n)) for n in range(1, SEALED + 1)])
            for n in range(SEALED + 1, EVENTS):
                await agent.emit("message.added", _message(n))
            await agent.checkpoint("weights", {"w": list(range(1000))})


def _message(n: int) -> dict[str, str]:
    return {"role": "user", "content": f"message {n}: " + random.Random(n).randbytes(100).hex()}


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "store"))


def _rows(folder: Path) -> dict[int, list[int]]:
    with sqlite3.connect(folder / DATABASE) as connection:
        rows: dict[int, list[int]] = {}
        for (position,) in connection.execute("SELECT position FROM segments ORDER BY position"):
            agent, sequence = divmod(position, 1 << segments.SEQUENCE_BITS)
            rows.setdefault(agent, []).append(sequence)
    connection.close()
    return rows


def _edit(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def _row(folder: Path, sequence: int) -> tuple[int, dict[str, Any]]:
    """The key and the columns of the row that holds an event of AGENT."""
    connection = sqlite3.connect(folder / DATABASE)
    connection.row_factory = sqlite3.Row
    [agent] = connection.execute("SELECT id FROM agents WHERE name = ?", (AGENT,)).fetchone()
    row = connection.execute(
        "SELECT * FROM segments WHERE position >= ? ORDER BY position LIMIT 1",
        (segments.position(agent, sequence),),
    ).fetchone()
    connection.close()
    return row["position"], dict(row)


def _flipped(value: Any, at: float = 0.5) -> Any:
    """A value with one byte changed; `at` is where, from 0 to 1."""
    if isinstance(value, int):
        return value ^ 1
    place = min(int(len(value) * at), len(value) - 1)
    return value[:place] + bytes([value[place] ^ 0x20]) + value[place + 1 :]


async def _verify(folder: Path, agent: str = AGENT) -> list[str]:
    async with perdure.connect(folder) as store:
        return [f.subject for f in (await store.view(agent).verify()).findings]


async def _read(folder: Path, first: int, last: int, agent: str = AGENT) -> list[Event]:
    async with perdure.connect(folder) as store:
        return [event async for event in store.view(agent).events(first, last)]


def _names(subject: str, sequence: int) -> bool:
    """Whether a finding names an event, alone or among a few."""
    match = re.match(rf"{AGENT}@(\d+)(?: to (\d+))?$", subject)
    return match is not None and int(match[1]) <= sequence <= int(match[2] or match[1])


async def test_a_store_as_it_was_written_is_sound(sound):
    """Without damage there is nothing to report."""
    assert await _verify(sound) == []


@pytest.mark.parametrize("column", segments.COLUMNS.split(", "))
@pytest.mark.parametrize("sequence", [IN_TAIL, IN_SEALED])
async def test_a_flipped_byte_in_any_column_is_found_and_named(folder, column, sequence):
    """Whichever column of an event's row is damaged, `verify` names the event's row."""
    position, row = _row(folder, sequence)
    # The key holds agent and last sequence: with another agent the row is nobody's.
    value = segments.position(7, sequence) if column == "position" else _flipped(row[column])
    statement = f"UPDATE segments SET {column} = ? WHERE position = ?"  # noqa: S608 - one of ours
    _edit(folder, statement, value, position)
    assert any(_names(subject, sequence) for subject in await _verify(folder))


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sequence", [IN_TAIL, IN_SEALED])
async def test_a_damaged_event_is_never_read(folder, place, sequence):
    """Reading a damaged event raises Corrupt with its name; what stands before it still reads."""
    before = await _read(folder, 1, EVENTS, OTHER)
    position, row = _row(folder, sequence)
    last = await _read(folder, 1, SEALED)
    _edit(
        folder,
        "UPDATE segments SET body = ? WHERE position = ?",
        _flipped(row["body"], place),
        position,
    )
    with pytest.raises(Corrupt, match=rf"{AGENT}@") as caught:
        await _read(folder, 1, EVENTS)
    assert "perdure verify" in caught.value.hint
    named = re.search(r"@(\d+)(?: to (\d+))?", caught.value.message)
    assert named is not None
    assert int(named[1]) <= sequence <= int(named[2] or named[1])
    if sequence == IN_TAIL:
        assert last == await _read(folder, 1, SEALED)
    assert before == await _read(folder, 1, EVENTS, OTHER)
    assert await _verify(folder, OTHER) == []


async def test_a_damaged_event_among_many_is_named_alone(folder):
    """Where a sealed row can still be unpacked in part, only what is lost is reported lost."""
    position, row = _row(folder, IN_SEALED)
    body = row["body"]
    _edit(
        folder,
        "UPDATE segments SET body = ? WHERE position = ?",
        body[:-3] + bytes([body[-3] ^ 1]) + body[-2:],
        position,
    )
    subjects = await _verify(folder)
    assert subjects
    assert all(subject.startswith(f"{AGENT}@") for subject in subjects)


@pytest.mark.parametrize("sequence", [IN_TAIL, IN_SEALED])
async def test_a_removed_row_is_a_gap_and_never_skipped(folder, sequence):
    """Events that are gone are named by `verify`, and reading over them raises Corrupt."""
    position, row = _row(folder, sequence)
    _edit(folder, "DELETE FROM segments WHERE position = ?", position)
    assert any(_names(subject, sequence) for subject in await _verify(folder))
    with pytest.raises(Corrupt, match=f"{AGENT}@{row['first']} is missing"):
        await _read(folder, 1, EVENTS)


async def test_swapped_rows_are_found(folder):
    """Two events that changed places are both named: each says which one it is."""
    position, first = _row(folder, IN_TAIL)
    _, second = _row(folder, IN_TAIL + 1)
    for at, row in ((position, second), (position + 1, first)):
        _edit(
            folder,
            "UPDATE segments SET crc = ?, crcs = ?, body = ? WHERE position = ?",
            row["crc"],
            row["crcs"],
            row["body"],
            at,
        )
    subjects = await _verify(folder)
    assert any(_names(subject, IN_TAIL) for subject in subjects)
    assert any(_names(subject, IN_TAIL + 1) for subject in subjects)
    with pytest.raises(Corrupt, match=f"{AGENT}@{IN_TAIL}"):
        await _read(folder, 1, EVENTS)


@pytest.mark.parametrize("sequence", [IN_TAIL, IN_SEALED])
async def test_an_event_that_was_edited_with_care_breaks_the_chain(folder, sequence):
    """Somebody who edits an event and mends its checksums is betrayed by the hash chain."""
    position, row = _row(folder, sequence)
    body = row["body"]
    if row["codec"] == segments.ZSTD:
        body = segments._zstd.decompressor.decompress(body)
    text = f"message {sequence}: ".encode()
    assert text in body
    body = body.replace(text, text.replace(b"message", b"massage"))
    crcs = b"".join(struct.pack("<I", zlib.crc32(data)) for data in _split(body))
    if row["codec"] == segments.ZSTD:
        body = segments._zstd.compressor.compress(body)
    _edit(
        folder,
        "UPDATE segments SET body = ?, crc = ?, crcs = ? WHERE position = ?",
        body,
        zlib.crc32(body),
        crcs,
        position,
    )
    async with perdure.connect(folder) as store:
        findings = (await store.view(AGENT).verify()).findings
    assert any(_names(f.subject, sequence) and "chain" in f.problem for f in findings)


def _split(body: bytes) -> list[bytes]:
    from perdure.model.event import split_all

    return [bytes(data) for data in split_all(body)]


async def test_a_damaged_saved_state_is_passed_over_and_reported(folder):
    """A saved state with a flipped byte is not used: the state is folded from the events."""
    async with perdure.connect(folder) as store:
        agent = await store.agent(AGENT)
        await agent.emit_many([("message.added", _message(n)) for n in range(1500)])
        await agent.close()
        state = agent.state
    connection = sqlite3.connect(folder / DATABASE)
    [(key, body)] = connection.execute("SELECT id, body FROM states").fetchall()
    connection.close()
    _edit(folder, "UPDATE states SET body = ? WHERE id = ?", _flipped(body), key)
    assert [f"{AGENT}@{state.sequence}"] == await _verify(folder)
    async with perdure.connect(folder) as store:
        assert state == await store.view(AGENT).state_at()
        assert state == (await store.agent(AGENT)).state


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed"])
async def test_a_damaged_checkpoint_file_is_never_restored(folder, damage):
    """A checkpoint whose file is not what was saved raises an error, and `verify` names it."""
    [file] = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    data = file.read_bytes()
    file.chmod(0o644)
    match damage:
        case "flipped":
            file.write_bytes(_flipped(data))
        case "truncated":
            file.write_bytes(data[:-7])
        case "emptied":
            file.write_bytes(b"")
        case "removed":
            file.unlink()
    async with perdure.connect(folder) as store:
        agent = await store.agent(AGENT)
        with pytest.raises((Corrupt, perdure.NotFound)):
            await agent.restore("weights")
        [finding] = (await agent.verify()).findings
        assert "weights" in finding.subject
        assert f"{AGENT}@{EVENTS}" in finding.subject
        assert len(await _read(folder, 1, EVENTS)) == EVENTS


async def test_a_time_that_cannot_be_is_a_clear_error(sound, tmp_path):
    """A damaged time lies thousands of years away: that is told as damage."""
    shutil.copytree(sound, tmp_path / "store")
    connection = sqlite3.connect(tmp_path / "store" / DATABASE)
    connection.execute("UPDATE segments SET time_max = 1 << 62")
    connection.commit()
    connection.close()
    async with perdure.connect(tmp_path / "store") as store:
        with pytest.raises(Corrupt, match="no time"):
            await store.agent(AGENT)
        with pytest.raises(Corrupt, match="no time"):
            _ = [summary async for summary in store.agents()]


async def test_agents_that_are_their_own_ancestors_are_a_clear_error(sound, tmp_path):
    """A damaged lineage that leads in a circle is told, and not followed for ever."""
    shutil.copytree(sound, tmp_path / "store")
    connection = sqlite3.connect(tmp_path / "store" / DATABASE)
    connection.execute("UPDATE agents SET parent = id")
    connection.commit()
    connection.close()
    async with perdure.connect(tmp_path / "store") as store:
        with pytest.raises(Corrupt, match="ancestor"):
            await store.view(AGENT).state_at()
        with pytest.raises(Corrupt, match="ancestor"):
            await store.agent(AGENT)
        with pytest.raises(Corrupt, match="ancestor"):
            await store.emit(AGENT, "note", id="given")


def _describe(folder: Path, described: str) -> None:
    """Change what SQLite knows of the table of events, and nothing of its rows."""
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'segments'", (described,))
    connection.commit()
    connection.close()


async def test_a_damaged_description_of_a_table_is_noticed_at_once(sound, tmp_path):
    """One wrong character there makes all events read as none: the store is not opened."""
    shutil.copytree(sound, tmp_path / "store")
    connection = sqlite3.connect(tmp_path / "store" / DATABASE)
    [(described,)] = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'segments'")
    connection.close()
    _describe(tmp_path / "store", described.replace("PRIMARY KEY", "PRIMARY$KEY"))
    with pytest.raises(Corrupt, match="segments"):
        await perdure.connect(tmp_path / "store")


@pytest.mark.parametrize("column", ["first", "time_max", "codec", "crc", "chain", "crcs", "body"])
async def test_a_column_that_lost_its_type_is_a_clear_error(sound, tmp_path, column):
    """A row whose header is damaged reads as NULL: reading and verifying tell of damage."""
    shutil.copytree(sound, tmp_path / "store")
    connection = sqlite3.connect(tmp_path / "store" / DATABASE)
    [(described,)] = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'segments'")
    connection.close()
    _describe(tmp_path / "store", described.replace("NOT NULL", ""))
    connection = sqlite3.connect(tmp_path / "store" / DATABASE)
    connection.execute(f"UPDATE segments SET {column} = NULL")  # noqa: S608 - one of ours
    connection.commit()
    connection.close()
    _describe(tmp_path / "store", described)
    async with perdure.connect(tmp_path / "store") as store:
        with pytest.raises(Corrupt):
            _ = [event async for event in store.view(AGENT).events()]
        with pytest.raises(Corrupt):
            await store.agent(AGENT)
        with pytest.raises(Corrupt):
            await store.view(AGENT).verify()
        assert AGENT in [summary.agent async for summary in store.agents()]


@pytest.mark.parametrize("part", range(2))
async def test_bytes_flipped_anywhere_give_the_truth_or_an_error(sound, tmp_path, part):
    """However the file is damaged: what is read, or called sound, is what was written."""
    rng = seeded(f"anywhere {part}")
    truth = await _read(sound, 1, EVENTS)
    data = (sound / DATABASE).read_bytes()
    for attempt in range(60):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        shutil.copytree(sound / "checkpoints", folder / "checkpoints")
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / DATABASE).write_bytes(damaged)
        try:
            async with perdure.connect(folder) as store:
                view = store.view(AGENT)
                read = [event async for event in view.events()]
                assert truth[: len(read)] == read
                if (await view.verify()).sound:
                    assert truth == read
                assert (await view.state_at(10)).sequence == 10
        except PerdureError:
            pass  # the other thing that may come of it
