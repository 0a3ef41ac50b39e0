"""The archive's files: what is read is what was written, and nothing else is ever read."""

import asyncio
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import Corrupt, UnsupportedFormat
from perdure.replay.archive import Archive, following
from perdure.replay.archiving import Missing, gaps
from perdure.replay.segments import (
    LogRecord,
    SegmentWriter,
    decode_line,
    encode_line,
    records,
)

TOPIC = "staging.events"

LOGGED = st.builds(
    LogRecord,
    offset=st.just(0),
    timestamp=st.integers(-1, 2**62),
    timestamp_type=st.sampled_from([0, 1]),
    key=st.none() | st.binary(max_size=40),
    value=st.none() | st.binary(max_size=400),
    headers=st.lists(
        st.tuples(st.text(max_size=10), st.none() | st.binary(max_size=20)), max_size=4
    ).map(tuple),
)


def numbered(found, first=0, step=1):
    """Records with offsets that rise."""
    return [
        LogRecord(
            first + at * step, *[getattr(each, name) for name in LogRecord.__struct_fields__[1:]]
        )
        for at, each in enumerate(found)
    ]


def simple(first, count):
    """Records that differ."""
    return [
        LogRecord(first + at, 1000 + at, 0, b"a/b", b"%d" % at, (("ce_id", b"x"),))
        for at in range(count)
    ]


def written(found, *, first=0, partition=2):
    """A segment of records, and its file's bytes."""
    writer = SegmentWriter(TOPIC, partition, first)
    for each in found:
        writer.add(each)
    segment, file = writer.finish()
    data = file.read()
    writer.close()
    return segment, data


async def added(archive, found, *, number, first=None, partition=2):
    """Add records to an archive; the segment, or None."""
    writer = SegmentWriter(TOPIC, partition, found[0].offset if first is None else first)
    for each in found:
        writer.add(each)
    try:
        return await archive.add(writer, partition, number)
    finally:
        writer.close()


async def read(archive, segment):
    """All records of a segment."""
    return [each async for batch in archive.read(segment) for each in batch]


@given(st.lists(LOGGED, max_size=30), st.integers(1, 3))
def test_records_come_back_as_they_were(found, step):
    """Keys, values, headers, times and offsets of any records are what was written."""
    given_records = numbered(found, first=7, step=step)
    segment, data = written(given_records, first=5)
    assert given_records == [each for batch in records(segment, io.BytesIO(data)) for each in batch]
    assert len(given_records) == segment.count
    assert segment == decode_line(encode_line(segment), "line 0")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
        lambda data: data + b"\x00",
        lambda _: b"",
    ],
)
def test_a_damaged_file_gives_no_record(damage):
    """Not one record is taken from a file that isn't the one of the index."""
    segment, data = written(simple(0, 500))
    with pytest.raises(Corrupt, match=r"00002/0{20}"):
        next(records(segment, io.BytesIO(damage(data))))


def test_lines_that_are_none_are_told():
    """A damaged line, and one of a newer format, name what they are."""
    with pytest.raises(Corrupt, match="line 3"):
        decode_line(b'{"topic": "x"}', "line 3")
    segment, _ = written(simple(0, 1))
    newer = encode_line(segment).replace(b'"format":1', b'"format":2')
    with pytest.raises(UnsupportedFormat, match="format 2"):
        decode_line(newer, "line 3")


async def test_an_archive_is_read_by_the_next_opener(tmp_path):
    """What one process added, another one finds, in the order of offsets."""
    one = Archive(tmp_path.as_uri(), TOPIC)
    first = await added(one, simple(0, 10), number=0)
    second = await added(one, simple(10, 700), number=1)
    await one.close()
    other = Archive(tmp_path.as_uri(), TOPIC)
    assert [first, second] == await other.segments(2)
    assert await other.segments(0) == []
    assert simple(0, 10) + simple(10, 700) == [
        *await read(other, first),
        *await read(other, second),
    ]
    await other.close()


async def test_of_two_archivers_one_adds(tmp_path):
    """Twenty that add to the same place at once leave one segment, whole; the others are told."""
    archives = [Archive(tmp_path.as_uri(), TOPIC) for _ in range(20)]
    outcomes = await asyncio.gather(
        *(added(each, simple(0, 5 + at), number=0) for at, each in enumerate(archives))
    )
    [won] = [outcome for outcome in outcomes if outcome is not None]
    [found] = await archives[0].segments(2)
    assert won == found
    assert won.count == len(await read(archives[1], found))
    names = sorted(path.name for path in (tmp_path / TOPIC / "00002").iterdir())
    assert sorted(["00000000.json", won.name]) == names
    for each in archives:
        await each.close()


async def test_what_a_killed_archiver_left_is_removed(tmp_path):
    """A file without a line, of offsets that have one by now, is no part of the archive."""
    archive = Archive(tmp_path.as_uri(), TOPIC)
    kept = await added(archive, simple(0, 10), number=0)
    folder = tmp_path / TOPIC / "00002"
    (folder / f"{3:020d}-0123456789abcdef.zst").write_bytes(b"left over")
    (folder / f"{10:020d}-0123456789abcdef.zst").write_bytes(b"of one that is being added now")
    assert await archive.clean(2) == 1
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(["00000000.json", kept.name, f"{10:020d}-0123456789abcdef.zst"]) == names
    await archive.close()


async def test_a_missing_part_is_told(tmp_path):
    """A line or a file that was lost is an error that names it, and never skipped."""
    archive = Archive(tmp_path.as_uri(), TOPIC)
    for number in range(3):
        last = await added(archive, simple(10 * number, 10), number=number)
    folder = tmp_path / TOPIC / "00002"
    (folder / last.name).unlink()
    with pytest.raises(Corrupt, match=last.name):
        await read(archive, last)
    (folder / "00000001.json").unlink()
    with pytest.raises(Corrupt, match="line 1 of the index of partition 2"):
        await archive.segments(2)
    await archive.close()


def test_gaps_are_named():
    """Offsets that no segment covers are told, from where one looks on."""
    segments = [written(simple(first, 5), first=first)[0] for first in (5, 10, 20)]
    assert [Missing(2, 0, 4), Missing(2, 15, 19)] == gaps(2, segments)
    assert [Missing(2, 15, 19)] == gaps(2, segments, start=5)
    assert segments[1:] == following(segments, 10)
    assert segments[2:] == following(segments, 15)
    assert following(segments, 25) == []
