"""What comes of a record is bounded: it is written and told within limits, or a dead letter."""

import datetime as dt
import json
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import EventTooLarge, InvalidInput
from perdure.kafka import journal, wire
from perdure.kafka.topics import MESSAGE_BYTES_MAX
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append
from perdure.recorder import buckets
from perdure.recorder.core import Found, Work, decided
from perdure.recorder.heads import Heads
from perdure.recorder.partition import PartitionRecorder
from perdure.recorder.recordings import fresh

TIME = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
HEADERS = [("content-type", wire.BATCH_TYPE)]
OVERHEAD = 4096
"""Bytes that a record of the journal takes beside its entries, and a batch of Kafka beside it."""


def batch(*events, **first):
    """The value of a batch with these attributes and data of events, each with an id."""
    base = {"specversion": "1.0", "source": "s", "type": "note"}
    bodies = [base | {"id": str(number)} | each for number, each in enumerate(events)]
    bodies[0] |= first
    return json.dumps(bodies, separators=(",", ":")).encode()


def large(count, numbers):
    """A batch whose numbers take four times as much where they are stored."""
    return batch(*[{"data": 7}] * count).replace(
        b'"data":7', b'"data":[' + b",".join([b"1e15"] * numbers) + b"]"
    )


def decision(value, stream=None, found=None, offset=0):
    """What the recorder decides about a record."""
    incoming = wire.decode(b"a/b", value, HEADERS, 0)
    return decided(
        0, stream or fresh("a/b"), [Work(offset, incoming)], found or Found({}, {}, {}, {})
    )


def mutation_bytes(change):
    """Bytes of a write as the tables take it, about: rows, indexes and the head."""
    rows = [row.recorded for row in change.rows]
    return sum(
        len(data)
        + buckets.ROWS_EACH * (len("default") + len(event.subject) + buckets.ROW_BYTES)
        + len(event.type.encode())
        + len(event.id.encode())
        for event, data, _ in rows
    ) + sum(len(writer.encode()) for writer in {event.writer for event, *_ in rows})


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(large(8, 190_000), id="numbers"),
        pytest.param(batch(*[{"source": "s" * 500}] * 10_000), id="sources"),
        pytest.param(batch(*[{}] * 10_000, source="ß" * 500), id="the first one's source"),
    ],
)
def test_what_is_large_where_it_is_stored_is_no_record(value):
    """A record that grows beyond what tables and journal take is named as too large, at once."""
    assert len(value) < wire.RECORD_BYTES_MAX
    with pytest.raises(EventTooLarge, match="too many to be recorded together"):
        wire.decode(b"a/b", value, HEADERS, 0)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(large(8, 53_000), id="numbers"),
        pytest.param(batch(*[{"source": "s" * 500}] * 6_500), id="sources"),
        pytest.param(batch(*[{}] * 21_844), id="events"),
        pytest.param(batch(*[{"data": "x" * 999_000}] * 8), id="texts"),
    ],
)
def test_what_just_fits_can_be_told(value):
    """A record at the limits comes to rows and to a journal record that the engines take."""
    found = decision(value)
    [change] = found.changes
    assert mutation_bytes(change) <= buckets.MUTATION_BYTES_MAX
    [told] = found.journal
    assert 2_500_000 < len(journal.encode(told)) < MESSAGE_BYTES_MAX - OVERHEAD


def test_the_largest_single_event_always_fits():
    """One event is recorded whatever its data grow to: it is limited by itself."""
    value = b"[" + b",".join([b"1e15"] * 199_000) + b"]"
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t")]
    incoming = wire.decode(b"a/b", value, headers, 0)
    found = decided(0, fresh("a/b"), [Work(0, incoming)], Found({}, {}, {}, {}))
    assert len(journal.encode(found.journal[0])) < MESSAGE_BYTES_MAX - OVERHEAD
    assert not found.letters


def test_a_writer_is_told_what_the_recorder_would_refuse():
    """What would be a dead letter is refused where it is written."""
    draft = NewEvent(
        type="note", data=None, id="1", time=TIME, version=1, writer="ß" * 500, writer_sequence=1
    )
    drafts = tuple([draft] * 6_000)
    with pytest.raises(EventTooLarge, match="divide them"):
        wire.encode(Append("a/b", drafts, "w"))
    wire.encode(Append("a/b", drafts[:3_000], "w"))


