"""Events: CloudEvents 1.0 with perdure's extensions.

Invariants:
- The data of an event equals what was given, value for value, and is a copy of it: changing
  the caller's object later changes nothing.
- `encode` is deterministic: the same event gives the same bytes on every machine and store. They
  are what is stored, and what the hash chain runs over.
"""

import datetime as dt
import math
import operator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from perdure.errors import Corrupt, EventTooLarge, InvalidData, PerdureError
from perdure.model import names

if TYPE_CHECKING:
    JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
else:
    JSON = Any  # msgspec resolves annotations, and knows no recursive alias

EVENT_BYTES_MAX: Final = 1_000_000
"""The most bytes of JSON in one event's data: what Kafka's brokers take by default, less the rest
of the record, so that an agent that fits one machine fits the cluster."""

NESTING_MAX: Final = 128
"""How deep lists and objects may lie in each other in one event's data. Whatever reads JSON
recurses, on a stack of which its caller has used an unknown part: this much is left anywhere, so
what was recorded once can always be read back."""

NUMBER_MAX: Final = 2**53 - 1
"""The largest sequence or version a caller may give: the last one that every reader of JSON holds
exactly (RFC 8259, section 6), with room above it for a writer to count on in 64 bits."""

SEQUENCE_DIGITS: Final = 20
"""Width of the zero-padded `sequence` on the wire: CloudEvents orders the attribute as text."""

_encoder = msgspec.json.Encoder()

_TEXT_ATTRIBUTES: Final = (
    "id",
    "source",
    "writer",
    "correlation_id",
    "causation_id",
    "traceparent",
    "key_id",
)
_attributes_of = operator.attrgetter("time", "version", "writer_sequence", *_TEXT_ATTRIBUTES)
_NO_ATTRIBUTES: Final = (None,) * (3 + len(_TEXT_ATTRIBUTES))


class NewEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event that is not recorded yet: what `emit_many` takes, and what `emit` builds.

    `id`, or `writer` with `writer_sequence`, make a write idempotent: given again, the event that
    is already recorded is the answer. Everything left out is filled in when it is recorded.

    >>> NewEvent(type="decision.made", data={"choice": "refund"}).type
    'decision.made'
    """

    type: str
    data: object = None
    id: str | None = None
    time: dt.datetime | None = None
    source: str | None = None
    version: int | None = None
    writer: str | None = None
    writer_sequence: int | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    key_id: str | None = None


class Prepared(NewEvent, frozen=True, kw_only=True, gc=False):
    """A new event that was checked: `data` is a copy, and `encoded` the same in JSON.

    >>> prepared(NewEvent(type="note", data=[1, 2])).encoded
    b'[1,2]'
    """

    encoded: bytes


def data_of(event: NewEvent) -> bytes:
    """The data of a new event as JSON.

    >>> data_of(NewEvent(type="note", data=[1, 2]))
    b'[1,2]'
    """
    return event.encoded if isinstance(event, Prepared) else _encoder.encode(event.data)


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A recorded event. `sequence` counts 1, 2, 3 … within its agent (`subject`).

    `epoch` is the fencing token of the exclusive opening that wrote it, 0 for a shared
    contribution. `version` is the version of its type's data. Times are in UTC.

    >>> event = Event(
    ...     id="01936f5e-0000-7000-8000-000000000000", type="plan.generated",
    ...     subject="airline/mia", source="/airline/mia", sequence=7,
    ...     time=dt.datetime(2026, 11, 1, tzinfo=dt.UTC), writer="w", writer_sequence=7,
    ...     data={"steps": ["look", "book"]})
    >>> event.position
    'airline/mia@7'
    >>> decode(encode(event)) == event
    True
    """

    id: str
    type: str
    subject: str
    source: str
    sequence: int
    time: dt.datetime
    writer: str
    writer_sequence: int = msgspec.field(name="writersequence")
    epoch: int = 0
    version: int = 1
    correlation_id: str | None = msgspec.field(name="correlationid", default=None)
    causation_id: str | None = msgspec.field(name="causationid", default=None)
    traceparent: str | None = None
    expected_sequence: int | None = msgspec.field(name="expectedsequence", default=None)
    key_id: str | None = msgspec.field(name="keyid", default=None)
    data: JSON = None

    @property
    def position(self) -> str:
        """Where the event stands: give it to a read as `at_least=` to see at least this event."""
        return f"{self.subject}@{self.sequence}"

    def to_cloudevent(self) -> dict[str, JSON]:
        """The event in the JSON format of CloudEvents 1.0 (section 3 of its JSON event format).

        `sequence` is text of 20 digits; `dataschema` names the type and version of the data.
        """
        attributes: dict[str, JSON] = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time.isoformat().replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "dataschema": f"urn:perdure:event:{self.type}:{self.version}",
            "sequence": f"{self.sequence:0{SEQUENCE_DIGITS}d}",
            "writer": self.writer,
            "writersequence": f"{self.writer_sequence:0{SEQUENCE_DIGITS}d}",
            "epoch": self.epoch,
        }
        expected = self.expected_sequence
        optional = {
            "correlationid": self.correlation_id,
            "causationid": self.causation_id,
            "traceparent": self.traceparent,
            "expectedsequence": None if expected is None else f"{expected:0{SEQUENCE_DIGITS}d}",
            "keyid": self.key_id,
        }
        attributes |= {name: value for name, value in optional.items() if value is not None}
        attributes["data"] = self.data
        return attributes


