"""Dead letters as operators see them: which there are, what became of them, and sending them again.

Sending one again is noted in the topic of dead letters itself, by a record without a reason:

`perdure-redriven`   where it was sent to: partition and offset, `3:17`
`perdure-topic`, `perdure-partition`, `perdure-offset`, `perdure-time`   as in the dead letter

The record that is sent has the dead letter's key, value and headers without `perdure-…`, and
`perdure-redriven`, which names the record that it was first.

Invariants:
- A letter is named by the topic, partition and offset of its record: two of one record are one.
- The note is written after the record is durable: a letter that was sent may lack its note after a
  crash, and is never noted without having been sent.
"""

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer, ConsumerRecord

from perdure.errors import InvalidInput, NotFound, Refused
from perdure.kafka.topics import MESSAGE_BYTES_MAX
from perdure.replay.topic import reachable, reading
from perdure.settings import Cluster

KIND: Final = "dead-letters"
OURS: Final = "perdure-"
"""How headers begin that a record had not when it was sent."""

_REASON: Final = "perdure-reason"

SENT_AGAIN: Final = ("events", "chunks")
"""Topics whose records can be sent again."""


class Place(NamedTuple):
    """Where a record is: kind of topic, partition, offset.

    >>> str(Place("events", 3, 17)), str(Place("chunks", 0, 4))
    ('3:17', 'chunks/0:4')
    """

    kind: str
    partition: int
    offset: int

    def __str__(self) -> str:
        place = f"{self.partition}:{self.offset}"
        return place if self.kind == "events" else f"{self.kind}/{place}"


def place(text: str) -> Place:
    """A place as it is written, `3:17`.

    Raises:
        InvalidInput: it is none.

    >>> place("chunks/0:4")
    Place(kind='chunks', partition=0, offset=4)
    """
    kind, slash, rest = text.rpartition("/")
    partition, _, offset = rest.partition(":")
    numbers = (partition, offset)
    if (slash and not kind) or not all(
        n.isascii() and n.isdecimal() and len(n) < 19 for n in numbers
    ):
        raise InvalidInput(
            f"{text[:60]!r} names no dead letter",
            hint="PARTITION:OFFSET, as `perdure dead-letters list` shows it",
        )
    return Place(kind or "events", int(partition), int(offset))


class Letter(msgspec.Struct, frozen=True):
    """A dead letter. `time` is when it was put aside, ISO 8601 in UTC; `bytes` is its body's size.

    `redriven` are the places to which it was sent again; `origin` is the record that this one was
    before it was sent again, if it was.
    """

    place: Place
    time: str
    error: str
    reason: str
    key: bytes | None
    bytes: int
    redriven: tuple[str, ...] = ()
    origin: str = ""


class Content(NamedTuple):
    """What a letter's record was: key, value, and its own headers."""

    place: Place
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


async def letters(cluster: Cluster) -> dict[Place, Letter]:
    """All dead letters that the topic has now, in the order of their records.

    Raises:
        Unreachable: Kafka does not answer.
    """
    found: dict[Place, Letter] = {}
    redriven: dict[Place, list[str]] = {}
    async for source, headers, record in _records(cluster):
        if _REASON in headers:
            found[source] = _letter(source, headers, record)
        else:
            redriven.setdefault(source, []).append(_text(headers, "redriven"))
    return {
        source: msgspec.structs.replace(found[source], redriven=tuple(redriven.get(source, ())))
        for source in sorted(found)
    }


async def letter(cluster: Cluster, wanted: Place) -> Letter:
    """One dead letter. Raises NotFound, Unreachable."""
    found = (await letters(cluster)).get(wanted)
    if found is None:
        raise NotFound(
            f"there is no dead letter {wanted}", hint="`perdure dead-letters list` shows them"
        )
    return found


async def contents(cluster: Cluster, wanted: Collection[Place]) -> AsyncIterator[Content]:
    """What the records of these letters were, one after the other, as the topic has them.

    Raises:
        Unreachable: Kafka does not answer.
    """
    missing = set(wanted)
    async for source, headers, record in _records(cluster):
        if source in missing and _REASON in headers:
            missing.discard(source)
            own = [(name, value) for name, value in record.headers if not name.startswith(OURS)]
            yield Content(source, record.key, record.value, tuple(own))


