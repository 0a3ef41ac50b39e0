"""Batches that a broker doesn't take, on a real one."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from perdure.errors import EventTooLarge
from perdure.kafka.producer import BatchProducer, added
from perdure.kafka.wire import Wire

SMALL_BYTES = 10_000


@pytest.fixture
async def topic(cluster):
    """A topic that somebody made to take small records only."""
    name = f"{cluster.name}.small"
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    settings = {"max.message.bytes": str(SMALL_BYTES)}
    await admin.create_topics([NewTopic(name, 2, 1, topic_configs=settings)])
    yield name
    await admin.close()


async def test_a_record_that_is_too_large_harms_none_after_it(cluster, topic):
    """It is refused, each time; what is written before and after it is in the log, in order."""
    producer = BatchProducer(cluster.kafka, topic)
    await producer.start()

    async def deliver(size, partition=0):
        batch = producer.batch()
        assert added(batch, Wire(b"airline/mia", b"x" * size, []))
        deadline = asyncio.get_running_loop().time() + 20
        return await producer.deliver(batch, partition, deadline)

    try:
        assert await deliver(10) == 0
        for expected in (1, 2):
            with pytest.raises(EventTooLarge, match="doesn't take a record"):
                await deliver(2 * SMALL_BYTES)
            assert await deliver(10) == expected
        assert await deliver(10, partition=1) == 0
    finally:
        await producer.close()
