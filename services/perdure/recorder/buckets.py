"""Which bucket an append goes to: a function of the appends before it alone.

So every recorder puts an append into the same bucket, however many of them it takes at once. An
append lies wholly in one bucket: a bucket that is full is closed before the next append, and may
be larger than its bounds by that append's size.
"""

from typing import Final

import msgspec

from perdure.recorder.recordings import Stream

BUCKET_EVENTS: Final = 4096
"""Events after which a bucket is full."""

BUCKET_BYTES: Final = 4_000_000
"""Bytes of stored events after which a bucket is full."""

ID_BUCKETS: Final = 32
"""Newest buckets of a stream in which ids are looked up: up to 131,072 events."""

MUTATION_BYTES_MAX: Final = 15_000_000
"""Bytes of one append's rows: below what Cassandra takes in one mutation, and in one request."""

ROWS_MAX: Final = 65_534
"""Rows that one request can hold beside the head."""

ROWS_EACH: Final = 3
"""Rows of one event: itself, its place by type and time, its id."""

ROW_BYTES: Final = 100
"""Bytes of a row beside what is named here, at most: lengths, numbers, the statement's id."""

INDEXED_BYTES: Final = 2304
"""Bytes of an event's type and id, at most: the indexes hold them a second time."""


def fits(store: str, agent: str, count: int, size: int) -> bool:
    """Whether an append of `count` events and `size` stored bytes can be recorded whole.

    >>> fits("default", "airline/mia", 1000, 1_000_000)
    True
    """
    rows = ROWS_EACH * count
    names = rows * (len(store) + len(agent) + ROW_BYTES) + min(size, count * INDEXED_BYTES)
    return rows <= ROWS_MAX and size + names <= MUTATION_BYTES_MAX


def opened(stream: Stream) -> Stream:
    """The stream with the bucket into which its next events go: the same one, or a new one.

    Ask before deciding the append: in a new bucket `head.writers` is empty. Who was in it counts
    as known already; only `Recordings.write` brings them where `Recordings.last_of` looks.
    """
    if stream.events < BUCKET_EVENTS and stream.bytes < BUCKET_BYTES:
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
