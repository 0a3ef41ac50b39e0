"""The schemas say what the code writes: they are compared with it, and real output with them."""

import datetime as dt
import json

import jsonschema
import msgspec
import openapi_spec_validator
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops.write_schemas import FOLDER, SCHEMAS, text
from tests.node import modules
from tests.unit.test_runs import LINES

import perdure
from perdure.checkpointer.uploads import Chunk
from perdure.errors import InvalidData, InvalidInput
from perdure.kafka import chunks, dead_letters, journal, topics, wire
from perdure.model import event, state
from perdure.model.runs import parse_run, run_events
from perdure.model.sequencing import Append
from perdure.model.vocabulary import BUILT_IN, RESERVED
from perdure.projector.publishing import StateRecord
from perdure.settings import Cluster


def validator(name):
    """What checks values against one of the schemas."""
    schema = json.loads((FOLDER / name).read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_what_the_code_gives(name):
    """A schema that is out of date is written anew by `make docs`."""
    assert (FOLDER / name).read_text() == text(name)


def test_no_other_schema_lies_around():
    """Each file in the folder is one that the code writes."""
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(SCHEMAS)


def plain(value):
    """As JSON, the way a reader in another language gets it."""
    return json.loads(msgspec.json.encode(value, enc_hook=state.builtins))


async def test_every_event_and_state_that_is_written_is_valid(tmp_path):
    """Real runs and one event of each built-in type pass; so do the states they lead to."""
    samples = {
        "message.added": {"role": "user", "content": "hello"},
        "tool.called": {"id": "c1", "name": "book", "arguments": {"seat": "12A"}},
        "tool.executed": {"id": "c1", "result": "ok"},
        "tool.failed": {"id": "c1", "error": "no seat"},
        "task.started": {"task": "t", "title": "a trip", "systems": ["gds"]},
        "task.finished": {"task": "t", "reward": 1.0},
        "task.failed": {"task": "t"},
        "step.started": {"step": "s"},
        "step.completed": {"step": "s"},
        "step.failed": {"step": "s"},
        "memory.stored": {"text": "aisle", "source": "chat", "context": {}, "metadata": {"n": 1}},
        "record.put": {"key": "k", "value": None},
        "record.deleted": {"key": "k"},
    }
    events, states = validator("events.schema.json"), validator("state.schema.json")
    written = set()
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("a/b")
        for kind in BUILT_IN.keys() - RESERVED.keys() - {"memory.forgotten"}:
            await agent.emit(kind, samples.get(kind), correlation_id="t", causation_id="c")
        await agent.emit_many(
            run_events(parse_run(LINES[0], 1)), expected_sequence=agent.state.sequence
        )
        await agent.forget(next(iter(agent.state.memories.ids)))
        await agent.checkpoint("policy", {"weights": [1, 2]})
        states.validate(plain(agent.state))
        async with await agent.fork(name="a/c") as fork:
            states.validate(plain(fork.state))
            async for event in fork.events():
                written.add(event.type)
                events.validate(plain(event.to_cloudevent()))
        await agent.revert(to=3)
        states.validate(plain(agent.state))
        async for event in agent.events():
            written.add(event.type)
            events.validate(plain(event.to_cloudevent()))
    assert written == set(BUILT_IN)


@pytest.mark.parametrize(
    "damage",
    [{"sequence": 7}, {"specversion": "0.3"}, {"time": "yesterday"}, {"data": {"content": "x"}}],
)
async def test_a_wrong_event_is_not_valid(tmp_path, damage):
    """Refused: a number as sequence, another CloudEvents version, no time, data without role."""
    async with perdure.connect(tmp_path) as store:
        event = await store.emit("a/b", "message.added", {"role": "user"})
    with pytest.raises(jsonschema.ValidationError):
        validator("events.schema.json").validate({**plain(event.to_cloudevent()), **damage})


def read(name):
    """A schema as a reader has it."""
    return json.loads((FOLDER / name).read_text())


def references(value):
    """What a document refers to, wherever in it."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


def test_asyncapi_is_valid():
    """The document is what AsyncAPI's own schema asks for; whatever it refers to is there."""
    document = read("asyncapi.json")
    schema = json.loads((modules() / "@asyncapi/specs/schemas/3.0.0.json").read_text())
    check = jsonschema.Draft7Validator(schema)
    check.validate(document)
    with pytest.raises(jsonschema.ValidationError):
        check.validate({**document, "channels": {"events": {"adress": "perdure.events"}}})
    for reference in references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    for component in document["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(component)


def test_asyncapi_has_every_topic_and_service():
    """Each topic is there, is sent to and received from, with the names that settings give it."""
    document, cluster = read("asyncapi.json"), Cluster()
    assert {name: each["address"] for name, each in document["channels"].items()} == {
        kind: cluster.topic(kind) for kind in topics.KINDS
    }
    done = {tuple(name.split("-", 2)) for name in document["operations"]}
    assert {
        ("recorder", "receive", "events"),
        ("checkpointer", "receive", "chunks"),
        ("checkpointer", "receive", "journal"),
        ("memorizer", "receive", "journal"),
        ("projector", "receive", "journal"),
        ("projector", "send", "state"),
    } <= done
    assert {kind for _, action, kind in done if action == "send"} == set(topics.KINDS)


def test_openapi_is_valid():
    """The document is what OpenAPI asks for."""
    openapi_spec_validator.validate(read("openapi.json"))
    with pytest.raises(Exception, match="'info' is a required property"):
        openapi_spec_validator.validate({"openapi": "3.1.0", "paths": {}})


def component(name):
    """What checks values against one of the schemas of the AsyncAPI document."""
    document = read("asyncapi.json")
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft7Validator(
        schema, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
    )


def texts(headers):
    """Headers as a reader has them."""
    return {name: value.decode() for name, value in headers}


NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
EVENT = event.NewEvent(
    type="message.added", data={"role": "user"}, id="1", time=NOW, source="/s", version=2,
    writer="w", writer_sequence=7, correlation_id="t", causation_id="c", traceparent="p",
    key_id="k",
)  # fmt: skip
APPEND = Append("a/b", (EVENT,), "w", 3, 9, True)
FORK = msgspec.structs.replace(EVENT, type="agent.forked", data={"parent": "a/c", "at": 1})


def test_attributes_are_those_of_the_wire():
    """The schemas name what the code sends and reads, and nothing else."""
    sent = set(component("SentEvent").schema["components"]["schemas"]["SentEvent"]["properties"])
    assert sent == set(wire._CloudEvent.__struct_fields__) - {"data_base64"}
    headers = component("EventHeaders").schema["components"]["schemas"]
    assert {f"ce_{name}" for name in sent - {"data", "datacontenttype"}} == (
        {*headers["EventHeaders"]["properties"], "ce_control", "ce_parentchain"} - {"content-type"}
    )


def test_what_is_sent_to_kafka_is_valid():
    """Each kind of record that the code writes has the headers and the value that are published."""
    full = wire.encode(APPEND, store="lab")
    component("EventHeaders").validate(texts(full.headers))
    assert len(full.headers) == 18
    for headers in ("ce_id", "ce_type", "ce_specversion"):
        with pytest.raises(jsonschema.ValidationError):
            component("EventHeaders").validate(
                {name: value for name, value in texts(full.headers).items() if name != headers}
            )
    pair = wire.encode(msgspec.structs.replace(APPEND, events=(EVENT, EVENT)), store="lab")
    component("BatchHeaders").validate(texts(pair.headers))
    for sent in json.loads(pair.value):
        component("SentEvent").validate(sent)
    claim = wire.encode_claim("a/b", claim_id="1", writer="w", store="lab")
    component("ClaimHeaders").validate(texts(claim.headers))
    fork = wire.encode_fork(Append("a/b", (FORK,), "w", None, None, False), bytes(32))
    component("ForkHeaders").validate(texts(fork.headers))
    component("AgentForked").validate(json.loads(fork.value))
    _, _, headers = chunks.encode(Chunk("u", "0" * 64, 0, 1, 3, b"abc", "me"))
    component("ChunkHeaders").validate(texts(headers))


async def test_what_the_services_tell_is_valid(tmp_path):
    """Journal, states and dead letters are as published, with the events and states within."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("a/b")
        recorded = await agent.emit("message.added", {"role": "user"})
        now = plain(agent.state)
    refusal = journal.problem_of(InvalidData("no", hint="yes"))
    record = journal.JournalRecord(
        "lab", "a/b", 3,
        [
            journal.Entry(1, "recorded", [msgspec.Raw(event.encode(recorded))]),
            journal.Entry(2, "refused", error=refusal),
            journal.Entry(3, "opened", epoch=2, sequence=1, chain="00"),
        ],
        1, 2, "00", "a/c", 1, 17,
    )  # fmt: skip
    told = json.loads(journal.encode(record))
    component("JournalRecord").validate(told)
    told["entries"][0]["events"][0]["sequence"] = "1"
    with pytest.raises(jsonschema.ValidationError):
        component("JournalRecord").validate(told)
    state_record = StateRecord("lab", "a/b", 1, "00", "default", "/v1", msgspec.Raw(b"null"))
    record = {**json.loads(msgspec.json.encode(state_record)), "state": now}
    component("StateRecord").validate(record)
    letter = dead_letters.headers_of(Source(), InvalidData("no"), NOW)
    component("DeadLetterHeaders").validate(texts(letter))


class Source:
    """A record of Kafka."""

    topic, partition, offset, key, value, headers = "t", 1, 2, b"k", b"v", (("x", b"1"),)


GIVEN = {
    "specversion": "1.0", "id": "1", "source": "/s", "type": "seat.wanted", "subject": "a/b",
}  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [
            *("a/b", "../x", "a/b/c", f"a/{'b' * 128}", f"a/{'b' * 129}", "a b", "/", "", "é/b"),
            *("1.0", "0.3", "id", "claim", "rule", "lab", "Lab", "00" * 32, "0" * 63, "x" * 512),
            *("x" * 513, "message.added", "agent.forked", "0", "7", "-1", "1.5", "soon", "9" * 15),
            *("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123+02:00", "2026-13-02T03:04:05Z"),
            *("2026-01-02t03:04:05z", "yesterday", "urn:perdure:event:seat.wanted:3", "/other"),
        ]
    ),
    st.integers(-2, 3),
    st.sampled_from([{"role": "user"}, {}, [], True, 1.5]),
)


@given(
    st.dictionaries(
        st.sampled_from(sorted(set(wire._CloudEvent.__struct_fields__) - {"data_base64"})),
        VALUES,
        max_size=3,
    ),
    st.sets(st.sampled_from(sorted(GIVEN)), max_size=1),
)
def test_what_is_valid_is_read(changes, left_out):
    """An event that is as published is read, whatever is in it; another one is refused.

    Only attributes that say nothing of such an event may be anything, and time of any ISO 8601.
    """
    sent = {name: value for name, value in GIVEN.items() if name not in left_out} | changes
    wrong = {
        error.path[0] if error.path else "" for error in component("SentEvent").iter_errors(sent)
    }
    try:
        wire.decode(b"a/b", json.dumps(sent).encode(), STRUCTURED, 1_700_000_000_000)
        refused = False
    except InvalidInput:
        refused = True
    assert wrong if refused else wrong <= {"dedupe", "parentchain", "time"}


STRUCTURED = [("content-type", wire.STRUCTURED_TYPE)]
