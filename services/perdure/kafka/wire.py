"""Records of the topic of events: one write each, as CloudEvents on Kafka.

A single event travels in the binary mode of CloudEvents' Kafka binding (attributes as `ce_`
headers, the data as the value); several events that are recorded together travel as one record
of a JSON array, `application/cloudevents-batch+json`. The structured mode is read as well.
Beside the attributes of an event there are these:

`store`        the store of the cluster, left out for `default`
`dedupe`       `id`: the id identifies the event, although a writer's number does, too
`control`      `claim`: opens the agent for exclusive writing, and is no event of its stream
`parentchain`  of `agent.forked`: the parent's hash chain at the fork, in hexadecimal

Invariants:
- What a record says depends on the record alone: whoever decodes it, whenever, gets the same.
- `decode(encode(append))` is the append; a value is never empty (a tombstone to compaction).
- Anything else than a well-formed write raises InvalidInput, which names what is wrong.
"""

import datetime as dt
import functools
import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
from aiokafka.partitioner import murmur2

from perdure.errors import EventTooLarge, InvalidData, InvalidInput, InvalidName
from perdure.model import names, vocabulary
from perdure.model.event import (
    EVENT_BYTES_MAX,
    JSON,
    NESTING_MAX,
    NUMBER_MAX,
    SEQUENCE_DIGITS,
    NewEvent,
    data_of,
    json_copy,
    utc,
)
from perdure.model.sequencing import CHAIN_BYTES, Append
from perdure.recorder import buckets

DEFAULT_STORE: Final = "default"
"""The store of a cluster that is meant where none is named."""

RECORD_BYTES_MAX: Final = 8_000_000
"""The most bytes of one record's value: a little less than what the topics take."""

BATCH_TYPE: Final = b"application/cloudevents-batch+json"
STRUCTURED_TYPE: Final = b"application/cloudevents+json"
JSON_TYPE: Final = b"application/json"

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
"""Names and values of a record's headers."""

_STORE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SCHEMA = "urn:perdure:event:"
_RARE = frozenset({"ce_correlationid", "ce_causationid", "ce_traceparent", "ce_keyid"})
_NONE_OF_THEM: Final = (None, None, None, None)
_CONTROL_TYPE = "agent.opened"
_FORK_TYPE = "agent.forked"
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


