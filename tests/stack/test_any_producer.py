"""Any producer: what a plain Kafka client sends, in another language, is recorded like any other.

The programs are in `kafkajs/`; `producer.mjs` is the example of `docs/wire.md`.
"""

import asyncio
import base64
import contextlib
import json
import shutil
import struct

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c_py
from tests.node import PROGRAMS, modules
from tests.stack.producing import Record, attributes, binary, structured
from tests.stack.services import Services

import perdure
from perdure.kafka.wire import key_of, partition_of
from perdure.replay.dead_letters import Place, letter
from perdure.replay.verdicts import decided, following

pytestmark = pytest.mark.stack

SECONDS = 60


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs in a folder where they find what they import."""
    folder = tmp_path_factory.mktemp("kafkajs")
    (folder / "node_modules").symlink_to(modules(), target_is_directory=True)
    for program in PROGRAMS.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


async def node(program, *arguments, text=""):
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(program), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, told = await asyncio.wait_for(process.communicate(text.encode()), SECONDS)
    assert process.returncode == 0, told.decode()
    return printed.decode().splitlines()


class Sender:
    """Has records sent by kafkajs, and finds out what became of them."""

    def __init__(self, cluster, programs):
        self.cluster, self.programs = cluster, programs

    async def send(self, *records, compression="None"):
        """Where each record is: partition and offset."""
        lines = [
            json.dumps({"topic": self.cluster.topic("events"), **record._asdict()}, default=_bytes)
            for record in records
        ]
        printed = await node(
            self.programs / "records.mjs", self.cluster.kafka, compression, text="\n".join(lines)
        )
        return [tuple(json.loads(line)) for line in printed]

    async def outcomes(self, *records, **options):
        """The journal's entry of each record, and where the record is."""
        async with following(self.cluster) as verdicts:
            places = await self.send(*records, **options)
            found = await decided(verdicts, set(places), SECONDS)
        return [(found[place], Place("events", *place)) for place in places]


@pytest.fixture
def sender(shared_services, programs):
    """Sends to the cluster whose services run."""
    return Sender(shared_services.cluster, programs)


def _bytes(value):
    return {"base64": base64.b64encode(value).decode()}


async def events_of(services, store, agent):
    """What an agent's events are, read over HTTP."""
    async with perdure.connect(services.url(store)) as opened:
        view = opened.view(agent)
        return [event async for event in view.events()]


async def test_the_example_sends_in_all_three_ways(shared_services, programs):
    """An agent written by another language is read, opened and gone on with like any other."""
    agent = f"airline/{programs.name}"
    gateway = f"http://127.0.0.1:{shared_services.cluster.gateway_port}"
    printed = await node(programs / "producer.mjs", gateway, agent)
    assert [line.split() for line in printed] == [
        ["recorded", "1"], ["recorded", "2"], ["recorded", "3", "4"],
    ]  # fmt: skip
    async with perdure.connect(shared_services.url("default", ack="recorded")) as store:
        agent = await store.agent(agent)
        assert [event.type async for event in agent.events()] == [
            "message.added", "seat.wanted", "seat.held", "seat.paid",
        ]  # fmt: skip
        assert agent.state.messages[0]["content"] == "A seat, please."
        assert (await agent.emit("seat.taken")).sequence == 5
        assert (await agent.verify()).sound


