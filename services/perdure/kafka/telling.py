"""The recorder's way out: the topic of the journal, and the dead letters."""

import asyncio
from collections.abc import Sequence
from typing import Final

from aiokafka.producer.message_accumulator import BatchBuilder

from perdure.errors import PerdureError
from perdure.kafka.dead_letters import DeadLetters, Record
from perdure.kafka.journal import JournalRecord, encode
from perdure.kafka.producer import BatchProducer, added
from perdure.kafka.wire import Wire
from perdure.settings import Cluster

TELL_SECONDS: Final = 10.0
"""How long a batch of the journal may take before it is tried again: copies do no harm there."""


class KafkaJournal:
    """`recorder.partition.Journal` on Kafka. `start` it first, and `close` it at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._producer = BatchProducer(cluster.kafka, cluster.topic("journal"))
        self._letters = DeadLetters(cluster)

    async def start(self) -> None:
        """Connect. Raises Unreachable where no broker answers."""
        await self._producer.start()
        await self._letters.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._producer.close()
        await self._letters.stop()

    async def tell(self, partition: int, records: Sequence[tuple[bytes, JournalRecord]]) -> None:
        """Write records with their keys to a partition, in order; durable when it returns."""
        batches: list[BatchBuilder] = []
        for key, record in records:
            wire = Wire(key, encode(record), [])
            if not batches or not added(batches[-1], wire):
                batches.append(self._producer.batch())
                added(batches[-1], wire)  # an empty one takes a record of any size
        loop = asyncio.get_running_loop()
        for batch in batches:
            await self._producer.deliver(batch, partition, loop.time() + TELL_SECONDS)

    async def put_aside(self, letters: Sequence[tuple[Record, PerdureError]]) -> None:
        """Write records to the dead letters, each with its error; durable when it returns."""
        for record, error in letters:
            await self._letters.put_aside(record, error)
