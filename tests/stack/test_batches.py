"""Batches of records on a real broker: what fails comes again."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.stack.producing import producing

from perdure.kafka import batches, topics


@pytest.fixture
async def consumer(cluster, monkeypatch):
    """A consumer of the events, in a group that has committed nothing."""
    monkeypatch.setattr(batches, "AGAIN_SECONDS", 0)
    await topics.ensure(cluster)
    consumer = AIOKafkaConsumer(
        cluster.topic("events"),
        bootstrap_servers=cluster.kafka,
        group_id=cluster.group("batches"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    yield consumer
    await consumer.stop()


async def values(consumer, count):
    """The values of the next records, so many, and the records by partition."""
    found = []
    async with asyncio.timeout(30):
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
    return [record.value for record in found], batches.by_partition(found)


async def test_a_first_batch_that_fails_is_given_again(cluster, consumer):
    """Nothing is committed yet: it comes again all the same, before what is after it."""
    async with producing(cluster) as producer:
        for value in (b"1", b"2"):
            await producer.send(value, partition=0)
        _, parts = await values(consumer, 2)
        await batches.read_again(consumer, batches.firsts(parts), ValueError("unheard of"))
        await producer.send(b"3", partition=0)
        found, _ = await values(consumer, 3)
        assert found == [b"1", b"2", b"3"]


async def test_a_later_batch_that_fails_is_given_again(cluster, consumer):
    """From its own first record on, whatever is committed."""
    async with producing(cluster) as producer:
        await producer.send(b"1", partition=0)
        _, [partition] = await values(consumer, 1)
        await producer.send(b"2", partition=0)
        _, parts = await values(consumer, 1)
        await batches.read_again(consumer, batches.firsts(parts), ValueError("unheard of"))
        assert (await values(consumer, 1))[0] == [b"2"]
        assert await consumer.committed(partition) is None


async def test_partitions_of_others_are_left_alone(cluster, consumer):
    """One that went away meanwhile keeps nobody from reading again what is still here."""
    async with producing(cluster) as producer:
        await producer.send(b"1", partition=0)
        _, parts = await values(consumer, 1)
        gone = {TopicPartition(cluster.topic("journal"), 0): 0}
        firsts = gone | batches.firsts(parts)
        await batches.read_again(consumer, firsts, ValueError("unheard of"))
        assert (await values(consumer, 1))[0] == [b"1"]