async def test_attributes_arrive_as_they_were_sent(shared_services, sender, store):
    """Each attribute of each mode is in the recorded event; what is left out has its default."""
    agent, given = "airline/mia", {
        "id": "Zoë-1", "source": "https://example.com/x", "time": "2026-01-02T03:04:05.123456Z",
        "dataschema": "urn:perdure:event:seat.wanted:3", "correlationid": "t-1",
        "causationid": "c-1", "keyid": "k-1", "store": store,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }  # fmt: skip
    data = {"text": "Grüße 🛫", "deep": [[1.5, None, True]]}
    sent = [
        binary(agent, json.dumps(data), **given),
        structured(agent, attributes(agent, **{**given, "id": "2"}, data=data), store=store),
        # Without a subject the key says whose it is; without a time, the record does.
        Record(key_of(store, agent), "null", {
            "ce_specversion": "1.0", "ce_id": "3", "ce_source": "/s", "ce_type": "seat.wanted",
        }),
    ]  # fmt: skip
    outcomes = await sender.outcomes(*sent)
    assert [entry.outcome for entry, _ in outcomes] == ["recorded"] * 3
    first, second, third = await events_of(shared_services, store, agent)
    told = first.to_cloudevent()
    assert {name: told.get(name) for name in given if name != "store"} == {
        name: value for name, value in given.items() if name != "store"
    }
    assert (first.data, first.sequence, first.version) == (data, 1, 3)
    assert (second.data, second.id, second.time) == (data, "2", first.time)
    assert (third.id, third.data, third.source, third.version) == ("3", None, "/s", 1)
    assert third.time > second.time


async def test_an_event_is_recorded_once_by_its_id(shared_services, sender, store):
    """A second send, in whatever mode, is answered with the event that is there already."""
    agent = "airline/mia"
    one = binary(agent, '{"n":1}', id="one", store=store)
    both = [
        attributes(agent, id=id, store=store, data={"n": n}) for id, n in (("one", 1), ("two", 2))
    ]
    outcomes = await sender.outcomes(
        one,
        one,
        structured(agent, both[0], store=store, kind="cloudevents+json"),
        structured(agent, both[1], store=store),
        structured(agent, *both, store=store),
    )
    answers = [[event.sequence for event in entry.answers()] for entry, _ in outcomes]
    assert answers == [[1], [1], [1], [2], [1, 2]]
    assert [e.data["n"] for e in await events_of(shared_services, store, agent)] == [1, 2]


async def test_a_batch_is_recorded_as_a_whole_or_not_at_all(shared_services, sender, store):
    """One event that is none spoils its batch; an expected sequence counts for all of it."""
    agent = "airline/mia"
    good = [attributes(agent, id=id, store=store) for id in "abc"]
    wrong = structured(agent, *good[:2], {**good[2], "type": ""}, store=store)
    late = structured(agent, {**good[0], "expectedsequence": "7"}, *good[1:], store=store)
    right = structured(agent, {**good[0], "expectedsequence": "0"}, *good[1:], store=store)
    outcomes = await sender.outcomes(wrong, late, right)
    assert [entry.outcome for entry, _ in outcomes] == ["dead-letter", "refused", "recorded"]
    assert outcomes[1][0].error.name == "SequenceConflict"
    assert [e.id for e in await events_of(shared_services, store, agent)] == ["a", "b", "c"]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_events_may_be_compressed(shared_services, sender, store, compression):
    """However a producer compresses its records: a recorder that can't read them stands still."""
    agent, cluster = "airline/mia", sender.cluster
    if compression == "gzip":  # the one that kafkajs has built in
        [(entry, _)] = await sender.outcomes(binary(agent, store=store), compression="GZIP")
        assert entry.outcome == "recorded"
    else:
        producer = AIOKafkaProducer(
            bootstrap_servers=cluster.kafka, acks="all", compression_type=compression
        )
        record = binary(agent, '"' + "x" * 10_000 + '"', store=store)
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        async with following(cluster) as verdicts, producer:
            sent = await producer.send_and_wait(
                cluster.topic("events"), record.value.encode(), record.key, headers=headers
            )
            place = sent.partition, sent.offset
            assert (await decided(verdicts, {place}, SECONDS))[place].outcome == "recorded"
    assert len(await events_of(shared_services, store, agent)) == 1