class Sent(Event, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An event that is acknowledged and has no sequence yet: that is 0 until it is recorded.

    `log_position` is where it lies in the cluster's log, `partition:offset`.

    >>> sent = Sent(
    ...     id="01936f5e-0000-7000-8000-000000000000", type="plan.generated",
    ...     subject="airline/mia", source="/airline/mia", sequence=0,
    ...     time=dt.datetime(2026, 11, 1, tzinfo=dt.UTC), writer="w", writer_sequence=7,
    ...     log_position="3:1234")
    >>> sent.position
    'airline/mia@3:1234'
    """

    log_position: str

    @property
    def position(self) -> str:
        """Where the event lies: give it to a read as `at_least=` to see at least this event."""
        return f"{self.subject}@{self.log_position}"


class _Id(msgspec.Struct):
    """What is read of an event to index it."""

    id: str
    sequence: int


_decoder = msgspec.json.Decoder(Event)
_list_decoder = msgspec.json.Decoder(list[Event])
_ids_decoder = msgspec.json.Decoder(list[_Id])
_raw_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def encode(event: Event) -> bytes:
    """The bytes of an event, as they are stored: compact JSON, attributes in a fixed order."""
    return _encoder.encode(event)


def decode(data: bytes | msgspec.Raw) -> Event:
    """An event from its stored bytes.

    Raises:
        Corrupt: the bytes are no event.
    """
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"stored bytes are no event: {error}") from error


def decode_all(data: bytes) -> list[Event]:
    """The events of a JSON array of stored events."""
    try:
        return _list_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"stored bytes are no list of events: {error}") from error


def ids_of_all(data: bytes) -> list[tuple[str, int]]:
    """Id and sequence of each event of a JSON array of stored events."""
    try:
        return [(event.id, event.sequence) for event in _ids_decoder.decode(data)]
    except msgspec.MsgspecError as error:
        raise Corrupt(f"stored bytes are no list of events: {error}") from error


def split_all(data: bytes) -> list[bytes]:
    """The stored bytes of each event of a JSON array of stored events."""
    try:
        return [bytes(raw) for raw in _raw_list_decoder.decode(data)]
    except msgspec.MsgspecError as error:
        raise Corrupt(f"stored bytes are no list of events: {error}") from error


def json_copy(what: str, data: object, *, bytes_max: int = EVENT_BYTES_MAX) -> tuple[JSON, bytes]:
    """A copy of JSON-able data, equal to it value for value, and its JSON.

    Raises:
        InvalidData: it is not JSON-able; the message names the path of the value that isn't.
        EventTooLarge: it takes more than `bytes_max` bytes.

    >>> json_copy("data", {"seats": ["12A"]})
    ({'seats': ['12A']}, b'{"seats":["12A"]}')
    >>> json_copy("data", {"price": float("nan")})
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: data["price"] is nan, which JSON doesn't have (use None or a str)
    """
    try:
        encoded = _encoder.encode(data)
        if len(encoded) > bytes_max:
            raise EventTooLarge(
                f"{what} takes {len(encoded):,} bytes of JSON, {bytes_max:,} are the most in one "
                "event",
                hint="save a large object with agent.checkpoint(name, value) and emit its name",
            )
        copied: JSON = msgspec.json.decode(encoded)
        # Counted first, in the bytes: only what has many brackets can be nested deeply.
        if encoded.count(b"[") + encoded.count(b"{") > NESTING_MAX and _is_deep(copied):
            raise _too_deep(what)
        if copied == data:
            return copied, encoded
    except (PerdureError, RecursionError) as error:
        if isinstance(error, PerdureError):
            raise
        raise _too_deep(what) from error
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        _explain(what, data)
        raise InvalidData(f"{what} is not JSON: {error}", hint="convert it first") from error
    _explain(what, data)
    # All of it is JSON, and still the copy is not equal: there are tuples, which become lists.
    return copied, encoded


def _is_deep(value: JSON) -> bool:
    """Whether containers lie in each other deeper than `NESTING_MAX`."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(NESTING_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return bool(level)


def _too_deep(what: str) -> InvalidData:
    return InvalidData(
        f"{what} is nested deeper than {NESTING_MAX} lists and objects, or holds itself",
        hint="save such an object with agent.checkpoint(name, value)",
    )


def _explain(path: str, value: object) -> None:
    """Raise InvalidData at the first value that JSON can't hold."""
    kind = type(value)
    if value is None or kind in {bool, int}:
        return
    if isinstance(value, float) and kind is float:
        if not math.isfinite(value):
            raise InvalidData(
                f"{path} is {value}, which JSON doesn't have", hint="use None or a str"
            )
        return
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidData(
                f"{path} holds the lone surrogate {value[error.start]!r}",
                hint="text has to be valid Unicode",
            ) from error
        return
    if isinstance(value, list | tuple) and kind in {list, tuple}:
        for index, item in enumerate(value):
            _explain(f"{path}[{index}]", item)
        return
    if isinstance(value, dict) and kind is dict:
        for name, item in value.items():
            if not isinstance(name, str):
                raise InvalidData(
                    f"{path} has the key {name!r} of type {type(name).__name__}",
                    hint="JSON objects have text keys",
                )
            _explain(f'{path}["{name}"]', item)
        return
    raise InvalidData(
        f"{path} is of type {kind.__name__}, which is not JSON",
        hint="convert it, or save the object with agent.checkpoint(name, value)",
    )


def utc(what: str, time: object) -> dt.datetime:
    """A point in time, in UTC: from a datetime with a zone, or from ISO 8601 text with one.

    Raises:
        InvalidData: it is neither, or has no zone.

    >>> utc("time", "2026-11-01T11:00+01:00").isoformat()
    '2026-11-01T10:00:00+00:00'
    """
    if isinstance(time, str):
        text = time
        try:
            time = dt.datetime.fromisoformat(text)
        except ValueError as error:
            raise InvalidData(
                f"{what} {text[:60]!r} is no time", hint="for example 2026-11-01T10:00Z"
            ) from error
    if not isinstance(time, dt.datetime):
        raise InvalidData(
            f"{what} is of type {type(time).__name__}, not a time",
            hint="give a datetime with a zone, or text such as 2026-11-01T10:00Z",
        )
    if time.tzinfo is None or time.utcoffset() is None:
        raise InvalidData(
            f"{what} {time.isoformat()} has no zone",
            hint="add one: 2026-11-01T10:00Z, or datetime(..., tzinfo=timezone.utc)",
        )
    try:
        return time.astimezone(dt.UTC)
    except OverflowError as error:
        raise InvalidData(
            f"{what} {time.isoformat()} lies outside the years 1 to 9999 in UTC",
            hint="give a time that UTC has",
        ) from error


def checked_sequence(what: str, value: object, *, least: int = 0) -> int:
    """A sequence that a caller gave: a whole number from `least` on.

    >>> checked_sequence("at", "7")
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: at is '7', of type str, not a sequence (give ...)
    """
    if type(value) is not int or value < least:
        raise InvalidData(
            f"{what} is {value!r}, of type {type(value).__name__}, not a sequence",
            hint=f"give a whole number from {least} on",
        )
    if value > NUMBER_MAX:
        raise InvalidData(
            f"{what} has {value.bit_length()} bits: it is larger than any store can hold",
            hint=f"give a whole number up to {NUMBER_MAX}",
        )
    return value


def prepared(event: NewEvent) -> Prepared:
    """A new event with everything checked and its data copied.

    Raises:
        InvalidName: its type is no event type.
        InvalidData: its data is not JSON-able, a time has no zone, a number is no sequence.
        EventTooLarge: its data is over `EVENT_BYTES_MAX`.

    >>> prepared(NewEvent(type="note", data=(1, 2))).data
    [1, 2]
    """
    data, encoded = json_copy("data", event.data)
    names.event_type(event.type)
    if _attributes_of(event) == _NO_ATTRIBUTES:
        return Prepared(type=event.type, data=data, encoded=encoded)
    for name in _TEXT_ATTRIBUTES:
        text = getattr(event, name)
        if text is not None:
            names.key(name, text)
    if event.version is not None:
        checked_sequence("version", event.version, least=1)
    if event.writer_sequence is not None:
        checked_sequence("writer_sequence", event.writer_sequence, least=1)
        if event.writer is None:
            raise InvalidData(
                f"writer_sequence {event.writer_sequence} is given without a writer",
                hint="give writer= too: the two together identify the event",
            )
    time = None if event.time is None else utc("time", event.time)
    return Prepared(
        type=event.type,
        data=data,
        id=event.id,
        time=time,
        source=event.source,
        version=event.version,
        writer=event.writer,
        writer_sequence=event.writer_sequence,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        traceparent=event.traceparent,
        key_id=event.key_id,
        encoded=encoded,
    )