def test_an_answer_that_is_too_large_is_a_dead_letter_and_leaves_no_trace():
    """Small events that are answered with large ones from before can't be told together."""
    texts = batch(*[{"data": "x" * 900_000}] * 5)
    stored = decision(texts)
    again = batch(*[{"id": str(number % 5)} for number in range(11)], {"id": "new"})
    ids = {row.recorded.event.id: row.recorded.event for row in stored.changes[0].rows}
    found = decision(again, stored.stream, Found({}, {}, ids, {}), offset=1)
    assert found.changes == []
    assert found.stream == stored.stream
    assert [type(error) for error in found.letters.values()] == [EventTooLarge]
    [entry] = found.journal[0].entries
    assert (entry.offset, entry.outcome, entry.error.name) == (1, "dead-letter", "EventTooLarge")
    fits = decision(batch(*[{"id": "1"}] * 4), stored.stream, Found({}, {}, ids, {}), offset=1)
    assert [entry.outcome for entry in fits.journal[0].entries] == ["recorded"]


events = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["1", "2", "ü" * 30]),
        "source": st.text("sß\\", min_size=1, max_size=60),
        "writer": st.text("w€", min_size=1, max_size=60),
        "dataschema": st.just("urn:perdure:event:note:70000"),
        "correlationid": st.text("c", min_size=1, max_size=50),
        "data": st.lists(st.sampled_from([1e15, 1, "x" * 90]), max_size=20),
    },
)


@given(records=st.lists(st.lists(events, min_size=1, max_size=12), min_size=1, max_size=5))
def test_whatever_is_decoded_is_within_limits_or_a_dead_letter(records):
    """No record comes to a write or to an entry over the limits, and those beside it go on."""
    with (
        mock.patch.object(buckets, "ANSWER_BYTES_MAX", 2_500),
        mock.patch.object(buckets, "MUTATION_BYTES_MAX", 5_000),
    ):
        works = []
        for offset, bodies in enumerate(records):
            value = batch(*bodies).replace(b"1000000000000000.0", b"1e15")
            try:
                works.append(Work(offset, wire.decode(b"a/b", value, HEADERS, 0)))
            except EventTooLarge:
                assert len(value) > 300  # what is small fits
        if not works:
            return
        found = decided(0, fresh("a/b"), works, Found({}, {}, {}, {}))
        entries = [entry for record in found.journal for entry in record.entries]
        assert [entry.offset for entry in entries] == [work.offset for work in works]
        assert {e.offset for e in entries if e.outcome == "dead-letter"} == found.letters.keys()
        for entry in entries:
            assert sum(map(len, map(bytes, entry.events))) <= 2_500
        rows = [row for change in found.changes for row in change.rows]
        assert not {row.position for row in rows} & found.letters.keys()
        for position in {row.position for row in rows}:
            own = [row for row in rows if row.position == position]
            assert mutation_bytes(found.changes[0]._replace(rows=own)) <= 5_000


class Source(NamedTuple):
    """A record of the log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: list = HEADERS
    timestamp: int = 0


class Journal:
    """What the recorder tells and puts aside."""

    def __init__(self):
        self.told, self.letters = [], []

    async def tell(self, partition, records):
        """Note them, each with its key."""
        self.told += records

    async def put_aside(self, letters):
        """Note them."""
        self.letters += letters


async def test_a_key_as_large_as_a_record_is_not_told_whole():
    """The journal has to take what is said of a record that is nothing but a key."""
    told = Journal()
    recorder = PartitionRecorder(
        0,
        1,
        recordings=None,
        journal=told,
        heads=Heads(),
        patiently=lambda what, call: call(),
    )
    await recorder.step([Source(0, b"x" * 8_000_000, None)])
    [(key, record)] = told.told
    assert len(key) + len(journal.encode(record)) < OVERHEAD
    assert isinstance(told.letters[0].error, InvalidInput)
