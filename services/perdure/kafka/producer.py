"""Batches of records to one topic, acknowledged by all of its replicas in sync."""

import asyncio
import contextlib
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from perdure.errors import EventTooLarge, Unreachable
from perdure.kafka.wire import Wire

BATCH_BYTES: Final = 512 * 1024
"""Bytes of records that are sent at once to a partition; a larger record goes alone."""

STOP_SECONDS: Final = 5.0
"""How long a connection may take to end what is under way."""

RECONNECT_SECONDS_MAX: Final = 1.0
"""The longest pause before Kafka is asked for a new connection again."""

REPLACED_SECONDS: Final = 30.0
"""The same of one that failed in another partition: what it sends to others may go through."""


def added(builder: BatchBuilder, record: Wire, timestamp: int | None = None) -> bool:
    """Add a record to a batch; False where it is full. `timestamp` is in ms since 1970, or now."""
    metadata = builder.append(
        timestamp=timestamp, key=record.key, value=record.value, headers=record.headers
    )
    return metadata is not None


class BatchProducer:
    """A connection to Kafka, made anew where it can't go on."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None
        self._maker: AIOKafkaProducer | None = None  # of batches, also while there is no producer
        self._starting = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()
        self._limits: dict[AIOKafkaProducer, set[asyncio.Timeout]] = {}
        """Until when those wait who deliver by a producer."""

    async def start(self) -> None:
        """Connect.

        Raises:
            Unreachable: no broker answers.
        """
        await self._started()

    async def close(self) -> None:
        """Send what is under way, and disconnect."""
        if self._producer is not None:
            await self._end(self._producer, STOP_SECONDS)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def batch(self) -> BatchBuilder:
        """An empty batch, which takes one record of any size, or several of `BATCH_BYTES`."""
        if self._maker is None:
            raise Unreachable(f"{self._topic} is not connected yet", hint="start it first")
        return self._maker.create_batch()

    async def deliver(self, builder: BatchBuilder, partition: int, deadline: float) -> int:
        """Have a batch acknowledged; the offset of its first record.

        Batches of a partition are in the log in the order of the calls.

        Raises:
            Unreachable: it is not acknowledged by the deadline (of the loop's clock).
            EventTooLarge: the topic doesn't take a record of this size.
        """
        producer = self._producer
        try:
            async with asyncio.timeout_at(deadline) as limit:
                producer = self._producer or await self._reconnected()
                limits = self._limits.setdefault(producer, set())
                limits.add(limit)
                try:
                    sending = producer.send_batch(builder, self._topic, partition=partition)
                    metadata = await (await sending)
                finally:
                    limits.discard(limit)
        except TimeoutError as error:
            raise Unreachable(
                f"Kafka at {self._bootstrap} did not acknowledge the write in time: it may still "
                "be recorded, once",
                hint="read what is recorded before you write it again",
            ) from error
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            if producer is not None:
                # It has counted the batch, and what it numbers next would be out of order.
                self._replace(producer)
            raise EventTooLarge(
                f"the topic {self._topic} doesn't take a record of {builder.size():,} bytes",
                hint="make the topics with `perdure serve`, which lets them take 8 MiB",
            ) from error
        except (KafkaError, OSError) as error:
            if isinstance(error, ProducerClosed) and producer is not self._producer:
                # It was replaced in between, and has not taken the batch.
                return await self.deliver(builder, partition, deadline)
            if producer is not None:
                self._replace(producer)
            raise Unreachable(
                f"Kafka at {self._bootstrap} did not take the write: {error!r}",
                hint="read what is recorded before you write it again",
            ) from error
        if metadata.offset < 0:  # it was there already, and the broker has forgotten where
            raise Unreachable(
                f"Kafka at {self._bootstrap} has the write, and doesn't know its offset any more",
                hint="read what is recorded before you write it again",
            )
        return int(metadata.offset)

    async def _reconnected(self) -> AIOKafkaProducer:
        """The producer; one that was let go of is made anew as soon as Kafka answers."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Unreachable),
            wait=wait_random_exponential(multiplier=0.1, max=RECONNECT_SECONDS_MAX),
        ):
            with attempt:
                return await self._started()
        raise Unreachable(f"Kafka at {self._bootstrap} was not asked", hint="try again")

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    acks="all",  # every in-sync replica has it before it is acknowledged
                    enable_idempotence=True,  # a batch that is sent again is in the log once
                    compression_type=None,
                    max_batch_size=BATCH_BYTES,
                    linger_ms=0,  # a lone write is not held up: callers gather what comes together
                )
                try:
                    await producer.start()
                except (KafkaError, OSError) as error:
                    await producer.stop()
                    raise Unreachable(
                        f"Kafka at {self._bootstrap} does not answer: {error}",
                        hint="start it, or check its address",
                    ) from error
                self._producer = self._maker = producer
            return self._producer

    def _replace(self, producer: AIOKafkaProducer) -> None:
        """Let go of a producer that failed: what it numbers the broker may not take any more."""
        if self._producer is producer:
            self._producer = None
            task = asyncio.create_task(self._end(producer, REPLACED_SECONDS))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self, producer: AIOKafkaProducer, seconds: float) -> None:
        """End a connection. Whoever waits for what Kafka doesn't take by then is told."""
        await _stop(producer, seconds)
        for limit in self._limits.pop(producer, set()):
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())


async def _stop(producer: AIOKafkaProducer, seconds: float) -> None:
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(seconds):
            await producer.stop()
            return
    # An idempotent producer tries for ever: end its sender, which has no shorter way.
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(STOP_SECONDS):
            await producer._sender.close()  # noqa: SLF001
    await producer.client.close()
