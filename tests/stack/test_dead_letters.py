"""Dead letters on the real engines: seen, understood, and sent again once the cause is mended."""

import asyncio
import os
import sys

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from tests.stack.producing import Record, attributes, binary, producing, structured
from tests.stack.services import Services

from perdure.cassandra.session import Session
from perdure.errors import InvalidInput, NotFound
from perdure.kafka import topics, wire
from perdure.replay.dead_letters import Place, contents, letter, letters, redriver
from perdure.replay.verdicts import decided, following

pytestmark = pytest.mark.stack

CHAIN = bytes(range(32))
JSON_EVENT = "application/cloudevents+json"


async def command(cluster, *arguments, status=0, name="dead-letters"):
    """What `perdure dead-letters …` prints, and tells beside it."""
    values = msgspec.to_builtins(cluster)
    environment = {f"PERDURE_{name.upper()}": str(value) for name, value in values.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "perdure", name, *arguments),
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == status, (printed, told)
    return printed.decode(), told.decode()


async def lines(cluster, *arguments, **options):
    """The same with --json, decoded."""
    printed, _ = await command(cluster, *arguments, "--json", **options)
    return [msgspec.json.decode(line) for line in printed.splitlines()]


async def outcome(cluster, send):
    """What the recorder decides about a record."""
    async with following(cluster) as verdicts:
        where = await send
        return (await decided(verdicts, {where}, 30))[where]


@pytest.fixture
def recorder(cluster, tmp_path):
    """A cluster with a recorder."""
    with Services(cluster, tmp_path, names=("recorder",)):
        yield cluster


AGENT = "airline/mia"
GOOD = [attributes(AGENT, id=name, data={"n": name}) for name in ("one", "two", "three")]
BAD = GOOD[1] | {"type": ""}
POISON = {
    "not an event": (Record("airline/mia", "hello", {}), "no ce_specversion"),
    "wrong attributes": (binary(AGENT, expectedsequence="many"), "expectedsequence"),
    "broken JSON": (binary(AGENT, '{"seat": "12'), "not JSON"),
    "2 MB": (binary(AGENT, f'"{"x" * 2_000_000}"'), "2,000,002 bytes"),
    "an unknown content type": (binary(AGENT, "seat: 12A", content_type="text/yaml"), "text/yaml"),
    "a structured event with a bad attribute": (
        structured(AGENT, BAD, kind="cloudevents+json"), "type",
    ),
    "a structured event that ends early": (
        Record(AGENT, '{"specversion": "1.0", "id"', {"content-type": JSON_EVENT}), "JSON",
    ),
    "a batch with a bad event": (structured(AGENT, GOOD[0], BAD, GOOD[2]), "type"),
    "a batch with something else than an event": (structured(AGENT, GOOD[0], 7), "event"),
}  # fmt: skip
"""Records that are not going to be any better, and what the reason of each names."""


async def test_poison_of_each_kind_is_listed_shown_and_comes_back(recorder):
    """With its reason, byte for byte, and sent again with where it came from; events go on."""
    sent = []
    async with producing(recorder) as producer, following(recorder) as verdicts:
        for number, (record, _) in enumerate(POISON.values()):
            place = await producer.record(record._replace(key=wire.key_of("default", AGENT)))
            sent.append(place)
            sent.append(await producer.event(AGENT, data=number))
        found = await decided(verdicts, set(sent), 60)
    names = [f"{partition}:{offset}" for partition, offset in sent[::2]]
    assert {"dead-letter"} == {found[place].outcome for place in sent[::2]}
    # Nothing of a batch was recorded: what is recorded are the events in between.
    answers = [found[place].answers() for place in sent[1::2]]
    assert [(each.sequence, each.data) for [each] in answers] == [
        (number + 1, number) for number in range(len(POISON))
    ]
    listed = await lines(recorder, "list")
    assert [each["id"] for each in listed] == names
    for each, (what, (record, reason)) in zip(listed, POISON.items(), strict=True):
        assert reason in each["reason"], what
        assert (each["key"], each["bytes"]) == (AGENT, len(record.value)), what
    shown = await asyncio.gather(*(lines(recorder, "show", name) for name in names))
    for [each], (what, (record, _)) in zip(shown, POISON.items(), strict=True):
        assert (each["headers"], each["value"]) == (
            [list(item) for item in record.headers.items()], record.value,
        ), what  # fmt: skip
    again = await lines(recorder, "redrive", "--all", status=1)
    assert [(each["id"], each["outcome"]) for each in again] == [
        (name, "dead-letter") for name in names
    ]
    letters_now = await letters(recorder)
    origins = {str(each.place): each.origin for each in letters_now.values()}
    assert {each["redriven"]: each["id"] for each in again} == {
        name: origin for name, origin in origins.items() if origin
    }
    async with producing(recorder) as producer:
        entry = await outcome(recorder, producer.event(AGENT))
    assert [event.sequence for event in entry.answers()] == [len(POISON) + 1]


