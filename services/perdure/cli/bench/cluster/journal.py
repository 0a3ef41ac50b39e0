"""How far the recorder has come, as its journal tells: which it does when rows can be read."""

import asyncio
from typing import Final, Self

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from perdure.settings import Cluster

LATE_SECONDS: Final = 600.0

FETCH_BYTES_MAX: Final = 9 * 1024 * 1024
"""One fetch of a partition: more than the largest journal record."""


class _Record(msgspec.Struct):
    """What is looked at of a record of the journal."""

    through: int = -1


class Told:
    """Reads the journal from when it is entered."""

    def __init__(self, cluster: Cluster) -> None:
        numbers = range(cluster.partitions)
        self._events = [TopicPartition(cluster.topic("events"), number) for number in numbers]
        self._journal = [TopicPartition(cluster.topic("journal"), number) for number in numbers]
        self._through = dict.fromkeys(numbers, -1)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=cluster.kafka,
            enable_auto_commit=False,
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(self._journal)
        await self._consumer.seek_to_end(*self._journal)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def ends(self) -> dict[int, int]:
        """Where each partition of events ends now."""
        ends = await self._consumer.end_offsets(self._events)
        return {partition.partition: end for partition, end in ends.items()}

    async def caught_up(self, ends: dict[int, int]) -> None:
        """Wait until all before these places is recorded; who was suspended goes on meanwhile."""
        async with asyncio.timeout(LATE_SECONDS):
            while any(self._through[number] < end - 1 for number, end in ends.items()):
                for partition, records in (await self._consumer.getmany(timeout_ms=1_000)).items():
                    told = [msgspec.json.decode(record.value, type=_Record) for record in records]
                    number = partition.partition
                    self._through[number] = max(
                        self._through[number], *(record.through for record in told)
                    )
