"""How events lie on disk: segments, runs of consecutive events of one agent in one row.

Invariants:
- The segments of an agent follow on each other without gap or overlap.
- A segment's row is keyed by its last event; `chain` is the agent's chain after that event.
- `crc` is the CRC-32 of the stored body, `crcs` holds the CRC-32 of each event's bytes, so that a
  damaged row is noticed by every reader, and the damaged events can be named.
- The newest segments of an agent are small and plain, one for each commit (its *tail*). When they
  have become long enough they are sealed: merged into one zstd frame, in the transaction of a
  commit that writes anyhow. Events are written to disk at most twice.

The body is a JSON array of stored events (`model.event.encode`), plain or as a zstd frame with
content size and checksum.
"""

import contextlib
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import zstandard

from perdure.embedded.zstd import Zstd
from perdure.errors import Corrupt
from perdure.model.event import Event, decode, decode_all, split_all
from perdure.model.sequencing import CHAIN_BYTES, Recorded

SEQUENCE_BITS: Final = 36
"""An agent's events: up to 68 billion; agents: up to 134 million. Together a row's 63-bit key."""
SEQUENCE_MAX: Final = (1 << SEQUENCE_BITS) - 1

TAIL_ROWS_MAX: Final = 128
"""Plain rows an agent may have before they are sealed: what opening it reads one by one."""
SEGMENT_BYTES: Final = 64 * 1024
"""JSON bytes at which a segment is sealed: large enough to compress well, small enough that
reading one event out of it takes 0.1 ms."""
SEAL_BYTES: Final = 8 * 1024
"""JSON bytes of one commit that are sealed right away."""
SETTLE_ROWS: Final = 4
"""Plain rows that are worth a transaction of their own when an agent is closed."""
BODY_BYTES_MAX: Final = 256 * 1024 * 1024

PLAIN: Final = 0
ZSTD: Final = 1
LEVEL: Final = 1
"""zstd level: on recorded runs 5% larger than level 3, and a third faster."""

SCHEMA: Final = (
    """CREATE TABLE segments (
        position INTEGER PRIMARY KEY,  -- agent's id << 36 | sequence of the last event
        first INTEGER NOT NULL,        -- sequence of the first event
        time_max INTEGER NOT NULL,     -- latest time of any event so far, microseconds since 1970
        codec INTEGER NOT NULL,        -- 0 plain JSON, 1 zstd
        crc INTEGER NOT NULL,
        chain BLOB NOT NULL,
        crcs BLOB NOT NULL,            -- 4 bytes an event, little-endian
        body BLOB NOT NULL
    )""",
)

_zstd = Zstd(level=LEVEL, checksum=True)


class Segment(NamedTuple):
    """A row of the table, without its key's agent."""

    first: int
    last: int
    time_max: int
    codec: int
    crc: int
    chain: bytes
    crcs: bytes
    body: bytes


COLUMNS: Final = "position, first, time_max, codec, crc, chain, crcs, body"


def position(agent_id: int, sequence: int) -> int:
    """The key of a segment that ends with `sequence`."""
    return agent_id << SEQUENCE_BITS | sequence


def from_row(row: Sequence[object]) -> Segment:
    """A segment from a row of `COLUMNS`.

    Raises:
        Corrupt: a column is not of its type, as a flipped bit of the row's header makes it.
    """
    key, first, time_max, codec, crc, chain, crcs, body = row
    if (
        type(key) is type(first) is type(time_max) is type(codec) is type(crc) is int
        and type(chain) is type(crcs) is type(body) is bytes
    ):
        return Segment(first, key & SEQUENCE_MAX, time_max, codec, crc, chain, crcs, body)
    raise Corrupt(
        f"row {key} of the table segments is damaged on disk: a column is not of its type",
        hint="`perdure verify` names what is damaged; restore the file from a backup",
    )


class Piece(NamedTuple):
    """Consecutive events on their way into a segment: their bytes, joined by commas."""

    first: int
    last: int
    time_max: int
    chain: bytes
    crcs: bytes
    body: bytes


def piece(new: Sequence[Recorded], time_max: int) -> Piece:
    """Events that were just recorded."""
    bodies = [recorded.data for recorded in new]
    return Piece(
        new[0].event.sequence,
        new[-1].event.sequence,
        time_max,
        new[-1].chain,
        b"".join([zlib.crc32(body).to_bytes(4, "little") for body in bodies]),
        b",".join(bodies),
    )


def piece_of(segment: Segment) -> Piece:
    """A plain segment, to be merged with its neighbours."""
    return Piece(
        segment.first,
        segment.last,
        segment.time_max,
        segment.chain,
        segment.crcs,
        segment.body[1:-1],
    )


def merged(pieces: Sequence[Piece], *, seal: bool) -> Segment:
    """One segment of neighbouring pieces, as a zstd frame if it is to be sealed."""
    body, codec = b"[" + b",".join([piece.body for piece in pieces]) + b"]", PLAIN
    if seal:
        body, codec = _zstd.compressor.compress(body), ZSTD
    last = pieces[-1]
    return Segment(
        first=pieces[0].first,
        last=last.last,
        time_max=last.time_max,
        codec=codec,
        crc=zlib.crc32(body),
        chain=last.chain,
        crcs=b"".join([piece.crcs for piece in pieces]),
        body=body,
    )


