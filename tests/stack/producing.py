"""Plain producers of the topic of events: what any Kafka client sends, events and others."""

import asyncio
import contextlib
import datetime as dt
import json
import uuid
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer

from perdure.kafka import wire
from perdure.kafka.topics import MESSAGE_BYTES_MAX
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append


class Record(NamedTuple):
    """A record as a program sends it: texts or bytes."""

    key: str | bytes | None
    value: str | bytes | None
    headers: dict[str, str | bytes]


def attributes(agent, **others):
    """An event of somebody else, without its data; what is None is left out."""
    event = {"specversion": "1.0", "id": "e1", "source": "/elsewhere", "type": "seat.wanted"}
    event |= {"subject": agent, **others}
    return {name: value for name, value in event.items() if value is not None}


def binary(agent, value="{}", *, store=None, key=None, content_type=None, **others):
    """One event in the binary mode; what is None is left out."""
    event = attributes(agent, store=store, **others)
    headers = {f"ce_{name}": text for name, text in event.items()}
    headers |= {} if content_type is None else {"content-type": content_type}
    return Record(key or wire.key_of(store or "default", agent), value, headers)


def structured(agent, *events, store=None, kind="cloudevents-batch+json"):
    """Events in JSON, as one record."""
    value = json.dumps(events if "batch" in kind else events[0])
    key = wire.key_of(store or "default", agent)
    return Record(key, value, {"content-type": f"application/{kind}"})


@contextlib.asynccontextmanager
async def producing(cluster):
    """A `Producing` while the context lasts."""
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.kafka,
        acks="all",
        enable_idempotence=True,
        max_request_size=MESSAGE_BYTES_MAX,
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

    async def record(self, record):
        """Send a record as it is."""
        headers = [(name, as_bytes(value)) for name, value in record.headers.items()]
        return await self.send(as_bytes(record.value), key=as_bytes(record.key), headers=headers)

    async def event(self, agent, kind="note.taken", data=None, *, id=None, **extensions):
        """Send one event as somebody else's producer would, in binary mode."""
        value = msgspec.json.encode(data)
        return await self.record(
            binary(agent, value, id=id or str(uuid.uuid4()), type=kind, **extensions)
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


def as_bytes(value):
    """Text as bytes; anything else as it is."""
    return value.encode() if isinstance(value, str) else value