def check_unsent(chosen: Iterable[Letter]) -> None:
    """Check that none of these letters was sent again before.

    Raises:
        Refused: one was.
    """
    for each in chosen:
        if each.redriven:
            raise Refused(
                f"dead letter {each.place} was sent again already, as {', '.join(each.redriven)}",
                hint="--again sends it once more",
            )


class Redriver:
    """Sends letters again. Made by `redriver`."""

    def __init__(self, cluster: Cluster, producer: AIOKafkaProducer) -> None:
        self._cluster = cluster
        self._producer = producer

    async def send(self, dead: Content) -> Place:
        """Send a letter's record again to the topic that it came from, and note it; its new place.

        Raises:
            InvalidInput: it came from another topic than those of `SENT_AGAIN`.
            Unreachable: Kafka does not answer; whether it was sent is open.
        """
        kind = dead.place.kind
        if kind not in SENT_AGAIN:
            raise InvalidInput(
                f"dead letter {dead.place} came from topic {kind}, which takes no letters",
                hint=f"those of {' and '.join(SENT_AGAIN)} can be sent again",
            )
        headers = [(name, value or b"") for name, value in dead.headers]
        with reachable(self._cluster):
            sent = await self._producer.send_and_wait(
                self._cluster.topic(kind),
                dead.value,
                dead.key,
                headers=[*headers, ("perdure-redriven", str(dead.place).encode())],
            )
        place = Place(kind, sent.partition, sent.offset)
        note = {
            "topic": self._cluster.topic(kind),
            "partition": str(dead.place.partition),
            "offset": str(dead.place.offset),
            "time": dt.datetime.now(dt.UTC).isoformat(),
            "redriven": str(place),
        }
        with reachable(self._cluster):
            await self._producer.send_and_wait(
                self._cluster.topic(KIND),
                b"null",
                dead.key,
                headers=[(f"{OURS}{name}", value.encode()) for name, value in note.items()],
            )
        return place


@contextlib.asynccontextmanager
async def redriver(cluster: Cluster) -> AsyncIterator[Redriver]:
    """A `Redriver` while the context lasts. Raises Unreachable."""
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.kafka,
        acks="all",  # sent means: as safe as it was when it was a letter
        enable_idempotence=True,
        max_request_size=MESSAGE_BYTES_MAX,
    )
    with reachable(cluster):
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
    try:
        yield Redriver(cluster, producer)
    finally:
        await producer.stop()


async def _records(
    cluster: Cluster,
) -> AsyncIterator[tuple[Place, dict[str, bytes], ConsumerRecord[bytes, bytes]]]:
    """All letters and notes that the topic holds now: where their records were, headers, record."""
    async with reading(cluster, KIND) as reader:
        bounds = await reader.bounds(range(cluster.partitions))
        for partition, (first, end) in bounds.items():
            if first >= end:
                continue
            reader.start({partition: first})
            while await reader.position(partition) < end:
                for record in (await reader.fetch()).get(partition, []):
                    headers = {name: value or b"" for name, value in record.headers}
                    # Others than ours may have written there.
                    if (source := _source(cluster, headers)) is not None:
                        yield source, headers, record


def _letter(
    source: Place, headers: dict[str, bytes], record: ConsumerRecord[bytes, bytes]
) -> Letter:
    return Letter(
        source,
        _text(headers, "time"),
        _text(headers, "error"),
        _text(headers, "reason"),
        record.key,
        len(record.value or b""),
        origin=_text(headers, "redriven"),
    )


def _source(cluster: Cluster, headers: dict[str, bytes]) -> Place | None:
    """Where the record of a letter, or of a note, was."""
    topic, partition = _text(headers, "topic"), _text(headers, "partition")
    offset = _text(headers, "offset")
    if not all(map(_is_number, (partition, offset))):
        return None
    return Place(topic.removeprefix(f"{cluster.name}."), int(partition), int(offset))


def _text(headers: dict[str, bytes], name: str) -> str:
    return headers.get(f"{OURS}{name}", b"").decode(errors="replace")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19