class Wire(NamedTuple):
    """A record as it is sent: its key, its value and its headers."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Fork(NamedTuple):
    """What an agent is forked from: the parent, its sequence, and its chain there (32 bytes)."""

    parent: str
    at: int
    chain: bytes


class Incoming(NamedTuple):
    """What one record asks for.

    `kind` is `append` (record the events of `append`), `claim` (raise the agent's epoch) or `fork`
    (create the agent as `fork` says, then record).
    """

    store: str
    kind: Literal["append", "claim", "fork"]
    append: Append
    fork: Fork | None = None


def store_name(name: object) -> str:
    """Check the name of a cluster's store, and give it back.

    Raises:
        InvalidName: it is none.

    >>> store_name("staging-2")
    'staging-2'
    """
    if not isinstance(name, str) or _STORE.fullmatch(name) is None:
        raise InvalidName(
            f"store name {str(name)[:80]!r} is not allowed",
            hint="1 to 63 of a-z, 0-9, _ and -, the first a letter or digit",
        )
    return name


@functools.lru_cache(maxsize=16_384)
def key_of(store: str, agent: str) -> bytes:
    """The key of an agent's records, by which they all are in one partition.

    >>> key_of("default", "airline/mia"), key_of("lab", "airline/mia")
    (b'airline/mia', b'lab/airline/mia')
    """
    return (agent if store == DEFAULT_STORE else f"{store}/{agent}").encode()


@functools.lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as the partitioners of Kafka's clients choose it (murmur2).

    >>> partition_of(b"airline/mia", 8)
    2
    """
    return (int(murmur2(key)) & 0x7FFFFFFF) % partitions


def encode(append: Append, *, store: str = DEFAULT_STORE) -> Wire:
    """The record of a write, whose events all have an id, a time and a version.

    Raises:
        EventTooLarge: it takes more than `RECORD_BYTES_MAX` bytes.
    """
    key = key_of(store, append.agent)
    if len(append.events) == 1:
        [event] = append.events
        headers = _binary(append, event, store)
        if append.by_id and event.writer_sequence is not None:
            headers.append(("ce_dedupe", b"id"))
        return Wire(key, data_of(event), headers)
    value = _encoder.encode(
        [
            _cloud_event(append, event, store, first=number == 0)
            for number, event in enumerate(append.events)
        ]
    )
    if len(value) > RECORD_BYTES_MAX:
        raise EventTooLarge(
            f"{len(append.events):,} events that are to be recorded together take {len(value):,} "
            f"bytes; {RECORD_BYTES_MAX:,} are the most in one write",
            hint=_DIVIDE,
        )
    if not buckets.fits_as_stored(store, append, len(value)):
        raise _too_many(append.agent, len(append.events), len(value))
    return Wire(key, value, [("content-type", BATCH_TYPE)])


def _too_many(agent: str, count: int, size: int) -> EventTooLarge:
    return EventTooLarge(
        f"{count:,} events of {agent} in {size:,} bytes are too many to be recorded together, or "
        "take too much where they are stored",
        hint=_DIVIDE,
    )


_DIVIDE: Final = "divide them: events in several writes are recorded in the order of the writes"


def encode_claim(agent: str, *, claim_id: str, writer: str, store: str = DEFAULT_STORE) -> Wire:
    """The record that opens an agent for exclusive writing."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", claim_id.encode()),
        *_agent_headers(agent),
        *_type_headers(_CONTROL_TYPE, 1),
        ("ce_writer", writer.encode()),
        ("ce_control", b"claim"),
    ]
    if store != DEFAULT_STORE:
        headers.append(("ce_store", store.encode()))
    return Wire(key_of(store, agent), b"null", headers)


def encode_fork(append: Append, chain: bytes, *, store: str = DEFAULT_STORE) -> Wire:
    """The record that creates an agent as a fork: its `agent.forked`, and the parent's chain."""
    wire = encode(append, store=store)
    wire.headers.append(("ce_parentchain", chain.hex().encode()))
    return wire


def decode(key: bytes | None, value: bytes | None, headers: Headers, timestamp: int) -> Incoming:
    """What a record asks for; `timestamp` is the record's, in milliseconds since 1970.

    Raises:
        InvalidInput: it is no event, or one that can't be recorded.
    """
    named = dict(headers)
    if value is None:
        raise InvalidInput(
            "the record has no value", hint="data that is empty is the JSON value null"
        )
    kind = named.get("content-type") or named.get("Content-Type") or JSON_TYPE
    try:
        if kind.startswith(b"application/cloudevents"):
            return _structured(key, value, kind, timestamp)
        return _decode_binary(key, value, named, kind, timestamp)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"a header or the key is not UTF-8: {error}") from error


