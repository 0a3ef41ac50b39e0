"""Writes `schemas/` from the code: `make docs` runs it, and a test compares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from perdure.cassandra import schema as cassandra
from perdure.gateway import app as gateway
from perdure.model.event import SEQUENCE_DIGITS
from perdure.model.names import TYPE_CHARS_MAX
from perdure.model.series import Map, Series
from perdure.model.state import Action, Memories, SavedObject, State, Task, Tools
from perdure.model.vocabulary import BUILT_IN
from perdure.settings import Cluster

FOLDER = Path(__file__).parent.parent / "schemas"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NUMBER_AS_TEXT = {"type": "string", "pattern": f"^[0-9]{{{SEQUENCE_DIGITS}}}$"}
_TEXT = {"type": "string", "minLength": 1}


def event_schema() -> dict[str, Any]:
    """The JSON Schema of an event: CloudEvents 1.0 attributes, extensions, data by type."""
    _, components = msgspec.json.schema_components(list(BUILT_IN.values()))
    by_type = [
        {
            "if": {"properties": {"type": {"const": name}}},
            "then": {"properties": {"data": {"$ref": f"#/$defs/{shape.__name__}"}}},
        }
        for name, shape in BUILT_IN.items()
        if components[shape.__name__]["properties"]
    ]
    return {
        "$schema": DRAFT,
        "$id": "urn:perdure:schema:event:1",
        "title": "An event of an agent",
        "description": "CloudEvents 1.0 in its JSON format, with perdure's extensions.",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "sequence"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {**_TEXT, "description": "UUIDv7 where perdure chose it"},
            "source": {**_TEXT, "description": "URI reference; /namespace/name by default"},
            "type": {**_TEXT, "maxLength": TYPE_CHARS_MAX},
            "subject": {**_TEXT, "description": "the agent, namespace/name"},
            "time": {
                "type": "string",
                "format": "date-time",
                "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}([.][0-9]{1,6})?Z$",
                "description": "RFC 3339, in UTC",
            },
            "datacontenttype": {"const": "application/json"},
            "dataschema": {
                "type": "string",
                "pattern": "^urn:perdure:event:.+:[1-9][0-9]*$",
                "description": "type and version of the data",
            },
            "sequence": {**_NUMBER_AS_TEXT, "description": "place in the agent's stream, from 1"},
            "writer": {**_TEXT, "description": "who wrote it"},
            "writersequence": {**_NUMBER_AS_TEXT, "description": "the writer's own count"},
            "epoch": {
                "type": "integer",
                "minimum": 0,
                "description": "fencing token of the opening that wrote it; 0: contributed",
            },
            "correlationid": {**_TEXT, "description": "the task it belongs to"},
            "causationid": {**_TEXT, "description": "the event that caused it"},
            "traceparent": {**_TEXT, "description": "W3C trace context"},
            "expectedsequence": _NUMBER_AS_TEXT,
            "keyid": {**_TEXT, "description": "the key its data is encrypted with"},
            "data": {"description": "any JSON; for built-in types as below"},
        },
        "allOf": by_type,
        "$defs": components,
    }


def state_schema() -> dict[str, Any]:
    """The JSON Schema of the default state."""
    shapes = (State, Tools, Task, Action, Memories, SavedObject)
    (reference, *_), components = msgspec.json.schema_components(shapes, schema_hook=_container)
    for shape in shapes:
        component = components[shape.__name__]
        component["description"] = (shape.__doc__ or "").partition("\n")[0]
        # Every field is written, whatever its default.
        component["required"] = list(component["properties"])
        for field in msgspec.structs.fields(shape):
            if get_origin(field.type) in {Series, Map}:
                component["properties"][field.encode_name] = _container(field.type)
    return {
        "$schema": DRAFT,
        "$id": "urn:perdure:schema:state:1",
        **reference,
        "$defs": components,
    }


def _container(kind: object) -> dict[str, Any]:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    inner: dict[str, Any] = {}
    if arguments and isinstance(arguments[0], type) and issubclass(arguments[0], msgspec.Struct):
        inner = {"$ref": f"#/$defs/{arguments[0].__name__}"}
    elif arguments and arguments[0] is int:
        inner = {"type": "integer"}
    if origin is Series:
        return {"type": "array", "items": inner}
    if origin is Map:
        return {"type": "object", "additionalProperties": inner}
    raise NotImplementedError


def openapi() -> dict[str, Any]:
    """What the gateway answers, in OpenAPI 3.1."""
    return gateway.application(Cluster()).openapi_schema.to_schema()


SCHEMAS: dict[str, Callable[[], dict[str, Any] | str]] = {
    "cassandra.cql": cassandra.text,
    "events.schema.json": event_schema,
    "openapi.json": openapi,
    "state.schema.json": state_schema,
}


def text(name: str) -> str:
    """What the file of this name should hold."""
    schema = SCHEMAS[name]()
    if isinstance(schema, str):
        return schema
    encoded = msgspec.json.encode(schema, order="deterministic")
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def main() -> None:
    """Write every schema."""
    FOLDER.mkdir(exist_ok=True)
    for name in SCHEMAS:
        (FOLDER / name).write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
