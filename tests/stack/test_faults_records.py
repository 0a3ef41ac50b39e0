"""Records as they should not be, and tables that this code should not touch.

What is delivered twice or out of order, what is no event, what is too large; a topic with another
number of partitions than expected, and tables of a newer version.
"""

import asyncio
import datetime as dt

import msgspec
import pytest
from aiokafka import ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tests.conformance.places import WordsEmbedder
from tests.embedded.forks import seeded
from tests.stack.load import Load, Topics, until
from tests.stack.producing import producing
from tests.stack.services import SERVICES, Service

import perdure
from perdure.cassandra import schema
from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session
from perdure.errors import EventTooLarge, InvalidData, Unreachable
from perdure.kafka import journal, topics, wire
from perdure.kafka.dead_letters import DeadLetters
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append

AGENT = "load/foreign"
DAMAGED = 300


def own(store, agent, writer, number, data):
    """A record as our own client sends it, of one event with its writer's number."""
    event = NewEvent(
        type="note",
        data=data,
        id=f"{writer}-{number}",
        time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        version=1,
        writer=writer,
        writer_sequence=number,
    )
    return wire.encode(Append(agent, (event,), writer, by_id=False), store=store)


async def outcomes(services, places):
    """What the journal tells of records, in their order."""
    async with Topics.of(services.cluster) as topic:
        await topic.caught_up()
        await topic.judge()
        told = {}
        for each in map(journal.decode, [r.value for r in await topic.records("journal")]):
            for entry in each.entries:
                told.setdefault((each.partition, entry.offset), entry)
    return [told[place] for place in places]


async def events_of(services, store, agent=AGENT):
    """All events of an agent, after its chain was verified."""
    url = services.url(store)
    async with perdure.connect(url, embedder=WordsEmbedder()) as connected:
        view = connected.view(agent)
        assert (await view.verify()).findings == []
        return [event async for event in view.events()]


async def test_what_is_delivered_twice_is_recorded_once(shared_services, store):
    """Anything between the copies; the answer to each copy is the event that is there."""
    rng = seeded("copies")
    copies = [*range(1, 41)]
    for number in rng.choices(copies, k=30):
        copies.insert(rng.randrange(copies.index(number) + 1, len(copies) + 1), number)
    async with producing(shared_services.cluster) as producer:
        places = []
        for number in copies:
            record = own(store, AGENT, "w", number, number)
            places.append(await producer.send(record.value, key=record.key, headers=record.headers))
            places.append(await producer.event(AGENT, data=-number, id=f"f{number}", store=store))
    told = await outcomes(shared_services, places)
    answers = [entry.answers() for entry in told]
    numbers = [number for number in copies for _ in range(2)]
    assert numbers == [abs(event.data) for [event] in answers]
    events = await events_of(shared_services, store)
    assert list(range(1, 41)) == [event.data for event in events if event.data > 0]
    assert list(range(1, 41)) == [-event.data for event in events if event.data < 0]


async def test_what_is_delivered_out_of_order_is_refused_not_reordered(shared_services, store):
    """A number that comes after a later one of its writer: told as a conflict, and not recorded."""
    async with producing(shared_services.cluster) as producer:
        places = []
        for number in (1, 2, 5, 3, 6, 4, 5, 7):
            record = own(store, AGENT, "w", number, number)
            places.append(await producer.send(record.value, key=record.key, headers=record.headers))
    told = await outcomes(shared_services, places)
    assert [entry.outcome for entry in told] == ["recorded"] * 3 + [
        "refused",
        "recorded",
        "refused",
        "recorded",
        "recorded",
    ]
    assert {"SequenceConflict"} == {entry.error.name for entry in told if entry.error}
    events = await events_of(shared_services, store)
    assert [event.data for event in events] == [1, 2, 5, 6, 7]


def damaged(rng, value, headers):
    """A record that was well-formed, with something wrong or only odd about it."""
    headers = list(headers)
    at = rng.randrange(len(headers))
    match rng.randrange(8):
        case 0:
            value = value[: rng.randrange(len(value))]
        case 1:
            place = rng.randrange(len(value))
            value = value[:place] + rng.randbytes(1) + value[place + 1 :]
        case 2:
            del headers[at]
        case 3:
            headers[at] = (headers[at][0], rng.randbytes(rng.randrange(40)))
        case 4:
            headers.append(headers[at])
        case 5:
            headers = []
        case 6:
            value = rng.choice([b"", None, b"[" * 5000, b"\xff" * 10, rng.randbytes(300)])
        case _:
            headers[at] = (rng.choice(["ce_", "ce_epoch", "content-type", "x"]), b"x")
    return value, headers


