"""Kafka with the plain client: what aiokafka itself takes to have the same records acknowledged.

The same promises as perdure's: `acks=all`, an idempotent producer, no linger, batches of the same
size. Keys, values and headers are ready made: nothing is timed but aiokafka.
"""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from perdure.cli.bench.rounds import Work
from perdure.kafka.producer import BATCH_BYTES
from perdure.kafka.topics import MESSAGE_BYTES_MAX
from perdure.kafka.wire import Wire
from perdure.settings import Cluster

IN_FLIGHT: Final = 1_000
"""Writes that are under way at once, of every contender."""


class RawKafka:
    """A producer, and a topic of its own that nobody reads."""

    def __init__(self, cluster: Cluster, *, topic: str = "raw") -> None:
        self._cluster = cluster
        self.topic = cluster.topic(topic)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=cluster.kafka,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            max_request_size=MESSAGE_BYTES_MAX,
        )

    async def __aenter__(self) -> Self:
        await self._make()
        await self._producer.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._producer.stop()

    async def send(self, records: Sequence[Wire]) -> Work:
        """Send records, `IN_FLIGHT` of them at a time, until all are acknowledged."""
        send, topic = self._producer.send, self.topic
        started = time.perf_counter()
        for at in range(0, len(records), IN_FLIGHT):
            sent = [
                await send(topic, key=record.key, value=record.value, headers=record.headers)
                for record in records[at : at + IN_FLIGHT]
            ]
            await asyncio.gather(*sent)
        return Work(len(records), time.perf_counter() - started)

    async def send_and_wait(self, records: Sequence[Wire]) -> Work:
        """The same, each in a task of its own that ends when its record is acknowledged."""
        send, topic = self._producer.send_and_wait, self.topic
        started = time.perf_counter()
        for at in range(0, len(records), IN_FLIGHT):
            await asyncio.gather(
                *[
                    send(topic, key=record.key, value=record.value, headers=record.headers)
                    for record in records[at : at + IN_FLIGHT]
                ]
            )
        return Work(len(records), time.perf_counter() - started)

    async def round_trips(self, records: Sequence[Wire]) -> list[float]:
        """Seconds from handing over each record to having it from a consumer."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._cluster.kafka, enable_auto_commit=False)
        partition = TopicPartition(self.topic, 0)
        await consumer.start()
        try:
            consumer.assign([partition])
            await consumer.seek_to_end(partition)
            seconds = []
            for record in records:
                coming = asyncio.ensure_future(consumer.getone())
                await asyncio.sleep(0)  # it waits for the record before there is one
                started = time.perf_counter()
                await self._producer.send(
                    self.topic,
                    key=record.key,
                    value=record.value,
                    headers=record.headers,
                    partition=0,
                )
                await coming
                seconds.append(time.perf_counter() - started)
            return seconds
        finally:
            await consumer.stop()

    async def _make(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._cluster.kafka)
        await admin.start()
        try:
            if self.topic not in await admin.list_topics():
                await admin.create_topics(
                    [
                        NewTopic(
                            name=self.topic,
                            num_partitions=self._cluster.partitions,
                            replication_factor=self._cluster.replication,
                            topic_configs={"max.message.bytes": str(MESSAGE_BYTES_MAX)},
                        )
                    ]
                )
        finally:
            await admin.close()
