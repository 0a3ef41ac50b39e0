"""The memorizer on the real engines: memories are in the index before anybody recalls them."""

import asyncio

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from ops.stack import Ports, Stack
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed
from tests.stack.cassandra_tables import place_of
from tests.stack.embedders import PICKY, Picky
from tests.stack.services import Service
from weaviate.classes.query import Filter as Where

from perdure.cassandra.event_table import CassandraEventTable
from perdure.errors import InvalidInput
from perdure.kafka import journal, topics, wire
from perdure.memorizer.choice import chosen_embedder
from perdure.memorizer.embedder import default_embedder
from perdure.memorizer.recall import recall
from perdure.model.event import NewEvent, encode
from perdure.model.timeline import Span
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.schema import Collections, collection_name, tenant_name
from perdure.weaviate.session import Session

MIA, TOM = "airline/mia", "airline/tom"
DEADLINE_SECONDS = 60


async def until(condition):
    """Wait until an awaitable condition holds."""
    await AsyncRetrying(
        wait=wait_fixed(0.05),
        stop=stop_after_delay(DEADLINE_SECONDS),
        retry=retry_if_result(lambda held: not held),
    )(condition)


class Place:
    """What a test sees of a cluster: tables and journal to write, a memorizer, and its index."""

    def __init__(self, cluster, folder, tables, producer, session):
        self.cluster, self.tables, self.producer = cluster, tables, producer
        self.session = session
        self.service = Service("memorizer", cluster, folder)
        self.embedder = chosen_embedder(cluster.embedder)
        self.sequences = {}

    async def write(self, agent, *events, copies=1):
        """Record events as the recorder does: rows first, then the journal."""
        stream = await self.tables.record(agent, *events)
        last = stream.head.sequence
        first = last - len(events) + 1
        table = self.events()
        raws = [
            msgspec.Raw(encode(event))
            async for batch in table.read(Span(agent, first, last))
            for event in batch.events
        ]
        key = wire.key_of(self.tables.store, agent)
        partition = wire.partition_of(key, self.cluster.partitions)
        entry = journal.Entry(self.tables.position, "recorded", raws)
        told = journal.JournalRecord(self.tables.store, agent, partition, [entry], last)
        for _ in range(copies):
            await self.producer.send_and_wait(
                self.cluster.topic("journal"), journal.encode(told), key, partition=partition
            )
        return [msgspec.json.decode(raw)["id"] for raw in raws]

    def events(self):
        """The tables of events."""
        return CassandraEventTable(self.tables.session, self.tables.store, self.tables.generations)

    def index(self):
        """An index that knows nothing yet."""
        return WeaviateIndex(
            Collections(self.session),
            self.tables.store,
            self.events(),
            keyspace_of=lambda agent: self.cluster.keyspace(1),
            embedder=self.embedder.name,
        )

    async def objects(self, agent, kind="memory"):
        """An agent's objects of a kind in Weaviate, as they are."""
        name = collection_name(self.cluster.keyspace(1), self.embedder.name)
        collection = self.session.client.collections.use(name)
        tenant = tenant_name(self.tables.store, agent.partition("/")[0])
        if not await self.session.client.collections.exists(name):
            return []
        if not await collection.tenants.exists(tenant):
            return []
        found = await collection.with_tenant(tenant).query.fetch_objects(
            filters=Where.by_property("kind").equal(kind) & Where.by_property("agent").equal(agent),
            limit=10_000,
        )
        return sorted(
            (each.properties for each in found.objects), key=lambda each: each["sequence"]
        )

    async def holds(self, agent, count, kind="memory"):
        """Wait until an agent has so many whole memories (or forgettings) in the index."""

        async def there():
            found = await self.objects(agent, kind)
            return len([each for each in found if kind != "memory" or each["parts"]]) >= count

        await until(there)
        assert len(await self.objects(agent, kind)) == count

    async def start(self):
        """Start the memorizer, or start it again."""
        self.service.start()
        await asyncio.to_thread(self.service.wait_ready)

    def lag(self):
        """How many records of the journal it has not read, by its metrics."""
        metrics = self.service.metrics()
        return sum(
            value for name, value in metrics.items() if name.startswith("perdure_memorizer_lag")
        )


def stored(text, **more):
    """A memory to store."""
    return NewEvent(type="memory.stored", data={"text": text, **more})


@pytest.fixture
async def make(tmp_path, store):
    """Makes the place of a cluster; all it holds is given back."""
    made, leaving = [], []

    async def make(cluster):
        await topics.ensure(cluster)
        context = place_of(cluster, store)
        tables = await context.__aenter__()
        producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka)
        await producer.start()
        session = await Session.connect(cluster)
        leaving.extend([session.close, producer.stop, lambda: context.__aexit__(None, None, None)])
        made.append(Place(cluster, tmp_path, tables, producer, session))
        return made[-1]

    yield make
    for place in made:
        assert await asyncio.to_thread(place.service.stop) == 0
    for leave in leaving:
        await leave()


@pytest.fixture
async def place(make, cluster):
    """A place with an embedder that needs no time."""
    return await make(msgspec.structs.replace(cluster, embedder=PICKY))


