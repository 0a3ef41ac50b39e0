"""Records of the journal: what is written is read, and damage is told."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import errors
from perdure.errors import Corrupt, PerdureError, Refused, WriterFenced
from perdure.kafka.journal import Entry, JournalRecord, Problem, decode, encode, problem_of

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
entries = st.builds(
    Entry,
    offset=st.integers(0, 2**62),
    outcome=st.sampled_from(["recorded", "refused", "opened", "forked", "dead-letter"]),
    events=st.lists(
        st.dictionaries(texts, texts).map(lambda data: msgspec.Raw(msgspec.json.encode(data))),
        max_size=3,
    ),
    epoch=st.integers(0, 1000),
    error=st.none() | st.builds(Problem, name=texts, message=texts, hint=texts),
)
records = st.builds(
    JournalRecord,
    store=texts,
    agent=texts,
    partition=st.integers(0, 1000),
    entries=st.lists(entries, max_size=4),
    sequence=st.integers(0, 2**53),
    epoch=st.integers(0, 1000),
    chain=st.just("ab" * 32),
    parent=st.none() | texts,
    forked_at=st.integers(0, 2**53),
    through=st.integers(-1, 2**62),
)


def _plain(record):
    """A record as plain values, stored events as bytes."""
    told = [
        msgspec.structs.astuple(
            msgspec.structs.replace(entry, events=[bytes(event) for event in entry.events])
        )
        for entry in record.entries
    ]
    return msgspec.structs.astuple(msgspec.structs.replace(record, entries=told))


@given(record=records)
def test_what_is_written_is_read(record):
    """A record of the journal comes back as it was, with the stored bytes of its events."""
    again = decode(encode(record))
    assert _plain(again) == _plain(record)


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[1", b"\xff", b'{"store":7}'])
def test_damage_is_told(value):
    """A value that is no record of the journal raises Corrupt."""
    with pytest.raises(Corrupt):
        decode(value)


@pytest.mark.parametrize(
    "kind",
    [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, PerdureError)
    ],
)
def test_errors_come_back_as_what_they_were(kind):
    """A refused write raises in its own process what the recorder raised."""
    error = kind("it was so", hint="do that")
    again = decode(
        encode(JournalRecord("s", "a/b", 0, [Entry(1, "refused", error=problem_of(error))]))
    ).entries[0]
    with pytest.raises(kind) as caught:
        again.answers()
    assert (type(caught.value), caught.value.message, caught.value.hint) == (
        kind,
        "it was so",
        "do that",
    )


def test_an_error_of_another_version():
    """An error whose class is not known here is an error all the same, with its words."""
    error = Problem("FutureError", "it is so", "wait").error()
    assert isinstance(error, PerdureError)
    assert not isinstance(error, Refused)
    assert "FutureError: it is so" in str(error)
    assert not isinstance(Problem("Final", "no class of errors").error(), WriterFenced)
