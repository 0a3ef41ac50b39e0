"""`ports.EventLog` of an agent process: writes go to Kafka, and what became of them comes back.

Invariants:
- Appends of one caller are in the log in the order in which they were called: of one partition, a
  single batch is under way at a time.
- What is acknowledged is on the disks of as many brokers as the topic asks for; it is never
  acknowledged on a guess.
- Each event has an id, a time and a writer's number before it is sent, so that it is recorded once,
  however often it is delivered, and alike by whoever decides it.
"""

import asyncio
import datetime as dt
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import uuid_utils
from aiokafka.producer.message_accumulator import BatchBuilder

from perdure.errors import PerdureError, StoreClosed, Unreachable
from perdure.kafka import wire
from perdure.kafka.journal import Entry
from perdure.kafka.producer import BatchProducer, added
from perdure.model.event import Event, NewEvent, Prepared, Sent, data_of
from perdure.model.sequencing import Append, Head, link
from perdure.ports import Ack

DELIVERY_SECONDS: Final = 120.0
"""How long a write waits for Kafka before it fails: Kafka's own default."""

QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes that wait to be acknowledged before a further write is refused."""

SENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes that wait to be acknowledged up to which a write counts as sent at once."""

RECORDED_SECONDS: Final = 120.0
"""How long a write that is in the log waits to be recorded, when it waits for that; closing waits
as long for all of them."""

CLAIMS_MAX: Final = 5
"""How often a claim is made whose epoch a recorder took with it when it ended."""

Clock = Callable[[], dt.datetime]


class Verdicts(Protocol):
    """How it is learned what became of a record."""

    async def wait(self, store: str, partition: int, offset: int, timestamp: int) -> Entry:
        """The journal's entry of a record of this timestamp (ms since 1970), as soon as it is.

        Raises Unavailable when that can't be learned now.
        """
        ...