async def test_redriven_after_an_agents_tables_were_mended(cluster, tmp_path):
    """Whose rows are damaged holds up no other; rebuilt of the log, what was put aside goes in."""
    with Services(cluster, tmp_path, names=("recorder",)) as services:
        async with producing(cluster) as producer:
            await outcome(cluster, producer.event(AGENT, id="before"))
            services["recorder"].stop()
            session = await Session.connect(cluster)
            await session.execute(
                f"UPDATE {cluster.keyspace(1)}.events SET lineage = 0x7b"
                f" WHERE store = 'default' AND agent = '{AGENT}' AND bucket = 0"
            )
            await session.close()
            services["recorder"].start().wait_ready()
            partition = wire.partition_of(wire.key_of("default", AGENT), cluster.partitions)
            beside = next(
                name
                for name in (f"airline/{number}" for number in range(100))
                if wire.partition_of(wire.key_of("default", name), cluster.partitions) == partition
            )
            lost = await outcome(cluster, producer.event(AGENT, id="put-aside"))
            assert (lost.outcome, lost.error.name) == ("dead-letter", "Corrupt")
            other = await outcome(cluster, producer.event(beside))
            assert [event.sequence for event in other.answers()] == [1]
            [dead] = await lines(cluster, "list")
            assert (dead["key"], "replay" in dead["reason"]) == (AGENT, True)
            [rebuilt] = await lines(cluster, "--force", name="replay", status=1)
            assert ([each["agent"] for each in rebuilt["differences"]], rebuilt["switched"]) == (
                [AGENT], True,
            )  # fmt: skip
            # The log has it: so has what was rebuilt of it, and it is not recorded twice.
            [mended] = await lines(cluster, "redrive", dead["id"])
            assert mended["outcome"] == "recorded"
            entry = await outcome(cluster, producer.event(AGENT, id="put-aside"))
            assert [event.sequence for event in entry.answers()] == [2]
            entry = await outcome(cluster, producer.event(AGENT, id="after"))
            assert [event.sequence for event in entry.answers()] == [3]


async def test_a_letter_is_shown_as_its_record_was(recorder):
    """Reason, error, key, headers and body of whatever it was; nothing can control the terminal."""
    async with producing(recorder) as producer:
        headers = [("ce_specversion", b"0.3"), ("x", b"\x1b[31m"), ("x", b"\xff")]
        where = await producer.send(b"\x1b[2Jgarbage\xff", key=b"a/b", headers=headers)
        decision = await outcome(recorder, producer.send(b"{}", key=b"a/b"))
    assert decision.outcome == "dead-letter"
    first, second = await lines(recorder, "list")
    assert (first["id"], first["key"], first["error"]) == (
        f"{where[0]}:{where[1]}", "a/b", "InvalidInput",
    )  # fmt: skip
    assert "0.3" in first["reason"]
    assert "no ce_specversion" in second["reason"]
    [shown] = await lines(recorder, "show", first["id"])
    assert shown["headers"] == [
        ["ce_specversion", "0.3"], ["x", "\x1b[31m"], ["x", {"base64": "/w=="}],
    ]  # fmt: skip
    assert shown["value"] == {"base64": "G1sySmdhcmJhZ2X/"}
    printed, _ = await command(recorder, "show", first["id"])
    assert "0.3" in printed
    assert r"\x1b[2Jgarbage\xff" in printed
    assert "\x1b" not in printed
    _, told = await command(recorder, "show", "0:99999", status=1)
    assert "there is no dead letter 0:99999" in told


