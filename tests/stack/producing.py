"""Plain producers of the topic of events: CloudEvents as any Kafka client sends them."""

import asyncio
import contextlib
import datetime as dt
import uuid

import msgspec
from aiokafka import AIOKafkaProducer

from perdure.kafka import wire
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append


@contextlib.asynccontextmanager
async def producing(cluster):
    """A `Producing` while the context lasts."""
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.kafka, acks="all", enable_idempotence=True
    )
    await producer.start()
    try:
        yield Producing(cluster, producer)
    finally:
        await producer.stop()


class Producing:
    """Sends events; each method gives partition and offset of what is durable then."""

    def __init__(self, cluster, producer):
        self.cluster, self.producer = cluster, producer

    async def send(self, value, *, key=None, headers=(), partition=None, kind="events"):
        """Send any record."""
        sent = await self.producer.send_and_wait(
            self.cluster.topic(kind), value, key, partition=partition, headers=list(headers)
        )
        return sent.partition, sent.offset

    async def event(self, agent, kind="note.taken", data=None, *, id=None, **extensions):
        """Send one event as somebody else's producer would, in binary mode."""
        headers = {
            "specversion": "1.0",
            "id": id or str(uuid.uuid4()),
            "source": "/elsewhere",
            "type": kind,
            "subject": agent,
            **extensions,
        }
        return await self.send(
            msgspec.json.encode(data),
            key=wire.key_of(extensions.get("store", "default"), agent),
            headers=[(f"ce_{name}", value.encode()) for name, value in headers.items()],
        )

    async def events(self, agent, count, *, start=0):
        """Send so many events, in their order."""
        return await asyncio.gather(
            *(self.event(agent, data={"number": start + at}) for at in range(count))
        )

    async def fork(self, agent, parent, at, chain, *, store="default"):
        """Send a record that forks an agent."""
        event = NewEvent(
            type="agent.forked",
            data={"parent": parent, "at": at},
            id=str(uuid.uuid4()),
            time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            version=1,
            writer="forker",
            writer_sequence=1,
        )
        record = wire.encode_fork(
            Append(agent, (event,), "forker", None, None, False), chain, store=store
        )
        return await self.send(record.value, key=record.key, headers=record.headers)