def _decode_binary(
    key: bytes | None,
    value: bytes,
    headers: dict[str, bytes | None],
    kind: bytes,
    timestamp: int,
) -> Incoming:
    get = headers.get
    if get("ce_specversion") != b"1.0":
        raise _no_event(get("ce_specversion"))
    if kind != JSON_TYPE:
        _check_json_type(kind)
    event_id, source, event_type = get("ce_id"), get("ce_source"), get("ce_type")
    if not event_id or not source or not event_type:
        missing = [name for name in ("id", "source", "type") if not get(f"ce_{name}")]
        raise InvalidInput(
            f"the event has no {' and no '.join(missing)}",
            hint="CloudEvents 1.0 asks for id, source, type and specversion",
        )
    subject, writer = get("ce_subject"), get("ce_writer")
    store, agent, type_name, source_name, version, writer_name, epoch = _in_common(
        subject,
        get("ce_store"),
        key if subject is None else None,
        event_type,
        get("ce_dataschema"),
        source,
        writer,
        get("ce_epoch"),
    )
    time, number, expected = get("ce_time"), get("ce_writersequence"), get("ce_expectedsequence")
    event = NewEvent(
        type=type_name,
        data=_data(type_name, value),
        id=_text("id", event_id.decode()),
        time=_stamp(timestamp) if time is None else _time(time.decode()),
        source=source_name,
        version=version,
        writer=writer_name,
        writer_sequence=None if number is None else _number("writersequence", number, 1),
    )
    if not headers.keys().isdisjoint(_RARE):
        event = msgspec.structs.replace(
            event,
            correlation_id=_optional(headers, "correlationid"),
            causation_id=_optional(headers, "causationid"),
            traceparent=_optional(headers, "traceparent"),
            key_id=_optional(headers, "keyid"),
        )
    append = Append(
        agent,
        (event,),
        writer_name or source_name,
        epoch,
        None if expected is None else _number("expectedsequence", expected, 0),
        number is None or get("ce_dedupe") == b"id",
    )
    control, chain = get("ce_control"), get("ce_parentchain")
    if control is not None or type_name == _FORK_TYPE:
        return _special(
            store,
            append,
            None if control is None else control.decode(),
            None if chain is None else chain.decode(),
        )
    if number is not None and writer is None:
        raise _no_writer(number.decode())
    return Incoming(store, "append", append)


class _Common(NamedTuple):
    """What the headers say that most records of a writer have in common."""

    store: str
    agent: str
    type: str
    source: str
    version: int
    writer: str | None
    epoch: int | None


@functools.lru_cache(maxsize=4096)
def _in_common(  # noqa: PLR0917 - what a cache is asked by goes faster by place
    subject: bytes | None,
    store: bytes | None,
    key: bytes | None,
    event_type: bytes,
    schema: bytes | None,
    source: bytes,
    writer: bytes | None,
    epoch: bytes | None,
) -> _Common:
    return _Common(
        *_addressed(subject, store, key),
        type=event_type.decode(),
        source=_text("source", source.decode()),
        version=1 if schema is None else _version(schema, event_type),
        writer=None if writer is None else _text("writer", writer.decode()),
        epoch=None if epoch is None else _number("epoch", epoch, 0),
    )


class _CloudEvent(msgspec.Struct, omit_defaults=True):
    """An event in the JSON format of CloudEvents; extensions of others are left aside."""

    specversion: str
    id: str
    source: str
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    data_base64: str | None = None
    store: str | None = None
    writer: str | None = None
    writersequence: str | int | None = None
    epoch: str | int | None = None
    expectedsequence: str | int | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    keyid: str | None = None
    dedupe: str | None = None
    control: str | None = None
    parentchain: str | None = None


_event_decoder = msgspec.json.Decoder(_CloudEvent)
_batch_decoder = msgspec.json.Decoder(list[_CloudEvent])


def _cloud_events(value: bytes, kind: bytes) -> list[_CloudEvent]:
    """The events of a record's value, as they are named there."""
    if len(value) > RECORD_BYTES_MAX:
        raise EventTooLarge(
            f"the record's value has {len(value):,} bytes; {RECORD_BYTES_MAX:,} are the most"
        )
    media_type = kind.partition(b";")[0].strip()
    try:
        if media_type == BATCH_TYPE:
            events = _batch_decoder.decode(value)
        elif media_type == STRUCTURED_TYPE:
            events = [_event_decoder.decode(value)]
        else:
            raise InvalidInput(
                f"the content type {kind[:80]!r} is not read",
                hint=f"{STRUCTURED_TYPE.decode()} and {BATCH_TYPE.decode()} are",
            )
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidInput(f"the value is no event in JSON: {error}") from error
    if not events:
        raise InvalidInput("the batch holds no event", hint="give it at least one")
    return events


