"""The schemas say what the code writes: they are compared with it, and real output with them."""

import json

import jsonschema
import msgspec
import pytest
from ops.write_schemas import FOLDER, SCHEMAS, text
from tests.unit.test_runs import LINES

import perdure
from perdure.model import state
from perdure.model.runs import parse_run, run_events
from perdure.model.vocabulary import BUILT_IN, RESERVED


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