async def test_redriven_after_what_was_missing_is_there(recorder):
    """A record that needed what wasn't there is recorded after it is, once, and that is noted."""
    async with producing(recorder) as producer:
        assert (
            await outcome(recorder, producer.fork("a/fork", "a/parent", 1, CHAIN))
        ).error is None
        send = producer.event("a/fork", data={"said": "early"}, id="one")
        assert (await outcome(recorder, send)).outcome == "dead-letter"
        [dead] = await lines(recorder, "list")
        assert "a/parent" in dead["reason"]
        # Nothing is better yet: it comes back, as another letter that says what it was.
        [again] = await lines(recorder, "redrive", dead["id"], status=1)
        assert again["outcome"] == "dead-letter"
        _, told = await command(recorder, "redrive", dead["id"], status=1)
        assert "--again" in told
        await outcome(recorder, producer.event("a/parent"))
        found = await letters(recorder)
        assert [each.origin for each in found.values()] == ["", dead["id"]]
        assert [list(each.redriven) for each in found.values()] == [[again["redriven"]], []]
        [mended] = await lines(recorder, "redrive", "--all", "--reason", "a/parent")
        assert (mended["id"], mended["outcome"]) == (again["redriven"], "recorded")
        _, told = await command(recorder, "redrive", "--all")
        assert "nothing to send again" in told
        # What has an id is recorded once, however often it is sent.
        [twice] = await lines(recorder, "redrive", dead["id"], "--again")
        assert twice["outcome"] == "recorded"
        entry = await outcome(recorder, producer.event("a/fork", data={"said": "late"}))
        assert [event.sequence for event in entry.answers()] == [4]


async def test_what_is_sent_again_is_what_it_was(cluster):
    """Key, value and headers are the record's own; of two letters of one record there is one."""
    await topics.ensure(cluster)
    producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka, acks="all")
    await producer.start()
    ours = {"reason": "no", "error": "InvalidData", "time": "2026-01-01T00:00:00+00:00"}
    ours |= {"topic": cluster.topic("events"), "partition": "1", "offset": "7"}
    headers = [("ce_id", b"\xff"), ("twice", b"1"), ("twice", b"2")]
    for _ in range(2):
        await producer.send_and_wait(
            cluster.topic("dead-letters"),
            b"\x00\xff",
            b"key",
            headers=[
                *headers,
                *((f"perdure-{name}", text.encode()) for name, text in ours.items()),
            ],
        )
    await producer.send_and_wait(cluster.topic("dead-letters"), b"somebody else's")
    await producer.stop()
    here = Place("events", 1, 7)
    assert list(await letters(cluster)) == [here]
    [content] = [each async for each in contents(cluster, [here])]
    assert (content.key, content.value, list(content.headers)) == (b"key", b"\x00\xff", headers)
    async with redriver(cluster) as sender:
        sent = await sender.send(content)
        with pytest.raises(InvalidInput, match="takes no letters"):
            await sender.send(content._replace(place=Place("journal", 0, 0)))
    assert (await letter(cluster, here)).redriven == (str(sent),)
    with pytest.raises(NotFound):
        await letter(cluster, sent)


async def test_there_may_be_none(cluster):
    """An empty list is no error; a name that is none is one."""
    await topics.ensure(cluster)
    _, told = await command(cluster, "list")
    assert "no dead letters" in told
    _, told = await command(cluster, "show", "seventeen", status=1)
    assert "names no dead letter" in told
    _, told = await command(cluster, "redrive", status=2)
    assert "--all" in told