def _structured(key: bytes | None, value: bytes, kind: bytes, timestamp: int) -> Incoming:
    events = _cloud_events(value, kind)
    first = events[0]
    store, agent = _addressed(_bytes(first.subject), _bytes(first.store), key)
    for event in events[1:]:
        if event.subject not in {first.subject, None} or event.store not in {first.store, None}:
            raise InvalidInput(
                f"the batch holds events of {first.subject} and of {event.subject}",
                hint="one record holds events of one agent",
            )
    if not buckets.fits(store, agent, len(events), 0):
        raise _too_many(agent, len(events), len(value))
    writer = _text("writer", first.writer or first.source)
    append = Append(
        agent,
        tuple([_new_event(event, timestamp) for event in events]),
        writer,
        None if first.epoch is None else _number("epoch", first.epoch, 0),
        None
        if first.expectedsequence is None
        else _number("expectedsequence", first.expectedsequence, 0),
        any(event.writersequence is None or event.dedupe == "id" for event in events),
    )
    if len(events) > 1 and not buckets.fits_as_stored(store, append, len(value)):
        raise _too_many(agent, len(events), len(value))
    for event in events:
        if event.control is not None or event.type == _FORK_TYPE:
            if len(events) > 1:
                raise InvalidInput(
                    f"the batch of {len(events)} holds {event.type}, which has to come alone",
                    hint="send it as a record of its own",
                )
            return _special(store, append, event.control, event.parentchain)
    return Incoming(store, "append", append)


def _new_event(event: _CloudEvent, timestamp: int) -> NewEvent:
    if event.specversion != "1.0":
        raise _no_event(event.specversion.encode())
    if event.data_base64 is not None:
        raise InvalidInput(
            f"the data of event {event.id[:80]} is binary",
            hint="events carry JSON; save other objects as checkpoints",
        )
    if event.datacontenttype is not None:
        _check_json_type(event.datacontenttype.encode())
    if event.writersequence is not None and event.writer is None:
        raise _no_writer(str(event.writersequence))
    number = event.writersequence
    return NewEvent(
        type=event.type,
        data=_data(event.type, bytes(event.data)),
        id=_text("id", event.id),
        time=_stamp(timestamp) if event.time is None else _time(event.time),
        source=_text("source", event.source),
        version=1
        if event.dataschema is None
        else _version(event.dataschema.encode(), event.type.encode()),
        writer=None if event.writer is None else _text("writer", event.writer),
        writer_sequence=None if number is None else _number("writersequence", number, 1),
        correlation_id=_optional_text("correlationid", event.correlationid),
        causation_id=_optional_text("causationid", event.causationid),
        traceparent=_optional_text("traceparent", event.traceparent),
        key_id=_optional_text("keyid", event.keyid),
    )


def _special(store: str, append: Append, control: str | None, chain: str | None) -> Incoming:
    """A claim or a fork, from a record that names one."""
    if control == "claim":
        return Incoming(store, "claim", append)
    if control is not None:
        raise InvalidInput(f"the control {control[:80]!r} is not known", hint="claim is")
    [event] = append.events
    data = event.data if isinstance(event.data, dict) else {}
    parent, at = data.get("parent"), data.get("at")
    if chain is None or not re.fullmatch(rf"[0-9a-f]{{{2 * CHAIN_BYTES}}}", chain):
        raise InvalidInput(
            f"{append.agent} can't be forked by a record without its parent's chain",
            hint="fork with agent.fork(at, name=…)",
        )
    names.agent_name(parent)
    if type(at) is not int or not 0 <= at <= NUMBER_MAX or not isinstance(parent, str):
        raise InvalidInput(f"agent.forked has at {at!r}, which is no sequence")
    return Incoming(store, "fork", append, Fork(parent, at, bytes.fromhex(chain)))


def _binary(append: Append, event: NewEvent, store: str) -> list[tuple[str, bytes]]:
    agent, event_id, time = append.agent, event.id, event.time
    if event_id is None or time is None or event.version is None:
        raise _incomplete(event)
    writer = event.writer or append.writer
    headers = [
        *_same_headers(agent, store, event.type, event.version, event.source, writer, append.epoch),
        ("ce_id", event_id.encode()),
        ("ce_time", _time_text(time)),
    ]
    if event.writer_sequence is not None:
        headers.append(("ce_writersequence", b"%020d" % event.writer_sequence))
    if append.expected_sequence is not None:
        headers.append(("ce_expectedsequence", b"%020d" % append.expected_sequence))
    rare = event.correlation_id, event.causation_id, event.traceparent, event.key_id
    if rare == _NONE_OF_THEM:
        return headers
    if event.correlation_id is not None:
        headers.append(("ce_correlationid", event.correlation_id.encode()))
    if event.causation_id is not None:
        headers.append(("ce_causationid", event.causation_id.encode()))
    if event.traceparent is not None:
        headers.append(("ce_traceparent", event.traceparent.encode()))
    if event.key_id is not None:
        headers.append(("ce_keyid", event.key_id.encode()))
    return headers


