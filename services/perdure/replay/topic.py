"""Reading a topic by offsets, without a consumer group: nothing is committed."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from perdure.errors import Incompatible, NotFound, Unreachable
from perdure.kafka import lenient
from perdure.settings import Cluster

FETCH_BYTES_MAX: Final = 9 * 1024 * 1024
"""One fetch of a partition: more than the largest record."""

FETCH_RECORDS_MAX: Final = 2000
WAIT_MS: Final = 500
"""How long a fetch waits for something new."""


class Bounds(NamedTuple):
    """What a partition holds: the offsets from `first` to before `end`."""

    first: int
    end: int


class OffsetsGoneError(Exception):
    """The topic no longer has what was asked for."""


class TopicReader:
    """Some partitions of one topic, each read from a position."""

    def __init__(self, consumer: AIOKafkaConsumer, cluster: Cluster, topic: str) -> None:
        self._consumer = consumer
        self._cluster = cluster
        self._topic = topic

    async def bounds(self, partitions: Sequence[int]) -> dict[int, Bounds]:
        """What partitions hold now. Raises Unreachable."""
        asked = [self._of(partition) for partition in partitions]
        with reachable(self._cluster):
            firsts = await self._consumer.beginning_offsets(asked)
            ends = await self._consumer.end_offsets(asked)
        return {tp.partition: Bounds(firsts[tp], ends[tp]) for tp in asked}

    def start(self, positions: dict[int, int]) -> None:
        """Read these partitions, each from its position."""
        self._consumer.assign([self._of(partition) for partition in positions])
        for partition, position in positions.items():
            self.seek(partition, position)

    def seek(self, partition: int, position: int) -> None:
        """Go on from a position of a partition."""
        self._consumer.seek(self._of(partition), position)

    async def position(self, partition: int) -> int:
        """The offset from which the next fetch of a partition reads."""
        with reachable(self._cluster):
            return int(await self._consumer.position(self._of(partition)))

    async def fetch(
        self, *, wait_ms: int = WAIT_MS, records_max: int = FETCH_RECORDS_MAX
    ) -> dict[int, list[ConsumerRecord[bytes, bytes]]]:
        """What comes next, by partition; nothing where nothing came in time.

        Raises:
            OffsetsGoneError: a position is not in the topic any more.
            Unreachable: Kafka does not answer.
        """
        try:
            with reachable(self._cluster):
                found = await self._consumer.getmany(timeout_ms=wait_ms, max_records=records_max)
        except OffsetOutOfRangeError as error:
            raise OffsetsGoneError from error
        return {tp.partition: records for tp, records in found.items() if records}

    def _of(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


@contextlib.asynccontextmanager
async def reading(cluster: Cluster, kind: str) -> AsyncIterator[TopicReader]:
    """A reader of one of the cluster's topics.

    Raises:
        Unreachable: Kafka does not answer.
    """
    lenient.install()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.kafka,
        enable_auto_commit=False,
        auto_offset_reset="none",  # a position that is gone is noticed
        isolation_level="read_committed",  # as the recorder reads
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        fetch_max_wait_ms=WAIT_MS,
    )
    with reachable(cluster):
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
    try:
        yield TopicReader(consumer, cluster, cluster.topic(kind))
    finally:
        await consumer.stop()


async def check_topic(cluster: Cluster, kind: str) -> None:
    """Check that a topic is there, with as many partitions as the settings say.

    Raises:
        NotFound: it is not.
        Incompatible: it has another number of partitions.
        Unreachable: Kafka does not answer.
    """
    name = cluster.topic(kind)
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    with reachable(cluster):
        try:
            await admin.start()
            [topic] = await admin.describe_topics([name])
        finally:
            await admin.close()
    count = len(topic["partitions"])
    if not count:
        raise NotFound(
            f"there is no topic {name} at {cluster.kafka}",
            hint="check the settings kafka and name; the recorder makes the topics at its start",
        )
    if count != cluster.partitions:
        raise Incompatible(
            f"the topic {name} has {count} partitions, and the cluster's settings say"
            f" {cluster.partitions}",
            hint=f"set partitions = {count}",
        )


@contextlib.contextmanager
def reachable(cluster: Cluster) -> Iterator[None]:
    """Errors of Kafka's client within become Unreachable."""
    try:
        yield
    except OffsetOutOfRangeError:
        raise
    except (KafkaError, OSError) as error:
        raise Unreachable(
            f"Kafka at {cluster.kafka} does not answer: {error!r}",
            hint="start it, or check its address",
        ) from error