def packed(pieces: Sequence[Piece], *, seal_last: bool) -> list[Segment]:
    """Segments of about `SEGMENT_BYTES` of JSON each; all but the last are sealed in any case."""
    segments: list[Segment] = []
    pending: list[Piece] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece.body)
        if size >= SEGMENT_BYTES:
            segments.append(merged(pending, seal=True))
            pending, size = [], 0
    if pending:
        segments.append(merged(pending, seal=seal_last))
    return segments


def insert(connection: sqlite3.Connection, agent_id: int, segment: Segment) -> None:
    """Write a segment's row."""
    connection.execute(
        f"INSERT INTO segments ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            position(agent_id, segment.last),
            segment.first,
            segment.time_max,
            segment.codec,
            segment.crc,
            segment.chain,
            segment.crcs,
            segment.body,
        ),
    )


def plain(segment: Segment, agent: str) -> bytes:
    """The JSON array of a segment's events, its checksum verified.

    Raises:
        Corrupt: names the events that the damaged row holds.
    """
    if zlib.crc32(segment.body) != segment.crc:
        raise damaged(segment, agent, "its checksum is wrong")
    if segment.codec == PLAIN:
        return segment.body
    if segment.codec != ZSTD:
        raise damaged(segment, agent, f"its codec {segment.codec} is unknown")
    try:
        size = zstandard.frame_content_size(segment.body)
        if not 0 <= size <= BODY_BYTES_MAX:
            raise damaged(segment, agent, f"it declares {size} bytes")
        return _zstd.decompressor.decompress(segment.body)
    except zstandard.ZstdError as error:
        raise damaged(segment, agent, str(error)) from error


def json_bytes(segment: Segment) -> int:
    """How many bytes of JSON a segment holds; those it takes on disk where it is damaged."""
    if segment.codec != ZSTD:
        return len(segment.body)
    try:
        return max(0, zstandard.frame_content_size(segment.body))
    except zstandard.ZstdError:
        return len(segment.body)


def events(segment: Segment, agent: str, *, last: int = SEQUENCE_MAX) -> list[Event]:
    """The events of a segment up to `last`, checked to be the ones its row promises.

    Raises:
        Corrupt: names the events that the damaged row holds.
    """
    body = plain(segment, agent)
    found = None
    if last < segment.last:
        found = _beginning(body, last)
    try:
        if found is None:
            found = decode_all(body)[: max(0, last - segment.first + 1)]
    except Corrupt as error:
        raise damaged(segment, agent, error.message) from error
    wanted = range(segment.first, min(last, segment.last) + 1)
    if [event.sequence for event in found] != list(wanted):
        raise damaged(segment, agent, "its events are not the ones it should hold")
    return found


def _beginning(body: bytes, last: int) -> list[Event] | None:
    """The events up to `last` of an array, without decoding what comes after; None if not found.

    An event begins with its id, and its sequence comes before its data. Data may look like that,
    too: what is cut there does not decode, or ends with another event.
    """
    following = body.find(b',"sequence":%d,"time":' % (last + 1))
    end = body.rfind(b',{"id":"', 0, max(0, following))
    if end < 0:
        return None
    try:
        found = decode_all(body[:end] + b"]")
    except Corrupt:
        return None
    return found if found[-1].sequence == last else None


def salvage(segment: Segment) -> tuple[dict[int, bytes], list[int]]:
    """What can be read of a damaged segment: intact events' bytes, and damaged sequences."""
    sequences = range(segment.first, segment.last + 1)
    body = segment.body
    if segment.codec == ZSTD:
        # A frame whose end is damaged still gives what stands before it.
        whole = bytearray()
        with contextlib.suppress(zstandard.ZstdError):
            for chunk in _zstd.decompressor.read_to_iter(segment.body, read_size=1024):
                whole += chunk
        body = bytes(whole)
    if len(segment.crcs) != 4 * len(sequences):
        return {}, list(sequences)
    crcs = struct.unpack(f"<{len(sequences)}I", segment.crcs)
    try:
        bodies = split_all(body)
    except Corrupt:
        bodies = _split_damaged(body)
    intact: dict[int, bytes] = {}
    by_crc = {zlib.crc32(data): data for data in bodies}
    for sequence, crc in zip(sequences, crcs, strict=True):
        data = by_crc.get(crc)
        if data is not None and _sequence_of(data) == sequence:
            intact[sequence] = data
    return intact, [sequence for sequence in sequences if sequence not in intact]


def _split_damaged(body: bytes) -> list[bytes]:
    """Pieces of a broken array that may be whole events: each starts where an event starts."""
    starts = []
    at = body.find(b'{"id":')
    while at >= 0:
        starts.append(at)
        at = body.find(b'{"id":', at + 1)
    # An id may also stand inside an event's data: every start is tried against every end.
    return [
        body[start:end].rstrip(b",]") if end == len(body) else body[start : end - 1]
        for index, start in enumerate(starts)
        for end in [*starts[index + 1 : index + 9], len(body)]
    ]


def _sequence_of(data: bytes) -> int | None:
    try:
        return decode(data).sequence
    except Corrupt:
        return None


def damaged(segment: Segment, agent: str, reason: str) -> Corrupt:
    """The error for a damaged row."""
    which = (
        f"event {agent}@{segment.first}"
        if segment.first == segment.last
        else f"one of the events {agent}@{segment.first} to {segment.last}"
    )
    return Corrupt(
        f"{which} is damaged on disk: {reason}",
        hint=f"`perdure verify {agent}` names what is damaged; restore the file from a backup",
    )


def chain_is_sound(segment: Segment) -> bool:
    """Whether a row's chain has the right length."""
    return len(segment.chain) == CHAIN_BYTES
