"""Which bucket an append goes to: the same, however the appends are taken together."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from perdure.recorder.buckets import (
    BUCKET_BYTES,
    BUCKET_EVENTS,
    MUTATION_BYTES_MAX,
    fits,
    opened,
    placed,
)
from perdure.recorder.recordings import fresh

appends = st.lists(
    st.tuples(st.integers(0, BUCKET_EVENTS), st.integers(1, BUCKET_BYTES // 3)), max_size=60
)


def moved(stream, count, size):
    """The stream after an append, its head where it would be."""
    after = placed(stream, count, size)
    sequence = stream.head.sequence + count
    writers = after.head.writers | ({"w": sequence} if count else {})
    head = msgspec.structs.replace(after.head, sequence=sequence, writers=writers)
    return msgspec.structs.replace(after, head=head)


@given(appends)
def test_buckets_are_bounded_and_contiguous(sizes):
    """A bucket starts where the one before ended, once that is full, and is never full before."""
    stream = fresh("a/b")
    for count, size in sizes:
        after = moved(stream, count, size if count else 0)
        was_full = stream.events >= BUCKET_EVENTS or stream.bytes >= BUCKET_BYTES
        if count and was_full:
            assert (after.bucket, after.first) == (stream.bucket + 1, stream.head.sequence + 1)
            assert (after.events, after.bytes) == (count, size)
            assert after.head.writers == {"w": after.head.sequence}
        else:
            assert (after.bucket, after.first) == (stream.bucket, stream.first)
            assert after.events == stream.events + count
        assert after.head.sequence == after.first + after.events - 1
        stream = after


@given(appends)
def test_opening_first_changes_nothing(sizes):
    """Whether the bucket is opened before deciding or while placing, the place is the same."""
    stream = fresh("a/b")
    for count, size in sizes:
        if count:
            assert placed(opened(stream), count, size) == placed(stream, count, size)
            assert opened(opened(stream)) == opened(stream)
        stream = moved(stream, count, size if count else 0)


@given(st.integers(0, 40_000), st.integers(0, 2 * MUTATION_BYTES_MAX))
def test_what_fits_goes_on_fitting_when_it_is_smaller(count, size):
    """An append that fits does so with fewer events or bytes, too."""
    if fits("default", "a/b", count, size):
        assert fits("default", "a/b", count // 2, size)
        assert fits("default", "a/b", count, size // 2)
        assert size <= MUTATION_BYTES_MAX
