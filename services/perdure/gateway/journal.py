"""Reading `perdure.journal`: its end as it grows, and what lies further back when it is asked for.

Invariants:
- Nothing is missed over a lost connection: reading goes on where it stopped. Where the topic no
  longer has what comes next, everybody who waits is told to look again.
- A record that was decided is found, however long ago, as long as the journal has it.
- Where the journal says that a partition's tables are others from there on, they are looked for
  before anything that comes after it is told: whoever knows of a write reads where it is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from perdure.errors import InvalidInput, PerdureError, Unreachable
from perdure.gateway.verdicts import Verdict, Verdicts
from perdure.kafka import topics
from perdure.kafka.journal import JournalRecord, decode
from perdure.serving import logger
from perdure.settings import Cluster

WARM_RECORDS: Final = 500
"""How far before each partition's end reading starts, to know what is decided already."""

SEARCH_AFTER_SECONDS: Final = 2.0
"""After so long without an answer the journal itself is searched, once."""

SEARCH_SECONDS_MIN: Final = 5.0
"""How long a search may take for who doesn't wait as long himself."""

COMMITTED_EVERY_SECONDS: Final = 0.5
"""How often the recorder's committed position is asked for while it is waited for."""

ASK_MS: Final = 100
"""How long it is looked whether there is a record at all."""

FETCH_BYTES_MAX: Final = 9 * 1024 * 1024
"""One fetch of a partition: more than the largest journal record."""

BACK_RECORDS: Final = 512
"""How far a search looks back first: what a recorder writes in one go. Then twice that, …"""

UNSETTLED_RECORDS: Final = 8192
"""Records at the journal's end that may be of a step that is not told to its end: twice the most
of a recorder."""

_log = logger("perdure.gateway")


