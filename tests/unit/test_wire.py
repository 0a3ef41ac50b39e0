"""Records of the topic of events: what is written can be read, and what is wrong is named."""

import contextlib
import datetime as dt
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import EventTooLarge, InvalidInput
from perdure.kafka import wire
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append

TIME = dt.datetime(2026, 11, 1, 10, 30, 0, 123456, tzinfo=dt.UTC)
STAMP = 1_790_000_000_000

names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
maybe_texts = st.none() | texts
numbers = st.integers(1, 2**53 - 1)
times = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
events = st.builds(
    NewEvent,
    type=st.sampled_from(["decision.made", "order.placed", "a/b:c.d-e"]),
    data=json_values,
    id=texts,
    time=times,
    source=texts,
    version=st.integers(1, 1000),
    writer=texts,
    writer_sequence=numbers,
    correlation_id=maybe_texts,
    causation_id=maybe_texts,
    traceparent=maybe_texts,
    key_id=maybe_texts,
)


@st.composite
def appends(draw):
    """A write of one event or several, as an agent process sends it."""
    drafts = tuple(draw(st.lists(events, min_size=1, max_size=4)))
    return Append(
        f"{draw(names)}/{draw(names)}",
        drafts,
        drafts[0].writer,
        draw(st.none() | st.integers(0, 1000)),
        draw(st.none() | st.integers(0, 2**53 - 1)),
        draw(st.booleans()),
    )


def _headers(**extra):
    attributes = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/shop",
        "type": "order.placed",
        "subject": "shop/mia",
    }
    attributes |= extra
    return [
        (f"ce_{name}", value.encode()) for name, value in attributes.items() if value is not None
    ]


def _decode(value=b"{}", key=b"shop/mia", kind=None, **extra):
    headers = _headers(**extra)
    if kind is not None:
        headers.append(("content-type", kind.encode()))
    return wire.decode(key, value, headers, STAMP)


@given(append=appends(), store=st.sampled_from(["default", "lab-2"]))
def test_what_is_written_is_read(append, store):
    """A write comes back from its record as it was, alone and in a batch."""
    record = wire.encode(append, store=store)
    assert record.key == wire.key_of(store, append.agent)
    assert record.value
    incoming = wire.decode(record.key, record.value, record.headers, STAMP)
    assert incoming == wire.Incoming(store, "append", append)


@given(
    key=st.none() | st.binary(max_size=30),
    value=st.none() | st.binary(max_size=60),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "ce_specversion",
                    "ce_id",
                    "ce_source",
                    "ce_type",
                    "ce_subject",
                    "ce_time",
                    "ce_writer",
                    "ce_writersequence",
                    "ce_epoch",
                    "ce_dataschema",
                    "ce_control",
                    "ce_store",
                    "content-type",
                ]
            ),
            st.none()
            | st.binary(max_size=20)
            | st.sampled_from(
                [b"1.0", b"agent.forked", b"a/b", b"7", b"application/cloudevents-batch+json"]
            ),
        ),
        max_size=12,
    ),
)
def test_whatever_comes_is_read_or_named(key, value, headers):
    """No record does anything but to be read or to raise InvalidInput."""
    with contextlib.suppress(InvalidInput):
        assert wire.decode(key, value, headers, STAMP).append.events


@given(value=json_values | st.dictionaries(texts, json_values))
def test_structured_records_are_read_or_named(value):
    """A body that claims to be CloudEvents is read, or it is said what is wrong with it."""
    for kind in (wire.BATCH_TYPE, wire.STRUCTURED_TYPE):
        with pytest.raises(InvalidInput):
            wire.decode(b"a/b", json.dumps(value).encode(), [("content-type", kind)], STAMP)


def test_a_record_of_another_producer():
    """The attributes that CloudEvents asks for are enough; the id then identifies the event."""
    incoming = _decode(b'{"total": 3}')
    assert incoming.store == "default"
    assert incoming.append.agent == "shop/mia"
    assert incoming.append.by_id
    assert incoming.append.writer == "/shop"
    assert incoming.append.epoch is None
    [event] = incoming.append.events
    assert (event.id, event.data, event.version) == ("e-1", {"total": 3}, 1)
    assert event.time == dt.datetime.fromtimestamp(STAMP / 1000, dt.UTC)


@pytest.mark.parametrize(
    ("key", "subject", "store", "expected"),
    [
        (b"shop/mia", None, None, ("default", "shop/mia")),
        (b"lab/shop/mia", None, None, ("lab", "shop/mia")),
        (b"anything", "shop/mia", None, ("default", "shop/mia")),
        (b"anything", "shop/mia", "lab", ("lab", "shop/mia")),
        (None, "shop/mia", None, ("default", "shop/mia")),
    ],
)
def test_the_subject_or_the_key_is_the_agent(key, subject, store, expected):
    """The agent is the event's subject where it has one, else what the record's key names."""
    incoming = _decode(key=key, subject=subject, store=store)
    assert (incoming.store, incoming.append.agent) == expected


def test_structured_mode_is_read():
    """A whole CloudEvent as the value says the same as its attributes in headers."""
    body = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/shop",
        "type": "order.placed",
        "subject": "shop/mia",
        "time": "2026-11-01T10:30:00.123456Z",
        "unknownextension": "is left aside",
        "data": {"total": 3},
    }
    for value, kind in [
        (json.dumps(body), "application/cloudevents+json; charset=utf-8"),
        (json.dumps([body]), "application/cloudevents-batch+json"),
    ]:
        incoming = wire.decode(b"x/y", value.encode(), [("content-type", kind.encode())], STAMP)
        assert incoming == _decode(b'{"total": 3}', time="2026-11-01T10:30:00.123456Z")