class KafkaLog:
    """`ports.EventLog` on a topic of Kafka. `start` it first, and `close` it at the end."""

    def __init__(
        self,
        *,
        bootstrap: str,
        topic: str,
        partitions: int,
        store: str,
        writer: str,
        verdicts: Verdicts,
        chain_at: Callable[[str, int], Awaitable[bytes]],
        version_of: Callable[[str], int],
        clock: Clock = lambda: dt.datetime.now(dt.UTC),
        delivery_seconds: float = DELIVERY_SECONDS,
    ) -> None:
        self._topic = topic
        self._partitions = partitions
        self._store = store
        self._writer = writer
        self._verdicts = verdicts
        self._chain_at = chain_at
        self._version_of = version_of
        self._clock = clock
        self._count = 0
        self._producer = BatchProducer(bootstrap, topic)
        self._room = _Room(bootstrap)
        self._lanes: dict[int, _Lane] = {}
        self._delivery_seconds = delivery_seconds
        self._waiting: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Connect to Kafka.

        Raises:
            Unreachable: no broker answers.
        """
        await self._producer.start()

    async def close(self) -> None:
        """Finish what is under way, verdicts included, and end the connection."""
        self._closed = True
        for lane in self._lanes.values():
            await lane.drain()
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=RECORDED_SECONDS)
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        await self._producer.close()

    async def claim(self, agent: str) -> Head:  # noqa: D102 - what it promises is said in ports.py
        error: PerdureError = Unreachable(f"agent {agent} could not be opened", hint="try again")
        for _ in range(CLAIMS_MAX):
            record = wire.encode_claim(
                agent, claim_id=_new_id(), writer=self._writer, store=self._store
            )
            entry = await self._decided(record)
            if entry.outcome == "opened":
                chain = bytes.fromhex(entry.chain)
                return Head(agent, entry.sequence, entry.epoch, chain, None, {})
            error = _error(entry)
            if not isinstance(error, Unreachable):
                break
        raise error

    def append(self, append: Append, ack: Ack) -> Awaitable[list[Event]]:  # noqa: D102
        now = self._clock()
        events, by_id = [], False
        for event in append.events:
            events.append(self._filled(append, event, now))
            by_id = by_id or event.id is not None
        filled = Append(
            append.agent,
            tuple(events),
            append.writer,
            append.epoch,
            append.expected_sequence,
            by_id,
        )
        record = wire.encode(filled, store=self._store)
        future: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()
        partition = wire.partition_of(record.key, self._partitions)
        lane = self._lane(partition)
        if ack == "sent" and self._room.is_wide:
            lane.put(record, _milliseconds(now), _NOBODY)
            future.set_result(_sent(filled, ""))
        else:
            lane.put(record, _milliseconds(now), _Write(self, filled, ack, future))
        return future

    async def fork(self, append: Append, parent: str, at: int) -> tuple[Head, Event]:  # noqa: D102
        chain = await self._chain_at(parent, at)
        [draft] = append.events
        event = self._filled(append, draft, self._clock())
        filled = Append(append.agent, (event,), append.writer, append.epoch, by_id=False)
        entry = await self._decided(wire.encode_fork(filled, chain, store=self._store))
        [recorded] = entry.answers()
        head = Head(
            append.agent,
            recorded.sequence,
            entry.epoch,
            link(chain, bytes(entry.events[0])),
            recorded.time,
            {},
        )
        return head, recorded

    async def settle(self, agent: str) -> None:
        """Nothing to do: the services store compactly by themselves."""

    def _filled(self, append: Append, event: NewEvent, now: dt.datetime) -> Prepared:
        """An event with all that its record needs."""
        writer, number = event.writer, event.writer_sequence
        if writer is None or (writer == append.writer and number is None):
            writer = append.writer
            self._count += 1
            number = self._count
        return Prepared(
            type=event.type,
            data=event.data,
            id=event.id or _new_id(),
            time=event.time or now,
            source=event.source,
            version=event.version or self._version_of(event.type),
            writer=writer,
            writer_sequence=number,
            correlation_id=event.correlation_id,
            causation_id=event.causation_id,
            traceparent=event.traceparent,
            key_id=event.key_id,
            encoded=data_of(event),
        )

    def _lane(self, partition: int) -> "_Lane":
        if self._closed:
            raise StoreClosed("the store is closed", hint="connect again")
        lane = self._lanes.get(partition)
        if lane is None:
            lane = _Lane(self._producer, self._room, partition, self._delivery_seconds)
            self._lanes[partition] = lane
        return lane

    async def _decided(self, record: wire.Wire) -> Entry:
        """Send a record, and wait for what becomes of it."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        partition = wire.partition_of(record.key, self._partitions)
        timestamp = _milliseconds(self._clock())
        self._lane(partition).put(record, timestamp, _Offset(future))
        return await self._verdict(partition, await future, timestamp)

    async def _verdict(self, partition: int, offset: int, timestamp: int) -> Entry:
        try:
            async with asyncio.timeout(RECORDED_SECONDS):
                return await self._verdicts.wait(self._store, partition, offset, timestamp)
        except TimeoutError as error:
            raise Unreachable(
                f"the write at {partition}:{offset} of the log was not recorded in "
                f"{RECORDED_SECONDS:.0f} s",
                hint="it is safe in the log, and recorded once a recorder runs (see its /readyz)",
            ) from error

    def answer_when_recorded(
        self, future: "asyncio.Future[list[Event]]", partition: int, offset: int, timestamp: int
    ) -> None:
        """Answer a write with what the journal tells of its record."""
        task = asyncio.create_task(self._answer(future, partition, offset, timestamp))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _answer(
        self, future: "asyncio.Future[list[Event]]", partition: int, offset: int, timestamp: int
    ) -> None:
        try:
            answers = (await self._verdict(partition, offset, timestamp)).answers()
        except PerdureError as error:
            _fail(future, error)
        except asyncio.CancelledError:
            _fail(future, StoreClosed("the store was closed before the write was confirmed"))
            raise
        else:
            if not future.done():
                future.set_result(answers)


class _Waiting(Protocol):
    """Who waits for a record to be acknowledged."""

    def acknowledged(self, partition: int, offset: int, timestamp: int) -> None: ...

    def failed(self, error: PerdureError) -> None: ...


class _Nobody:
    """Waits for nothing, and keeps nothing in memory until the record is acknowledged."""

    def acknowledged(self, partition: int, offset: int, timestamp: int) -> None:
        pass

    def failed(self, error: PerdureError) -> None:
        pass


_NOBODY: Final = _Nobody()


class _Offset:
    """Waits for where a record lies."""

    __slots__ = ("_future",)

    def __init__(self, future: "asyncio.Future[int]") -> None:
        self._future = future

    def acknowledged(self, partition: int, offset: int, timestamp: int) -> None:  # noqa: ARG002
        if not self._future.done():
            self._future.set_result(offset)

    def failed(self, error: PerdureError) -> None:
        _fail(self._future, error)


class _Write:
    """Waits for a write as its `ack` says."""

    __slots__ = ("_ack", "_append", "_future", "_log")

    def __init__(
        self, log: KafkaLog, append: Append, ack: Ack, future: "asyncio.Future[list[Event]]"
    ) -> None:
        self._log = log
        self._append = append
        self._ack = ack
        self._future = future

    def acknowledged(self, partition: int, offset: int, timestamp: int) -> None:
        if self._future.done():
            return
        if self._ack == "recorded":
            self._log.answer_when_recorded(self._future, partition, offset, timestamp)
        else:  # also of a write that was to be sent only, when too much was under way
            self._future.set_result(_sent(self._append, f"{partition}:{offset}"))

    def failed(self, error: PerdureError) -> None:
        _fail(self._future, error)


