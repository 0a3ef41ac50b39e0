"""Whether a partition of the log goes on where it was recorded last, or something lies between.

Kafka's consumer goes on at the first record there is, without a word, where its position is gone:
after retention took what was not recorded yet, or in a topic that was deleted and made anew. Then
records would be missing for good, or new ones be taken for repeats of those that were recorded.
"""

from collections.abc import Callable
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from perdure.errors import Incompatible, Unreachable


class Extent(NamedTuple):
    """What Kafka has of a partition: the offsets of its first record, and after its last one.

    `committed` is the offset before which everything is recorded, None where nothing says so.
    """

    committed: int | None
    first: int
    end: int


class KafkaExtent:
    """`recorder.partition.Extents` of a topic, as the consumer of a group sees it."""

    def __init__(
        self, topic: str, group: str, consumer: Callable[[], AIOKafkaConsumer | None]
    ) -> None:
        self._topic = topic
        self._group = group
        self._consumer = consumer

    async def check(self, partition: int) -> None:
        """Check that a partition goes on where it was recorded last."""
        check_extent(self._topic, partition, self._group, await self._extent(partition))

    async def check_position(self, partition: int, position: int) -> None:
        """Check that a partition comes as far as a position that is stored."""
        check_same(self._topic, partition, position + 1, (await self._extent(partition)).end)

    async def _extent(self, partition: int) -> Extent:
        consumer, where = self._consumer(), TopicPartition(self._topic, partition)
        if consumer is None:
            raise Unreachable(f"{self._topic} is not read yet", hint="start the consumer first")
        try:
            committed = await consumer.committed(where)
            firsts = await consumer.beginning_offsets([where])
            ends = await consumer.end_offsets([where])
        except (KafkaError, IllegalStateError) as error:
            raise Unreachable(
                f"Kafka doesn't tell which offsets {self._topic} has: {error!r}",
                hint="check that its brokers are up",
            ) from error
        return Extent(committed, firsts[where], ends[where])


def check_extent(topic: str, partition: int, group: str, extent: Extent) -> None:
    """Check that all that is not recorded yet is still there, and that it is the same log.

    Raises:
        Incompatible: it is not; the message names the offsets, the hint the way out.

    >>> check_extent("perdure.events", 3, "perdure.recorder", Extent(17, 17, 20))
    >>> check_extent("perdure.events", 3, "perdure.recorder", Extent(10, 17, 20))
    Traceback (most recent call last):
    ...
    perdure.errors.Incompatible: offsets 10 to 16 of perdure.events, partition 3, are gone ...
    """
    done = extent.committed or 0
    if done < extent.first:
        raise Incompatible(
            f"offsets {done} to {extent.first - 1} of {topic}, partition {partition}, are gone from"
            " Kafka, and nothing says that they were recorded",
            hint="retention took them (the topic needs retention.ms=-1, or `perdure archive`). To "
            f"go on without them stop the recorders and set the offset of group {group} to "
            f"{extent.first} (kafka-consumer-groups --reset-offsets); if the archive has them, "
            "`perdure replay --force` then builds the tables with them",
        )
    check_same(topic, partition, done, extent.end)


def check_same(topic: str, partition: int, done: int, end: int) -> None:
    """Check that a partition that was recorded up to an offset has not ended before it.

    Raises:
        Incompatible: it has.
    """
    if end < done:
        raise Incompatible(
            f"{topic} ends at {partition}:{end}, and everything before {partition}:{done} is "
            "recorded: it is another topic than the one that was recorded",
            hint="what is sent to it would be taken for repeats. Bring the old topic back, or give "
            "the cluster another name (the setting name) to begin with empty tables",
        )