async def test_what_a_transaction_takes_back_is_not_recorded(shared_services, sender, store):
    """Events of a transaction are recorded when it is committed; what is fresh includes them."""
    agent, cluster = "airline/mia", sender.cluster
    producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka, transactional_id=store)

    async def send(name):
        record = binary(agent, id=name, store=store)
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        await producer.send_and_wait(
            cluster.topic("events"), record.value.encode(), record.key, headers=headers
        )

    async with producer, perdure.connect(shared_services.url(store)) as opened:
        with contextlib.suppress(ZeroDivisionError):
            async with producer.transaction():
                await send("aborted")
                raise ZeroDivisionError
        async with producer.transaction():
            await send("one")
            await send("two")
        # The log ends with the marker of the commit, which is no record.
        view = opened.view(agent)
        async with asyncio.timeout(SECONDS):
            state = await view.state_at(fresh=True)
        assert state.sequence == 2
        assert [event.id async for event in view.events()] == ["one", "two"]


def deep(levels):
    """JSON that is nested so deeply."""
    return "[" * levels + "]" * levels


async def test_a_header_may_have_any_name(cluster, tmp_path):
    """What no client here can write, a broker takes: it holds up no record before or after it."""
    with Services(cluster, tmp_path, names=("recorder", "gateway")) as services:
        async with (
            AIOKafkaProducer(bootstrap_servers=cluster.kafka, acks="all") as producer,
            following(cluster) as verdicts,
        ):
            partition = partition_of(key_of("lab", AGENT), cluster.partitions)
            outcomes = []
            for name, replacing in (("one", None), ("two", b"\xff\xfe"), ("three", None)):
                record = binary(AGENT, id=name, store="lab")
                headers = [(key, value.encode()) for key, value in record.headers.items()]
                batch = producer.create_batch()
                batch.append(
                    key=record.key,
                    value=record.value.encode(),
                    timestamp=None,
                    headers=[*headers, ("##", b"1")],
                )
                if replacing is not None:
                    rename(batch, b"##", replacing)
                sent = await (
                    await producer.send_batch(batch, cluster.topic("events"), partition=partition)
                )
                place = (sent.partition, sent.offset)
                outcomes.append((await decided(verdicts, {place}, SECONDS))[place].outcome)
        assert outcomes == ["recorded"] * 3
        events = await events_of(services, "lab", AGENT)
        assert [event.id for event in events] == ["one", "two", "three"]


def rename(batch, name, replacing):
    """Give a header of a batch another name of the same length, of any bytes."""
    data = bytearray(batch._build())
    at = data.index(name)
    data[at : at + len(name)] = replacing
    struct.pack_into(">I", data, 17, calc_crc32c_py(bytes(data[21:])))
    batch._buffer = data


def elsewhere(store):
    """A key whose records are in another partition than the agent's, of an even number of them."""
    right = partition_of(key_of(store, AGENT), 2)
    return next(key for key in "abcdefgh" if partition_of(key.encode(), 2) != right)