class _Batch:
    """Records of one partition that are sent together, and who waits for each."""

    __slots__ = ("builder", "deadline", "size", "timestamps", "waiting")

    def __init__(self, builder: BatchBuilder, deadline: float) -> None:
        self.builder = builder
        self.deadline = deadline
        self.size = 0
        self.waiting: list[_Waiting] = []
        self.timestamps: list[int] = []


class _Room:
    """How many bytes wait to be acknowledged."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._size = 0

    @property
    def is_wide(self) -> bool:
        """Whether little enough waits to let writers go on."""
        return self._size <= SENT_BYTES_MAX

    def take(self, size: int) -> None:
        """Count bytes that are to be sent."""
        if self._size and self._size + size > QUEUE_BYTES_MAX:
            raise Unreachable(
                f"{self._size:,} bytes of events wait for Kafka at {self._bootstrap}; "
                f"{QUEUE_BYTES_MAX:,} are the most",
                hint="await some of the writes before making more",
            )
        self._size += size

    def give_back(self, size: int) -> None:
        """Count bytes that wait no longer."""
        self._size -= size


class _Lane:
    """The way to one partition: what waits, and the one batch that is under way."""

    def __init__(
        self, producer: BatchProducer, room: "_Room", partition: int, delivery_seconds: float
    ) -> None:
        self._producer = producer
        self._room = room
        self._partition = partition
        self._delivery_seconds = delivery_seconds
        self._loop = asyncio.get_running_loop()
        self._batches: deque[_Batch] = deque()
        self._running: asyncio.Task[None] | None = None

    def put(self, record: wire.Wire, timestamp: int, waiting: _Waiting) -> None:
        """Have a record sent after those that were put before.

        Raises:
            Unreachable: too much waits already.
        """
        size = len(record.value)
        self._room.take(size)
        batch = self._batches[-1] if self._batches else None
        if batch is None or not added(batch.builder, record, timestamp):
            batch = _Batch(self._producer.batch(), self._loop.time() + self._delivery_seconds)
            added(batch.builder, record, timestamp)  # an empty one takes a record of any size
            self._batches.append(batch)
        batch.size += size
        batch.waiting.append(waiting)
        batch.timestamps.append(timestamp)
        if self._running is None:
            # It starts with the loop's next turn: what is put until then goes along.
            self._running = asyncio.create_task(self._run())

    async def drain(self) -> None:
        """Wait until everything is sent or has failed."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._batches:
                batch = self._batches.popleft()
                try:
                    first = await self._producer.deliver(
                        batch.builder, self._partition, batch.deadline
                    )
                except PerdureError as error:
                    for waiting in batch.waiting:
                        waiting.failed(error)
                else:
                    for offset, (waiting, timestamp) in enumerate(
                        zip(batch.waiting, batch.timestamps, strict=True), first
                    ):
                        waiting.acknowledged(self._partition, offset, timestamp)
                finally:
                    self._room.give_back(batch.size)
        finally:
            self._running = None


def _sent(append: Append, log_position: str) -> list[Event]:
    """The answers to a write that is not recorded yet."""
    agent, epoch, expected = append.agent, append.epoch or 0, append.expected_sequence
    return [
        Sent(
            id=event.id or "",
            type=event.type,
            subject=agent,
            source=event.source or f"/{agent}",
            sequence=0,
            time=event.time or _EPOCH,
            writer=event.writer or append.writer,
            writer_sequence=event.writer_sequence or 0,
            epoch=epoch,
            version=event.version or 1,
            correlation_id=event.correlation_id,
            causation_id=event.causation_id,
            traceparent=event.traceparent,
            expected_sequence=expected,
            key_id=event.key_id,
            data=event.data,  # type: ignore[arg-type]  # a copy made by event.prepared: JSON
            log_position=log_position,
        )
        for event in append.events
    ]


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _milliseconds(time: dt.datetime) -> int:
    return int(time.timestamp() * 1000)


def _new_id() -> str:
    return str(uuid_utils.uuid7())


def _error(entry: Entry) -> PerdureError:
    if entry.error is None:
        return Unreachable(f"the claim became {entry.outcome}", hint="open the agent again")
    return entry.error.error()


def _fail(future: "asyncio.Future[int] | asyncio.Future[list[Event]]", error: PerdureError) -> None:
    if not future.done():
        future.set_exception(error)