def _cloud_event(append: Append, event: NewEvent, store: str, *, first: bool) -> _CloudEvent:
    if event.id is None or event.time is None or event.version is None:
        raise _incomplete(event)
    number, expected = event.writer_sequence, append.expected_sequence
    return _CloudEvent(
        specversion="1.0",
        id=event.id,
        source=event.source or f"/{append.agent}",
        type=event.type,
        data=msgspec.Raw(data_of(event)),
        subject=append.agent,
        time=_time_text(event.time).decode(),
        datacontenttype="application/json",
        dataschema=f"{_SCHEMA}{event.type}:{event.version}",
        store=None if store == DEFAULT_STORE else store,
        writer=event.writer or append.writer,
        writersequence=None if number is None else f"{number:0{SEQUENCE_DIGITS}d}",
        epoch=append.epoch if first else None,
        expectedsequence=f"{expected:0{SEQUENCE_DIGITS}d}"
        if first and expected is not None
        else None,
        correlationid=event.correlation_id,
        causationid=event.causation_id,
        traceparent=event.traceparent,
        keyid=event.key_id,
        dedupe="id" if append.by_id and number is not None else None,
    )


@functools.lru_cache(maxsize=4096)
def _same_headers(  # noqa: PLR0917 - what a cache is asked by goes faster by place
    agent: str,
    store: str,
    event_type: str,
    version: int,
    source: str | None,
    writer: str,
    epoch: int | None,
) -> tuple[tuple[str, bytes], ...]:
    """The headers that most events of a writer have in common."""
    of_agent, subject = _agent_headers(agent)
    headers = [
        ("ce_specversion", b"1.0"),
        of_agent if source is None else ("ce_source", source.encode()),
        subject,
        *_type_headers(event_type, version),
        ("ce_writer", writer.encode()),
    ]
    if epoch is not None:
        headers.append(("ce_epoch", b"%d" % epoch))
    if store != DEFAULT_STORE:
        headers.append(("ce_store", store.encode()))
    return tuple(headers)


@functools.lru_cache(maxsize=4096)
def _agent_headers(agent: str) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return ("ce_source", f"/{agent}".encode()), ("ce_subject", agent.encode())


@functools.lru_cache(maxsize=1024)
def _type_headers(event_type: str, version: int) -> tuple[tuple[str, bytes], ...]:
    return (
        ("content-type", JSON_TYPE),
        ("ce_type", event_type.encode()),
        ("ce_dataschema", f"{_SCHEMA}{event_type}:{version}".encode()),
    )


@functools.lru_cache(maxsize=16_384)
def _addressed(subject: bytes | None, store: bytes | None, key: bytes | None) -> tuple[str, str]:
    """Store and agent: of the event's attributes, else of the record's key."""
    if subject is not None:
        name = DEFAULT_STORE if store is None else store.decode()
        return store_name(name), names.agent_name(subject.decode())
    if key is None:
        raise InvalidInput(
            "the record names no agent", hint="give the event a subject, or the record a key"
        )
    named, _, agent = key.decode().rpartition("/")
    named, slash, namespace = named.rpartition("/")
    if slash:
        return store_name(named), names.agent_name(f"{namespace}/{agent}")
    name = DEFAULT_STORE if store is None else store.decode()
    return store_name(name), names.agent_name(key.decode())


