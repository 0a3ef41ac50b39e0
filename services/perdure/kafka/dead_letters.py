"""The topic of dead letters: records that can't be used, as they were, with the reason.

Key, value and headers are those of the record. Added are

`perdure-reason`     what is wrong, in a sentence
`perdure-error`      the name of a class of `perdure.errors`, or of what else was raised
`perdure-topic`, `perdure-partition`, `perdure-offset`   where the record is
`perdure-time`       when it was put aside, ISO 8601 in UTC

A record that is read again after a crash may be put aside again: topic, partition and offset tell.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Final, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from perdure.errors import PerdureError, Unreachable
from perdure.kafka.topics import LETTER_BYTES_MAX
from perdure.settings import Cluster

ADDED: Final = frozenset(
    f"perdure-{name}" for name in ("reason", "error", "topic", "partition", "offset", "time")
)
"""The headers that a dead letter has beside those of its record."""

REASON_CHARACTERS_MAX: Final = 2000


class Record(Protocol):
    """A record of Kafka, as its clients give it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def headers_of(record: Record, error: Exception, now: dt.datetime) -> list[tuple[str, bytes]]:
    """The headers of a record's dead letter; of one that was a dead letter before, the new ones."""
    reason = str(error) if isinstance(error, PerdureError) else repr(error)
    added = {
        "reason": reason[:REASON_CHARACTERS_MAX],
        "error": type(error).__name__,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "time": now.isoformat(),
    }
    kept = [(name, value or b"") for name, value in record.headers if name not in ADDED]
    return [*kept, *((f"perdure-{name}", value.encode()) for name, value in added.items())]


class DeadLetters:
    """Writes dead letters. Each method raises Unreachable where Kafka does not answer."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self._cluster.kafka,
            acks="all",
            # Not idempotent: once a batch has expired, such a producer's numbers are out of order
            # for good. A letter that is sent twice does no harm.
            enable_idempotence=False,
            max_request_size=LETTER_BYTES_MAX,
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise self._unreachable(error) from error
        self._producer = producer

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def put_aside(self, record: Record, error: Exception) -> None:
        """Make a dead letter of a record; durable when it returns."""
        if self._producer is None:
            raise Unreachable("dead letters are not connected yet", hint="start them first")
        try:
            await self._producer.send_and_wait(
                self._cluster.topic("dead-letters"),
                # A record may have neither key nor value; this client sends none of those.
                b"" if record.key is None and record.value is None else record.value,
                record.key,
                headers=headers_of(record, error, dt.datetime.now(dt.UTC)),
            )
        except KafkaError as problem:
            raise self._unreachable(problem) from problem

    def _unreachable(self, error: Exception) -> Unreachable:
        topic = self._cluster.topic("dead-letters")
        return Unreachable(
            f"Kafka at {self._cluster.kafka} doesn't take a record of {topic}: {error}",
            hint="start it, or check its address",
        )
