"""How far services have come in what they read, as their commits say."""

import asyncio
import functools
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from perdure.settings import Cluster

POLL_SECONDS: Final = 0.02
LATE_SECONDS: Final = 600.0

_until_none: Final = AsyncRetrying(wait=wait_fixed(POLL_SECONDS), retry=retry_if_result(bool))
"""Asks again until the answer is nothing."""


class Progress:
    """Asks Kafka what is in a topic, and what a service has committed of it.

    A service commits after all that it does with a record: nobody else has to be asked meanwhile.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._consumer = AIOKafkaConsumer(bootstrap_servers=cluster.kafka, enable_auto_commit=False)
        self._admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        await self._admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()
        await self._consumer.stop()

    async def caught_up(self, service: str, kind: str) -> None:
        """Wait until a service has committed all that is in its topic of this kind now."""
        partitions = [
            TopicPartition(self._cluster.topic(kind), number)
            for number in range(self._cluster.partitions)
        ]
        ends = await self._consumer.end_offsets(partitions)
        async with asyncio.timeout(LATE_SECONDS):
            await _until_none(functools.partial(self._lag, service, ends))

    async def _lag(self, service: str, ends: dict[TopicPartition, int]) -> int:
        """How many records are not committed yet."""
        done = await self._admin.list_consumer_group_offsets(
            self._cluster.group(service), partitions=list(ends)
        )
        lag = 0
        for partition, end in ends.items():
            lag += int(end) - max(0, int(done[partition].offset) if partition in done else 0)
        return lag