async def test_poison_stops_nobody(shared_services, store, tmp_path):
    """However records are damaged: each is decided once, and everybody's events go on."""
    rng = seeded("poison")
    async with (
        Load(shared_services, store, tmp_path, processes=1, agents=1) as load,
        producing(shared_services.cluster) as producer,
    ):
        places = []
        for number in range(DAMAGED):
            good = own(store, AGENT, "w", number + 1, number)
            value, headers = damaged(rng, good.value, good.headers)
            places.append(await producer.send(value, key=good.key, headers=headers))
            await producer.event(AGENT, data=-number, store=store)
    await load.judge()
    told = await outcomes(shared_services, places)
    assert sum(entry.outcome == "dead-letter" for entry in told) > DAMAGED * 0.3
    events = await events_of(shared_services, store)
    assert len(places) == len({event.data for event in events if event.source == "/elsewhere"})


async def test_two_megabytes_are_told_and_stop_nobody(shared_services, store):
    """The client refuses such an event; a plain producer's becomes a dead letter, all of it."""
    text = "x" * 2_000_000
    url = shared_services.url(store, ack="recorded")
    async with perdure.connect(url, embedder=WordsEmbedder()) as connected:
        agent = await connected.agent(AGENT)
        assert (await agent.emit("note", 1)).sequence == 1
        with pytest.raises(EventTooLarge):
            await agent.emit("note", text)
        async with producing(shared_services.cluster) as producer:
            producer.producer._max_request_size = topics.MESSAGE_BYTES_MAX
            place = await producer.event(AGENT, "note", text, store=store)
        assert (await agent.emit("note", 2)).sequence == 2
    [entry] = await outcomes(shared_services, [place])
    assert (entry.outcome, entry.error.name) == ("dead-letter", "EventTooLarge")
    async with Topics.of(shared_services.cluster) as topic:
        letters = {
            tuple(
                int(dict(each.headers)[f"perdure-{what}"]) for what in ("partition", "offset")
            ): each.value
            for each in await topic.records("dead-letters")
        }
    assert text == msgspec.json.decode(letters[place])


async def refused(service):
    """What a service says that doesn't start; its exit status, or None while it runs."""
    service.start()

    async def told():
        if service.process.poll() is not None:
            return True
        return "set partitions" in said() or "upgrade perdure" in said()

    def said():
        return service.log.read_text("utf-8", "replace")

    await until(told)
    if service.process.poll() is None:  # it goes on answering, so that who asks is told why
        assert not await asyncio.to_thread(service.ready)
        await asyncio.to_thread(service.stop)
    else:
        assert service.process.poll() > 0
    assert "Traceback" not in said()
    return said()


async def test_a_letter_that_expired_is_not_the_last(cluster):
    """Kafka knew no leader for too long: what is put aside after it is taken all the same."""
    await topics.ensure(cluster)
    letters = DeadLetters(cluster)
    await letters.start()
    try:
        producer = letters._producer
        record = ConsumerRecord("t", 0, 1, 0, 0, b"k", b"v", None, 1, 1, ())
        metadata, ttl = producer.client.cluster, producer._message_accumulator._batch_ttl
        producer._message_accumulator._batch_ttl = 0.1
        metadata.leader_for_partition = lambda partition: -1
        with pytest.raises(Unreachable, match="LeaderNotAvailable"):
            await letters.put_aside(record, InvalidData("first"))
        del metadata.leader_for_partition
        producer._message_accumulator._batch_ttl = ttl
        await letters.put_aside(record, InvalidData("second"))
    finally:
        await letters.stop()
    async with Topics.of(cluster) as topic:
        told = [
            dict(each.headers)["perdure-reason"] for each in await topic.records("dead-letters")
        ]
    assert told == [b"second"]


@pytest.mark.parametrize("name", SERVICES)
async def test_a_topic_with_other_partitions_is_refused(cluster, tmp_path, name):
    """Before anything is read or written: an agent's order would not be kept."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(cluster.topic("events"), 3, 1)])
    finally:
        await admin.close()
    said = await refused(Service(name, cluster, tmp_path))
    assert f"{cluster.topic('events')} has 3 partitions" in said


async def test_topics_that_were_made_again_with_other_partitions_are_refused(cluster, tmp_path):
    """The tables know with how many the log was made, whatever settings and topics say now."""
    session = await Session.connect(cluster)
    try:
        catalog = await Catalog.open(session, cluster)
        await catalog.checked_topics(cluster.partitions + 1)
    finally:
        await session.close()
    said = await refused(Service("recorder", cluster, tmp_path))
    assert f"but the log was made with {cluster.partitions + 1}" in said


@pytest.mark.parametrize("name", SERVICES)
async def test_tables_of_a_newer_version_are_left_alone(cluster, tmp_path, name):
    """By every service, which says what to do."""
    session = await Session.connect(cluster)
    try:
        await Catalog.open(session, cluster)
        keyspace = schema.control_keyspace(cluster)
        await session.execute(f"UPDATE {keyspace}.format SET version = 99 WHERE part = 'control'")
        before = await session.execute(f"SELECT * FROM {keyspace}.generations")
        said = await refused(Service(name, cluster, tmp_path))
        assert "are of format 99" in said
        assert "upgrade perdure" in said
        assert before == await session.execute(f"SELECT * FROM {keyspace}.generations")
    finally:
        await session.close()