class Journal:
    """The journal of a cluster. `run` has to be running for anything to be learned.

    `follow` is told of every record that comes in; `switched` looks in which tables agents are
    now, and returns when that is known.
    """

    def __init__(
        self,
        cluster: Cluster,
        follow: Callable[[JournalRecord], None],
        switched: Callable[[], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._follow = follow
        self._switched = switched
        self.verdicts = Verdicts()
        self._positions: dict[TopicPartition, int] = {}
        self._asking: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._search = asyncio.Lock()
        self.trouble = "the journal was not read yet"

    async def run(self) -> None:
        """Read until cancelled; reconnects as often as it takes."""
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((KafkaError, OSError, PerdureError)),
                wait=wait_random_exponential(multiplier=0.1, max=2),
            ):
                with attempt:
                    try:
                        await self._read()
                    except (KafkaError, OSError, PerdureError) as error:
                        trouble = f"the journal can't be read: {error or repr(error)}"
                        if trouble != self.trouble:
                            _log.warning(trouble)
                        self.trouble = trouble
                        raise
        finally:
            await self._drop_clients()

    async def _read(self) -> None:
        # A consumer of partitions that aren't there asks for them without a pause.
        await topics.ensure(self._cluster)
        async with _consumer(self._cluster.kafka, wait_ms=500) as consumer:
            partitions = [
                TopicPartition(self._cluster.topic("journal"), number)
                for number in range(self._cluster.partitions)
            ]
            consumer.assign(partitions)
            await self._seek(consumer, partitions)
            await self._asker()
            await self._switched()  # What was told before where reading begins is not seen.
            self.trouble = ""
            while True:
                try:
                    found = await consumer.getmany(timeout_ms=10_000, max_records=2_000)
                except OffsetOutOfRangeError:
                    self._positions.clear()
                    await self._seek(consumer, partitions)
                    await self._switched()
                    self.verdicts.lost()
                    continue
                for partition, records in found.items():
                    for record in records:
                        await self._note(record.value, partition, record.offset)
                    self._positions[partition] = records[-1].offset + 1
                self.verdicts.settle()

    async def _administrator(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self._cluster.kafka)
            await admin.start()
            self._admin = admin
        return self._admin

    async def _seek(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        firsts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            warm = max(firsts[partition], ends[partition] - WARM_RECORDS)
            position = self._positions.setdefault(partition, warm)
            if not firsts[partition] <= position <= ends[partition]:
                position = self._positions[partition] = warm
                self.verdicts.lost()
            consumer.seek(partition, position)

    async def _note(self, value: bytes, partition: TopicPartition, offset: int) -> None:
        try:
            record = decode(value)
        except PerdureError as error:
            # The recorder alone writes there; one record of somebody else's must not stop reading.
            _log.error("no journal record", partition=partition, offset=offset, reason=str(error))
            return
        if record.switched:
            await self._switched()
        self._follow(record)
        self.verdicts.note(record, len(value))

    async def decided(
        self, records: Sequence[tuple[int, int]], wait_seconds: float
    ) -> list[Verdict]:
        """Verdicts of some of the records (partition, offset), as soon as there is one.

        None after `wait_seconds`, also where the journal could not be searched: whoever asks again
        waits for Kafka as for the recorder.

        Raises:
            InvalidInput: there is no such partition.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        for partition, _ in records:
            self._checked(partition)
        if self.verdicts.known(*records[0]) is None:
            for partition, offset in records:
                # Decided before what is kept: nobody will tell it again.
                if (
                    offset <= self.verdicts.through(partition)
                    and self.verdicts.known(partition, offset) is None
                    and (verdict := await self._searched(partition, offset, deadline)) is not None
                ):
                    return [verdict]
        first = min(deadline - loop.time(), SEARCH_AFTER_SECONDS)
        found = await self.verdicts.any_of(records, first)
        if found or loop.time() >= deadline or self.verdicts.ended:
            return found
        oldest = min(records, key=lambda record: record[1])
        verdict = await self._searched(*oldest, deadline)
        if verdict is not None:
            return [verdict]
        return await self.verdicts.any_of(records, deadline - loop.time())

    async def caught_up(self, partition: int, wait_seconds: float) -> bool:
        """Whether all that was acknowledged before the call is decided; waits so long at most.

        Raises:
            InvalidInput: there is no such partition.
            Unreachable: Kafka does not answer.
        """
        self._checked(partition)
        events = TopicPartition(self._cluster.topic("events"), partition)
        with _reachable():
            ends = await (await self._asker()).end_offsets([events])
        last = ends[events] - 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while last >= 0 and self.verdicts.through(partition) < last:
            left = deadline - loop.time()
            if left <= 0 or self.verdicts.ended:
                return False
            if await self.verdicts.reached(partition, last, min(left, COMMITTED_EVERY_SECONDS)):
                break
            # The journal doesn't tell where all its records are gone, or the last one told less.
            done = max(await self._committed(events), self.verdicts.through(partition) + 1)
            if done > last or await self._is_empty(events, done, last):
                await self._switched()  # A switch may be among what isn't told.
                break
        return True

    async def _is_empty(self, events: TopicPartition, first: int, last: int) -> bool:
        """Whether no record has these offsets: ends of transactions have some, too."""
        async with self._search:
            with _reachable():
                consumer = await self._asker()
                consumer.assign([events])
                try:
                    consumer.seek(events, first)
                    found = await consumer.getmany(timeout_ms=ASK_MS, max_records=1)
                    return not found and bool(await consumer.position(events) > last)
                except OffsetOutOfRangeError:  # deleted meanwhile
                    return False
                finally:
                    consumer.assign([])

    async def _committed(self, events: TopicPartition) -> int:
        with _reachable():
            admin = await self._administrator()
            offsets = await admin.list_consumer_group_offsets(
                self._cluster.group("recorder"), partitions=[events]
            )
        return int(offsets[events].offset) if events in offsets else -1

    def _checked(self, partition: int) -> None:
        if not 0 <= partition < self._cluster.partitions:
            raise InvalidInput(
                f"{self._cluster.topic('events')} has no partition {partition}",
                hint=f"partitions are 0 to {self._cluster.partitions - 1}",
            )

    async def _asker(self) -> AIOKafkaConsumer:
        # Its own connections: a broker answers one connection in order, and the reading one's
        # fetches wait there for what is new.
        if self._asking is None:
            asking = _consumer(self._cluster.kafka, wait_ms=20)
            await asking.start()
            self._asking = asking
        return self._asking

    async def _drop_clients(self) -> None:
        asking, self._asking = self._asking, None
        admin, self._admin = self._admin, None
        with contextlib.suppress(KafkaError, OSError):
            if asking is not None:
                await asking.stop()
            if admin is not None:
                await admin.close()

    async def _searched(self, partition: int, offset: int, deadline: float) -> Verdict | None:
        """The verdict of a record, from the topic; None where it isn't found by the deadline."""
        topic = TopicPartition(self._cluster.topic("journal"), partition)
        # Not at once where the deadline is now: what is there is found even by who doesn't wait.
        until = max(deadline, asyncio.get_running_loop().time() + SEARCH_SECONDS_MIN)
        try:
            async with asyncio.timeout_at(until), self._search:
                with _reachable():
                    consumer = await self._asker()
                    consumer.assign([topic])
                    try:
                        return await _search(consumer, topic, offset)
                    finally:
                        consumer.assign([])
        except (TimeoutError, Unreachable) as error:
            _log.warning("journal not searched", partition=partition, reason=repr(error))
            return None


async def _search(consumer: AIOKafkaConsumer, topic: TopicPartition, offset: int) -> Verdict | None:
    """Look for the entry of a source offset: by bisection, then back from there.

    `through` rises along the journal, and an entry stands at or before the first record whose
    `through` covers it; how far before depends on how much a recorder writes in one go.
    """
    first = (await consumer.beginning_offsets([topic]))[topic]
    end = (await consumer.end_offsets([topic]))[topic]
    low, high = first, end
    while low < high:
        middle = (low + high) // 2
        at, record = await _one(consumer, topic, middle, end)
        if record is None or at >= high or _reaches(record, offset):
            high = middle
        else:
            low = at + 1
    if low == end:
        # Nothing says that all up to it is decided: if it is, then by what the recorder does now.
        first = max(first, end - UNSETTLED_RECORDS)
    stop, back = min(low + 1, end), BACK_RECORDS
    while True:
        start = max(first, stop - back)
        verdict = await _scan(consumer, topic, start, stop, offset)
        if verdict is not None or start == first:
            return verdict
        stop, back = start, back * 2


def _reaches(record: JournalRecord, offset: int) -> bool:
    return max(record.through, *(entry.offset for entry in record.entries), -1) >= offset


async def _one(
    consumer: AIOKafkaConsumer, topic: TopicPartition, position: int, end: int
) -> tuple[int, JournalRecord | None]:
    """The first record at or after a position, with its own position."""
    async for page in _pages(consumer, topic, position, end, records=1):
        for at, record in page:
            return at, record
    return end, None


async def _scan(
    consumer: AIOKafkaConsumer, topic: TopicPartition, start: int, stop: int, offset: int
) -> Verdict | None:
    async for page in _pages(consumer, topic, start, stop, records=BACK_RECORDS):
        for _, record in page:
            for entry in record.entries:
                if entry.offset == offset:
                    return Verdict(record.partition, offset, record.store, record.agent, entry)
    return None


async def _pages(
    consumer: AIOKafkaConsumer, topic: TopicPartition, position: int, stop: int, *, records: int
) -> AsyncIterator[list[tuple[int, JournalRecord]]]:
    """The records from a position on with their own positions, so many at a time."""
    consumer.seek(topic, position)
    while position < stop:
        found = await consumer.getmany(topic, timeout_ms=5_000, max_records=records)
        if not found.get(topic):
            raise Unreachable("the journal does not answer", hint="look whether Kafka is up")
        page = []
        for message in found[topic]:
            if message.offset < stop:
                with contextlib.suppress(PerdureError):
                    page.append((message.offset, decode(message.value)))
        yield page
        position = found[topic][-1].offset + 1


def _consumer(bootstrap: str, *, wait_ms: int) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="none",  # a position that is gone is noticed
        isolation_level="read_committed",  # as the recorder reads
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        fetch_max_wait_ms=wait_ms,
    )


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unreachable(
            f"Kafka does not answer the gateway: {error!r}", hint="ask again in a moment"
        ) from error
