"""Segments of the archive: consecutive records of a partition in a file, and its line of the index.

A segment is one zstd frame with a checksum. In it, each record is its length in four bytes (most
significant first), then a MessagePack array: offset, timestamp (milliseconds since 1970), kind of
timestamp (0: the producer's, 1: the broker's), key, value, headers (an array of name and value).

Invariants:
- What is read is what was written: offset, timestamp, key, value and headers of every record, byte
  by byte, a null apart from an empty value.
- Nothing is read of a file whose SHA-256 is not the one of the index.
"""

import hashlib
import struct
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Final, Protocol

import msgspec
import zstandard

from perdure.errors import Corrupt, UnsupportedFormat

FORMAT: Final = 1
"""Of segments and of their lines in the index."""

SEGMENT_BYTES: Final = 64_000_000
"""Bytes of records after which a segment is complete."""

LEVEL: Final = 6
"""Of zstd: archives are written once and kept for long."""

BATCH_RECORDS: Final = 500
"""Records that are read from a segment in one go."""

BATCH_BYTES: Final = 8_000_000
"""Bytes of records that are read from a segment in one go, about."""

_MEMORY_BYTES: Final = 1_000_000
_READ_BYTES: Final = 1_000_000
_LENGTH: Final = struct.Struct(">I")


class LogRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record of a topic as Kafka has it; `timestamp` is in milliseconds since 1970."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Segment(msgspec.Struct, frozen=True):
    """A line of the index: what a segment holds, and where it is.

    It covers all offsets from `first` to `last`, of which `count` are records: Kafka gives some
    offsets to marks of its own. Times are the earliest and the latest timestamp (milliseconds
    since 1970, -1 without a record). `bytes` are those of the records, `stored` those of the file,
    `sha256` is the file's.
    """

    topic: str
    partition: int
    first: int
    last: int
    count: int
    first_time: int
    last_time: int
    bytes: int
    stored: int
    sha256: str
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The file's name: two that hold different records never share one."""
        return f"{self.first:020d}-{self.sha256[:16]}.zst"


class ConsumerRecord(Protocol):
    """A record as Kafka's clients give it."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogRecord)
_line_encoder = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(Segment)


def as_logged(record: ConsumerRecord) -> LogRecord:
    """A record without what a client adds to it."""
    return LogRecord(
        record.offset,
        record.timestamp,
        record.timestamp_type,
        record.key,
        record.value,
        tuple([(name, value) for name, value in record.headers]),
    )


def encode_line(segment: Segment) -> bytes:
    """The line of the index, JSON."""
    return _line_encoder.encode(segment) + b"\n"


def decode_line(data: bytes, where: str) -> Segment:
    """A segment from its line; `where` names the line in errors.

    Raises:
        Corrupt: it is none.
        UnsupportedFormat: it is of a newer format.
    """
    try:
        segment = _line_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(
            f"{where} of the archive is damaged: {error}",
            hint="restore it from a copy; the segment's file says its first offset in its name",
        ) from error
    if segment.format > FORMAT:
        raise UnsupportedFormat(
            f"{where} of the archive is of format {segment.format}; this version of perdure knows"
            f" formats up to {FORMAT}",
            hint="upgrade perdure on this machine",
        )
    return segment


class SegmentWriter:
    """A segment that is being filled, in a temporary file; close it at the end.

    `first` is the first offset that it covers.
    """

    def __init__(self, topic: str, partition: int, first: int) -> None:
        self._topic = topic
        self._partition = partition
        self.first = first
        self.next = first
        """The offset after the last one it covers."""
        self.count = 0
        self.bytes = 0
        self._times: tuple[int, int] | None = None
        # Small ones never touch the disk.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115
        self._writer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).stream_writer(
            self._file, closefd=False
        )

    @property
    def full(self) -> bool:
        """Whether it holds as much as a segment may."""
        return self.bytes >= SEGMENT_BYTES

    def add(self, record: LogRecord) -> None:
        """Add the next record. Raises OSError where the temporary file can't take it."""
        data = _encoder.encode(record)
        self._writer.write(_LENGTH.pack(len(data)))
        self._writer.write(data)
        self.next = record.offset + 1
        self.count += 1
        self.bytes += len(data)
        earliest, latest = self._times or (record.timestamp, record.timestamp)
        self._times = min(earliest, record.timestamp), max(latest, record.timestamp)

    def cover(self, until: int) -> None:
        """Cover the offsets before `until`, too: there are no records there."""
        self.next = max(self.next, until)

    def finish(self) -> tuple[Segment, IO[bytes]]:
        """The segment, and its file at its start."""
        self._writer.close()  # type: ignore[no-untyped-call]
        stored = self._file.tell()
        self._file.seek(0)
        digest = hashlib.sha256()
        while piece := self._file.read(_READ_BYTES):
            digest.update(piece)
        self._file.seek(0)
        first_time, last_time = self._times or (-1, -1)
        segment = Segment(
            self._topic,
            self._partition,
            self.first,
            self.next - 1,
            self.count,
            first_time,
            last_time,
            self.bytes,
            stored,
            digest.hexdigest(),
        )
        return segment, self._file

    def close(self) -> None:
        """Let go of the temporary file."""
        self._file.close()


def records(segment: Segment, file: IO[bytes]) -> Iterator[list[LogRecord]]:
    """The records of a segment's file, in batches of bounded size.

    Raises:
        Corrupt: the file is not the one that was written.
    """
    _check_file(segment, file)
    batch: list[LogRecord] = []
    size = count = 0
    expected = segment.first
    try:
        with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as reader:
            while head := _exactly(reader, _LENGTH.size, segment):
                data = _exactly(reader, _LENGTH.unpack(head)[0], segment)
                record = _decoder.decode(data)
                if not expected <= record.offset <= segment.last:
                    raise _damaged(segment, f"offset {record.offset} is out of its place")
                expected = record.offset + 1
                batch.append(record)
                size += len(data)
                count += 1
                if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(segment, str(error)) from error
    if batch:
        yield batch
    if count != segment.count:
        raise _damaged(segment, f"it holds {count} records, not {segment.count}")


def _check_file(segment: Segment, file: IO[bytes]) -> None:
    digest = hashlib.sha256()
    while piece := file.read(_READ_BYTES):
        digest.update(piece)
    if digest.hexdigest() != segment.sha256:
        raise _damaged(segment, "its SHA-256 is not that of the index")
    file.seek(0)


def _exactly(reader: IO[bytes], size: int, segment: Segment) -> bytes:
    """So many bytes; none at the end of the file."""
    parts: list[bytes] = []
    missing = size
    while missing and (part := reader.read(missing)):
        parts.append(part)
        missing -= len(part)
    if missing and (parts or size != _LENGTH.size):
        raise _damaged(segment, "it ends in the middle of a record")
    return b"".join(parts)


def _damaged(segment: Segment, what: str) -> Corrupt:
    return Corrupt(
        f"segment {segment.partition:05d}/{segment.name} of the archive of {segment.topic} is"
        f" damaged: {what}",
        hint="restore it from a copy of the archive",
    )