async def test_memories_are_embedded_ahead_and_found_by_meaning(make, cluster):
    """What agents store is in the index with vectors of the default model before anybody asks."""
    place = await make(cluster)
    await place.start()
    texts = ["She always wants to sit next to the window", "Payment was refused by the bank"]
    await place.write(MIA, *[stored(text) for text in texts], NewEvent(type="note", data={}))
    await place.write(TOM, stored("He is allergic to peanuts"))
    await place.holds(MIA, 2)
    await place.holds(TOM, 1)
    index = place.index()
    assert await index.unembedded([Span(MIA, 1, 9), Span(TOM, 1, 9)], place.embedder.name, 9) == []
    for query, text in (("which seat?", texts[0]), ("credit card problem", texts[1])):
        hits = await recall(index, default_embedder(), [Span(MIA, 1, 9)], query)
        assert hits[0].text == text
        assert len(hits) == 2
    assert place.service.metrics()["perdure_memorizer_memories_total"] == 3


async def test_duplicates_and_kills_never_double(place):
    """Journal records that come twice, and kills amid the work, leave each memory there once."""
    await place.start()
    for round_ in range(3):
        for agent in (MIA, TOM):
            texts = [stored(f"fact {round_} {number} of {agent}") for number in range(20)]
            await place.write(agent, *texts, copies=2)
        place.service.kill()
        await place.start()
    for agent in (MIA, TOM):
        await place.holds(agent, 60)
        texts = [each["text"] for each in await place.objects(agent)]
        assert len(set(texts)) == 60

    async def through():
        return place.lag() == 0

    await until(through)


async def test_what_is_forgotten_is_kept_for_earlier_sequences(place):
    """A forgetting enters the index as well, and takes nothing from recall as of before it."""
    await place.start()
    [kept] = await place.write(MIA, stored("aisle seat"))
    [lost] = await place.write(MIA, stored("window seat"))
    await place.holds(MIA, 2)
    await place.write(MIA, NewEvent(type="memory.forgotten", data={"id": lost}))
    await place.holds(MIA, 1, "forgetting")
    await place.holds(MIA, 2)
    hits = await recall(place.index(), Picky(), [Span(MIA, 1, 3)], "seat")
    assert [hit.id for hit in hits] == [kept]
    hits = await recall(place.index(), Picky(), [Span(MIA, 1, 2)], "seat")
    assert {hit.id: hit.until for hit in hits} == {kept: None, lost: 3}


async def test_it_waits_while_weaviate_is_away(make, cluster, tmp_path):
    """While Weaviate is stopped the service says so and its lag shows; then all is entered."""
    ports = Ports.free()
    stack = Stack(tmp_path / "stack", ports=ports)
    stack.up("weaviate")
    try:
        place = await make(
            msgspec.structs.replace(
                cluster,
                embedder=PICKY,
                weaviate=f"127.0.0.1:{ports.weaviate}",
                weaviate_grpc=f"127.0.0.1:{ports.weaviate_grpc}",
            )
        )
        await place.start()
        await place.write(MIA, stored("before"))
        await place.holds(MIA, 1)
        stack.kill("weaviate-1")
        await place.write(MIA, stored("amid"))

        async def told():
            return not await asyncio.to_thread(place.service.ready)

        await until(told)
        for number in range(5):
            await place.write(TOM, stored(f"fact {number}"))
        metrics = place.service.metrics()
        assert metrics["perdure_memorizer_memories_total"] <= 1  # counted when all of it is in
        stack.start("weaviate-1")
        await place.holds(MIA, 2)
        await place.holds(TOM, 5)

        async def recovered():
            return await asyncio.to_thread(place.service.ready) and place.lag() == 0

        await until(recovered)
        assert place.service.metrics()["perdure_memorizer_retries_total"] >= 1
    finally:
        await asyncio.to_thread(stack.wipe)


async def test_an_agent_that_cant_be_embedded_holds_up_no_other(place):
    """Texts that the embedder refuses are told in the log, and the others' are embedded."""
    await place.start()
    await place.write(MIA, stored("unspeakable"))
    await place.write(TOM, stored("fine"))
    await place.holds(TOM, 1)

    async def failed():
        return place.service.metrics()["perdure_memorizer_failures_total"] >= 1

    await until(failed)
    lines = [line for line in place.service.logged() if line["event"] == "memories not embedded"]
    assert {line["agent"] for line in lines} == {MIA}


async def test_two_memorizers_share_the_work(place, tmp_path):
    """A second process takes partitions over; each memory is there once, whoever embedded it."""
    await place.start()
    other = Service("memorizer", place.cluster, tmp_path, number=2)
    other.start()
    try:
        await asyncio.to_thread(other.wait_ready)
        agents = [f"airline/agent-{number}" for number in range(24)]
        for number in range(4):
            for agent in agents:
                await place.write(agent, stored(f"fact {number} of {agent}"))
        for agent in agents:
            await place.holds(agent, 4)
    finally:
        assert await asyncio.to_thread(other.stop) == 0


def test_an_embedder_that_cant_be_had_is_told():
    """A wrong name in the settings is an error that says what is wrong with it."""
    for name in (
        "nowhere:Nobody",
        "tests.stack.embedders:Nobody",
        "json:dumps",
        "json:JSONDecoder",
    ):
        with pytest.raises(InvalidInput, match="can't be had"):
            chosen_embedder(name)
