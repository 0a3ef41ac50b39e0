"""Batches of records from Kafka, as services take them from FastStream.

FastStream commits what all partitions have reached at once, and a batch mixes partitions. Here a
batch comes as records, by partition, and each partition's position is committed by itself.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import IllegalStateError, KafkaError
from faststream.kafka import KafkaBroker, KafkaMessage
from prometheus_client import Gauge

Record: TypeAlias = ConsumerRecord[bytes | None, bytes | None]

IDLE_MILLISECONDS: Final = 100 * 365 * 24 * 3600 * 1000
"""How long FastStream may wait for a batch: for ever. When none came by then it sleeps, deaf to
what comes, for as long again."""

AGAIN_SECONDS: Final = 1.0
"""The pause after a failure that nobody thought of."""

_log = logging.getLogger("perdure.kafka")


async def as_they_are(records: tuple[Record, ...]) -> KafkaMessage:
    """FastStream's `parser`: its own raises on headers that are no text."""
    return KafkaMessage(raw_message=records, body=records, consumer=_NOBODY)


async def undecoded(message: KafkaMessage) -> Any:  # noqa: ANN401 - FastStream's type for decoders
    """FastStream's `decoder`: the records, whose values are decoded by who knows what they are."""
    return message.raw_message


def by_partition(records: Sequence[Record]) -> dict[TopicPartition, list[Record]]:
    """The records of each partition, in their order."""
    found: defaultdict[TopicPartition, list[Record]] = defaultdict(list)
    for record in records:
        found[TopicPartition(record.topic, record.partition)].append(record)
    return dict(found)


def firsts(parts: Mapping[TopicPartition, Sequence[Record]]) -> dict[TopicPartition, int]:
    """The offset at which each partition's records begin."""
    return {partition: records[0].offset for partition, records in parts.items()}


def consumer_of(broker: KafkaBroker, topic: str) -> AIOKafkaConsumer | None:
    """The consumer that reads a topic; None before it is started."""
    for subscriber in broker.subscribers:
        if topic in getattr(subscriber, "topic_names", ()):
            return getattr(subscriber, "consumer", None)
    return None


async def is_stale(consumer: AIOKafkaConsumer | None, records: Sequence[Record]) -> bool:
    """Whether records of a partition were fetched before it went away, even if it came back since.

    They come again then, from what was committed. To go on behind them would leave out what is
    between, and a position committed after them would do so for good.
    """
    last = records[-1]
    partition = TopicPartition(last.topic, last.partition)
    try:
        return consumer is None or await consumer.position(partition) <= last.offset
    except KafkaError:  # it is not ours at all
        return True


async def read_again(
    consumer: AIOKafkaConsumer | None, firsts: Mapping[TopicPartition, int], error: Exception
) -> None:
    """After a failure that nobody thought of: read these partitions from there on, after a while.

    A handler that raises would have FastStream go on with what comes next. `firsts` are offsets
    that whoever failed knows; what is committed may be nothing yet.
    """
    for partition, first in firsts.items():
        where = {"topic": partition.topic, "partition": partition.partition, "offset": first}
        _log.error("partition is read again", exc_info=error, extra=where)
    await asyncio.sleep(AGAIN_SECONDS)
    if consumer is not None:
        for partition, first in firsts.items():
            with contextlib.suppress(IllegalStateError):  # not ours any more: others read it
                consumer.seek(partition, first)


async def commit(
    consumer: AIOKafkaConsumer | None, partition: TopicPartition, position: int
) -> None:
    """Commit a position; if that fails, the next one will do, or others read it again."""
    if consumer is None:
        return
    try:
        await consumer.commit({partition: position})
    except KafkaError as error:
        where = {"topic": partition.topic, "partition": partition.partition}
        _log.info("position not committed", extra={**where, "reason": repr(error)})


def tell_lag(
    gauge: Gauge, consumer: AIOKafkaConsumer | None, partition: TopicPartition, position: int
) -> None:
    """Set how many records of a partition were not read yet; the gauge has both as labels."""
    end = consumer.highwater(partition) if consumer is not None else None
    if end is not None:
        gauge.labels(partition.topic, partition.partition).set(max(0, end - position))


class Arrivals(ConsumerRebalanceListener):  # type: ignore[misc] # it has no types
    """Has something looked at again once partitions were assigned.

    What others read of them meanwhile may have told of a change that concerns whoever reads on.
    """

    def __init__(self) -> None:
        self._count, self._looked_at = 1, 0

    async def looked(self, look: Callable[[], Awaitable[object]], *, anyway: bool = False) -> None:
        """Look, if some were assigned since the last time (at first, that is so), or anyway."""
        count = self._count
        if anyway or count != self._looked_at:
            await look()
            self._looked_at = count

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """They matter when they come back."""

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Note that some came."""
        self._count += bool(assigned)


class _Nobody:
    """In place of a consumer: positions are committed by partition, not by message."""

    async def commit(self) -> None:
        """Nothing."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Nothing."""


_NOBODY: Final = _Nobody()