def test_claims_and_forks_are_records_too():
    """Opening an agent and forking one travel in the same topic, and come back as such."""
    claim = wire.encode_claim("shop/mia", claim_id="c-1", writer="w", store="lab")
    incoming = wire.decode(claim.key, claim.value, claim.headers, STAMP)
    assert (incoming.kind, incoming.store, incoming.append.agent) == ("claim", "lab", "shop/mia")
    draft = NewEvent(
        type="agent.forked",
        data={"parent": "shop/mia", "at": 4},
        id="f-1",
        time=TIME,
        source="/shop/twin",
        version=1,
        writer="w",
        writer_sequence=1,
    )
    append = Append("shop/twin", (draft,), "w", 1, by_id=False)
    fork = wire.encode_fork(append, bytes(range(32)))
    incoming = wire.decode(fork.key, fork.value, fork.headers, STAMP)
    assert incoming == wire.Incoming(
        "default", "fork", append, wire.Fork("shop/mia", 4, bytes(range(32)))
    )


@pytest.mark.parametrize(
    ("given_record", "said"),
    [
        ({"value": None}, "no value"),
        ({"value": b""}, "not JSON"),
        ({"value": b"\xff"}, "not JSON"),
        ({"value": b"[" * 100_000}, "not JSON"),
        ({"value": b"[" * 200 + b"]" * 200}, "nested deeper"),
        ({"value": b'"' + b"x" * 1_000_000 + b'"'}, "takes 1,000,002 bytes"),
        ({"specversion": None}, "no ce_specversion"),
        ({"specversion": "0.3"}, "CloudEvents 0.3"),
        ({"id": None, "source": None}, "no id and no source"),
        ({"subject": "mia"}, "not of the form namespace/name"),
        ({"subject": None, "key": None}, "names no agent"),
        ({"subject": None, "key": b"\xff/x"}, "not UTF-8"),
        ({"store": "Lab!"}, "store name 'Lab!'"),
        ({"type": "no spaces"}, "event type"),
        ({"type": "message.added", "value": b'"hello"'}, "data of message.added"),
        ({"type": "agent.reverted"}, "data of agent.reverted"),
        ({"type": "agent.forked"}, "data of agent.forked"),
        ({"type": "agent.forked", "value": b'{"parent":"a/b","at":1}'}, "without its parent's"),
        ({"control": "explode"}, "'explode' is not known"),
        ({"time": "yesterday"}, "is no time"),
        ({"time": "2026-11-01T10:00:00"}, "has no zone"),
        ({"writersequence": "7"}, "without a writer"),
        ({"writer": "w", "writersequence": "-7"}, "writersequence is '-7'"),
        ({"writer": "w", "writersequence": "9" * 5000}, "writersequence is"),
        ({"epoch": "one"}, "epoch is 'one'"),
        ({"dataschema": "urn:perdure:event:order.sent:2"}, "not of the type order.placed"),
        ({"dataschema": "urn:perdure:event:order.placed:two"}, "version in dataschema"),
        ({"kind": "application/avro"}, "not JSON"),
        ({"kind": "application/cloudevents+avro"}, "is not read"),
        ({"kind": "application/cloudevents-batch+json", "value": b"[]"}, "holds no event"),
    ],
)
def test_what_is_wrong_is_named(given_record, said):
    """A record that is no event, or can't be recorded, is refused in words that say why."""
    with pytest.raises(InvalidInput) as caught:
        _decode(**given_record)
    assert said in str(caught.value)


def test_a_batch_is_of_one_agent():
    """Events that are recorded together are one agent's; claims and forks come alone."""
    base = {"specversion": "1.0", "source": "/s", "type": "note", "subject": "a/b"}
    mixed = [base | {"id": "1"}, base | {"id": "2", "subject": "a/c"}]
    claims = [base | {"id": "1"}, base | {"id": "2", "control": "claim"}]
    for body, said in [(mixed, "events of a/b and of a/c"), (claims, "has to come alone")]:
        with pytest.raises(InvalidInput) as caught:
            wire.decode(None, json.dumps(body).encode(), [("content-type", wire.BATCH_TYPE)], STAMP)
        assert said in str(caught.value)


def test_a_write_that_no_record_can_hold():
    """A write that is larger than a record is refused where it is made, with the way out."""
    draft = NewEvent(type="note", data="x" * 900_000, id="1", time=TIME, version=1)
    with pytest.raises(EventTooLarge, match="divide them"):
        wire.encode(Append("a/b", (draft,) * 9, "w"))


def test_more_events_than_are_recorded_together_are_refused_by_both_sides():
    """Very many small events are too large for their tables long before they are for a record."""
    small = [
        {"specversion": "1.0", "id": str(number), "source": "s", "type": "note", "subject": "a/b"}
        for number in range(25_000)
    ]
    headers = [("content-type", b"application/cloudevents-batch+json")]
    with pytest.raises(EventTooLarge, match="25,000 events of a/b"):
        wire.decode(b"a/b", json.dumps(small).encode(), headers, 0)
    assert len(wire.decode(b"a/b", json.dumps(small[:20_000]).encode(), headers, 0).append.events)


def test_the_partition_of_a_key_is_that_of_other_clients():
    """Partitions are those that Kafka's own clients choose, which send records here too."""
    # What Kafka's own tests expect of murmur2 for these keys, as unsigned numbers.
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, number in known.items():
        assert wire.partition_of(key, 2**31 - 1) == (number & 0x7FFFFFFF) % (2**31 - 1)