@functools.lru_cache(maxsize=1024)
def _version(schema: bytes, event_type: bytes) -> int:
    """The version that a schema names; others' schemas name none, and mean the first."""
    text = schema.decode()
    if not text.startswith(_SCHEMA):
        return 1
    name, _, version = text.removeprefix(_SCHEMA).rpartition(":")
    if name != event_type.decode():
        raise InvalidInput(f"the schema {text[:120]} is not of the type {event_type.decode()[:80]}")
    return _number("the version in dataschema", version, 1)


@functools.lru_cache(maxsize=256)
def _check_json_type(kind: bytes) -> None:
    media_type = kind.decode().partition(";")[0].strip().lower()
    if media_type not in {"application/json", "text/json"} and not media_type.endswith("+json"):
        raise InvalidInput(
            f"the data is of type {media_type[:80]!r}, not JSON",
            hint="send JSON with the content type application/json",
        )


def _data(event_type: str, value: bytes) -> JSON:
    names.event_type(event_type)
    if len(value) > EVENT_BYTES_MAX:
        raise EventTooLarge(
            f"the data of {event_type} takes {len(value):,} bytes of JSON, {EVENT_BYTES_MAX:,} are "
            "the most in one event",
            hint="save a large object as a checkpoint and send its name",
        )
    try:
        data: JSON = _decoder.decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidData(
            f"the data of {event_type} is not JSON: {error}", hint="send JSON, UTF-8"
        ) from error
    # Counted first, in the bytes: only what has many brackets can be nested deeply.
    if value.count(b"[") + value.count(b"{") > NESTING_MAX:
        json_copy("data", data)
    if event_type in vocabulary.BUILT_IN:
        vocabulary.check(event_type, data)
    return data


def _text(what: str, text: str) -> str:
    if 0 < len(text) <= names.KEY_CHARS_MAX and text.isascii() and text.isprintable():
        return text
    return names.key(what, text)


def _optional(headers: dict[str, bytes | None], name: str) -> str | None:
    value = headers.get(f"ce_{name}")
    return None if value is None else _text(name, value.decode())


def _optional_text(what: str, text: str | None) -> str | None:
    return None if text is None else _text(what, text)


def _number(what: str, given: bytes | str | int, least: int) -> int:
    if isinstance(given, bytes) and len(given) <= SEQUENCE_DIGITS and given.isdigit():
        number = int(given)
        if least <= number <= NUMBER_MAX:
            return number
    text = given.decode() if isinstance(given, bytes) else str(given)
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:24]) <= NUMBER_MAX:
        raise InvalidData(
            f"{what} is {text[:40]!r}", hint=f"a whole number from {least} to {NUMBER_MAX}"
        )
    return int(text[:24])


def _time(text: str) -> dt.datetime:
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        time = None
    # A lower-case t or z is allowed, too (RFC 3339, section 5.6).
    return time if time is not None and time.tzinfo is dt.UTC else utc("time", text.upper())


def _time_text(time: dt.datetime) -> bytes:
    """A time in UTC as RFC 3339 has it; in a tenth of the time that `isoformat` takes."""
    return _encoder.encode(time)[1:-1]


@functools.lru_cache(maxsize=64)
def _stamp(timestamp: int) -> dt.datetime:
    try:
        return _EPOCH + dt.timedelta(milliseconds=timestamp)
    except OverflowError as error:
        raise InvalidData(
            f"the record's timestamp {timestamp} is no time", hint="give the event a time"
        ) from error


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _no_event(version: bytes | None) -> InvalidInput:
    if version is None:
        return InvalidInput(
            "the record is no CloudEvent: it has no ce_specversion",
            hint="send attributes as headers ce_id, ce_source, ce_type, ce_specversion (1.0)",
        )
    return InvalidInput(
        f"the record is of CloudEvents {version[:20].decode(errors='replace')}", hint="1.0 is read"
    )


def _no_writer(number: str) -> InvalidData:
    return InvalidData(
        f"writersequence {number[:40]} is given without a writer",
        hint="give the writer, too: the two together identify the event",
    )


def _incomplete(event: NewEvent) -> InvalidData:
    return InvalidData(
        f"the event of type {event.type} has no id, no time or no version yet",
        hint="fill them in before it is sent",
    )
