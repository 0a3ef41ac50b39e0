"""The record after which a partition's agents are in another generation of the tables.

It stands in the partition of the topic of events for which it is meant, as a CloudEvent of the type
`perdure.generation.switched` without a key and without a subject: it is about no agent. So where
the tables change is a place in the log, and everybody who decides changes them there.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from perdure.kafka.wire import JSON_TYPE

TYPE: Final = "perdure.generation.switched"
_TYPE: Final = TYPE.encode()


class Switch(msgspec.Struct, frozen=True):
    """The data of the event: from here on the partition's tables are of this generation."""

    generation: int


class Record(Protocol):
    """A record of the topic of events, as Kafka's clients give it."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


_decoder = msgspec.json.Decoder(Switch)


def encode(generation: int, *, id: str, time: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Value and headers of the record; `time` is ISO 8601 in UTC."""
    headers = {
        "ce_specversion": b"1.0",
        "ce_id": id.encode(),
        "ce_source": b"/perdure/replay",
        "ce_type": _TYPE,
        "ce_time": time.encode(),
        "content-type": JSON_TYPE,
    }
    return msgspec.json.encode(Switch(generation)), list(headers.items())


def generation_of(record: Record) -> int | None:
    """The generation that a record switches to; None of any other record.

    >>> from collections import namedtuple
    >>> value, headers = encode(2, id="1", time="2026-11-01T10:00:00Z")
    >>> generation_of(namedtuple("Sent", "key value headers")(None, value, headers))
    2
    """
    # Asked of every record of the log: nearly all have a key.
    if record.key or record.value is None or ("ce_type", _TYPE) not in record.headers:
        return None
    try:
        return _decoder.decode(record.value).generation
    except msgspec.MsgspecError:
        return None  # Somebody else's: a record without an agent, as any other.