AGENT = "airline/mia"
HOSTILE = {
    "garbage": (lambda store: Record("x", b"\x00\xff garbage", {}), "ce_specversion"),
    "no key, no headers": (lambda store: Record(None, "{}", {}), "ce_specversion"),
    "no value": (lambda store: binary(AGENT, None, store=store), "no value"),
    "an empty value": (lambda store: binary(AGENT, "", store=store), "not JSON"),
    "no attributes but one": (
        lambda store: Record("x", "{}", {"ce_specversion": "1.0"}), "no id and no source",
    ),
    "no type": (lambda store: binary(AGENT, type=None, store=store), "no type"),
    "a version to come": (lambda store: binary(AGENT, specversion="2.0", store=store), "2.0"),
    "nobody's": (
        lambda store: Record(None, "{}", {f"ce_{k}": v for k, v in attributes(None).items()}),
        "names no agent",
    ),
    "wrong JSON": (lambda store: binary(AGENT, '{"a":', store=store), "not JSON"),
    "NaN": (lambda store: binary(AGENT, "NaN", store=store), "not JSON"),
    "JSON in another encoding": (
        lambda store: binary(AGENT, '{"a":"ü"}'.encode("latin-1"), store=store), "not JSON",
    ),
    "JSON that is too deep": (lambda store: binary(AGENT, deep(200), store=store), "nested"),
    "JSON beyond any stack": (lambda store: binary(AGENT, deep(400_000), store=store), "not JSON"),
    "2 MB": (
        lambda store: binary(AGENT, json.dumps("x" * 2_000_000), store=store), "2,000,002 bytes",
    ),
    "a picture": (
        lambda store: binary(AGENT, b"\x89PNG", content_type="image/png", store=store), "image/png",
    ),
    "a path for a name": (lambda store: binary("../etc/passwd", store=store), "../etc/passwd"),
    "SQL for a name": (lambda store: binary("a/b'; DROP TABLE x--", store=store), "DROP TABLE"),
    "control characters": (lambda store: binary("a/\x1b[2J\n", store=store), "x1b"),
    "a name that is too long": (lambda store: binary(f"a/{'b' * 5000}", store=store), "bbb"),
    "a header that is no text": (lambda store: binary(AGENT, id=b"\xff\xfe", store=store), "UTF-8"),
    "a store that is none": (lambda store: binary(AGENT, store="../x"), "store name"),
    "a number that is none": (
        lambda store: binary(AGENT, expectedsequence="soon", store=store), "expectedsequence",
    ),
    "no time": (lambda store: binary(AGENT, time="yesterday", store=store), "is no time"),
    "a built-in type with other data": (
        lambda store: binary(AGENT, '{"n":1}', type="message.added", store=store), "role",
    ),
    "a wrong key": (lambda store: binary(AGENT, store=store, key=elsewhere(store)), "partition"),
    "a structured text": (
        lambda store: Record("x", '"event"', {"content-type": "application/cloudevents+json"}),
        "no event in JSON",
    ),
    "Avro": (
        lambda store: Record("x", b"\x02", {"content-type": "application/cloudevents+avro"}),
        "cloudevents+avro",
    ),
    "an empty batch": (lambda store: structured(AGENT, store=store), "no event"),
    "a batch of two agents": (
        lambda store: structured(
            AGENT, attributes(AGENT, store=store), attributes("a/b", store=store), store=store
        ),
        "a/b",
    ),
    "a batch with binary data": (
        lambda store: structured(
            AGENT, attributes(AGENT, store=store, data_base64="AAAA"), store=store
        ),
        "is binary",
    ),
    "a claim to nothing": (lambda store: binary(AGENT, control="rule", store=store), "rule"),
    "a fork from nowhere": (
        lambda store: binary(AGENT, '{"parent":"a/b","at":3}', type="agent.forked", store=store),
        "parent's chain",
    ),
}  # fmt: skip


async def test_what_is_no_event_is_put_aside_and_the_agent_goes_on(shared_services, sender, store):
    """Each comes to the dead letters with its reason; what is sent before and after is recorded."""
    made = {name: make(store) for name, (make, _) in HOSTILE.items()}
    records = [binary(AGENT, id="before", store=store)]
    for name, record in made.items():
        records += [record, binary(AGENT, id=name, store=store)]
    outcomes = await sender.outcomes(*records)
    for (name, record), (entry, place) in zip(made.items(), outcomes[1::2], strict=True):
        assert entry.outcome == "dead-letter", name
        reason = HOSTILE[name][1]
        assert reason in entry.error.message, name
        found = await letter(sender.cluster, place)
        assert (found.error, reason in found.reason) == (entry.error.name, True)
        assert found.key == (record.key.encode() if isinstance(record.key, str) else record.key)
    events = await events_of(shared_services, store, AGENT)
    assert [event.id for event in events] == ["before", *made]
    assert [event.sequence for event in events] == [*range(1, len(events) + 1)]
