"""Which bucket an append goes to: a function of the appends before it alone.

So every recorder puts an append into the same bucket, however many of them it takes at once. An
append lies wholly in one bucket: a bucket that is full is closed before the next append, and may
be larger than its bounds by that append's size.
"""

import datetime as dt
from typing import Final

import msgspec

from perdure.model.event import NUMBER_MAX, Event, NewEvent, encode
from perdure.model.sequencing import Append
from perdure.recorder.recordings import Stream

BUCKET_EVENTS: Final = 4096
"""Events after which a bucket is full."""

BUCKET_BYTES: Final = 4_000_000
"""Bytes of stored events after which a bucket is full."""

ID_BUCKETS: Final = 32
"""Newest buckets of a stream in which ids are looked up: up to 131,072 events."""

MUTATION_BYTES_MAX: Final = 15_000_000
"""Bytes of one append's rows: below what Cassandra takes in one mutation, and in one request."""

ANSWER_BYTES_MAX: Final = 8_300_000
"""Bytes of the events that answer one record: one record of the journal holds them all."""

ROWS_MAX: Final = 65_534
"""Rows that one request can hold beside the head."""

ROWS_EACH: Final = 3
"""Rows of one event: itself, its place by type and time, its id."""

ROW_BYTES: Final = 100
"""Bytes of a row beside what is named here, at most: lengths, numbers, the statement's id."""

INDEXED_BYTES: Final = 4352
"""Bytes of an event's type, id and writer, at most."""

GROWTH_MAX: Final = 5
"""How many stored bytes a byte of JSON can become: `1e15` is stored as 1000000000000000.0."""

NAMED_BYTES: Final = 512
"""Bytes of a stored event beside its texts and its data, at most: names, numbers and a time."""

_LONGEST_TIME: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


def fits(store: str, agent: str, count: int, size: int, indexed: int | None = None) -> bool:
    """Whether an append of `count` events and `size` stored bytes can be recorded whole.

    `indexed` are the bytes of the events' types, ids and writers, which indexes and head hold a
    second time; without it, as many as there can be.

    >>> fits("default", "airline/mia", 1000, 1_000_000)
    True
    """
    rows = ROWS_EACH * count
    names = rows * (len(store) + len(agent) + ROW_BYTES)
    names += min(size, count * INDEXED_BYTES) if indexed is None else indexed
    return rows <= ROWS_MAX and size <= ANSWER_BYTES_MAX and size + names <= MUTATION_BYTES_MAX


def fits_as_stored(store: str, append: Append, size: int) -> bool:
    """Whether an append that came in `size` bytes can be recorded whole.

    It may take many more where it is stored: numbers are written out, and every event names its
    agent, its source and its writer. That is a matter of the append alone, whatever was recorded
    before it: whoever asks, whenever, is told the same.

    >>> draft = NewEvent(type="note", data=[1e15] * 50_000, id="e-1")
    >>> batch = Append("airline/mia", (draft,) * 10, "w")
    >>> fits("default", batch.agent, 10, 2_500_000), fits_as_stored("default", batch, 2_500_000)
    (True, False)
    """
    count = len(append.events)
    each = NAMED_BYTES + 2 * (len(append.agent) + len(append.writer.encode()))
    if fits(store, append.agent, count, GROWTH_MAX * size + count * each):
        return True  # by far: most are
    longest = [_longest(append, event) for event in append.events]
    stored = sum([len(encode(event)) for event in longest])
    indexed = sum([len(f"{each.type}{each.id}{each.writer}".encode()) for each in longest])
    return fits(store, append.agent, count, stored, indexed)


def _longest(append: Append, event: NewEvent) -> Event:
    """An event as it would be recorded with the longest numbers."""
    return Event(
        id=event.id or "",
        type=event.type,
        subject=append.agent,
        source=event.source or f"/{append.agent}",
        sequence=NUMBER_MAX,
        time=_LONGEST_TIME,
        writer=event.writer or append.writer,
        writer_sequence=NUMBER_MAX,
        epoch=append.epoch or 0,
        version=event.version or NUMBER_MAX,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        traceparent=event.traceparent,
        expected_sequence=append.expected_sequence,
        key_id=event.key_id,
        data=event.data,  # type: ignore[arg-type]  # JSON, as `decode` and `prepared` give it
    )


def is_full(events: int, size: int) -> bool:
    """Whether the next append goes to another bucket than one of so many events and bytes.

    Readers look for another one only then. So the two bounds may be lowered, but never raised:
    buckets that are there already would hide those after them.

    >>> is_full(BUCKET_EVENTS - 1, BUCKET_BYTES - 1), is_full(1, BUCKET_BYTES)
    (False, True)
    """
    return events >= BUCKET_EVENTS or size >= BUCKET_BYTES


def opened(stream: Stream) -> Stream:
    """The stream with the bucket into which its next events go: the same one, or a new one.

    Ask before deciding the append: in a new bucket `head.writers` is empty. Who was in it counts
    as known already; only `Recordings.write` brings them where `Recordings.last_of` looks.
    """
    if not is_full(stream.events, stream.bytes):
        return stream
    return msgspec.structs.replace(
        stream,
        head=msgspec.structs.replace(stream.head, writers={}),
        bucket=stream.bucket + 1,
        first=stream.head.sequence + 1,
        chain_before=stream.head.chain,
        events=0,
        bytes=0,
    )


def placed(stream: Stream, count: int, size: int) -> Stream:
    """The stream with an append of `count` events and `size` stored bytes counted in its bucket.

    Opens a bucket where it must. The head is not moved: that is what was decided. An append
    without events, such as a raised epoch, stays where the stream is.
    """
    if count == 0:
        return stream
    place = opened(stream)
    return msgspec.structs.replace(place, events=place.events + count, bytes=place.bytes + size)
