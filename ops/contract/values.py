"""JSON Schemas of events as they are sent and as they are recorded, and of states."""

from typing import Any, get_args, get_origin

import msgspec

from perdure.gateway.messages import DEFAULT_STORE
from perdure.model.event import EVENT_BYTES_MAX, SEQUENCE_DIGITS, Event
from perdure.model.names import KEY_CHARS_MAX, NAME_CHARS_MAX, TYPE_CHARS_MAX
from perdure.model.sequencing import CHAIN_BYTES
from perdure.model.series import Map, Series
from perdure.model.state import Action, Memories, SavedObject, State, Task, Tools
from perdure.model.vocabulary import BUILT_IN

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS = "#/$defs/{name}"
"""Where the parts of a schema of its own are."""

JSON_TYPES = "^((application|text)/json|[^;]+[+]json)( *;.*)?$"
"""What data may be said to be: JSON, or a format that is written in it."""

_NUMBER_AS_TEXT = {"type": "string", "pattern": f"^[0-9]{{{SEQUENCE_DIGITS}}}$"}
_TEXT = {"type": "string", "minLength": 1}
_GIVEN_TEXT = {**_TEXT, "maxLength": KEY_CHARS_MAX}
_PART = f"[A-Za-z0-9][A-Za-z0-9._:@+-]{{0,{NAME_CHARS_MAX - 1}}}"
_NUMBER = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        {"type": "string", "pattern": "^[0-9]+$"},
    ]
}


def event_schema() -> Schema:
    """The JSON Schema of an event: CloudEvents 1.0 attributes, extensions, data by type."""
    by_type, components = _data_by_type(DEFINITIONS)
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


def stored_parts(template: str) -> dict[str, Schema]:
    """The schema of a recorded event as it is stored, as `Event`, and of its parts.

    Parts refer to each other as `template` says.
    """
    by_type, data = _data_by_type(template)
    _, components = msgspec.json.schema_components([Event], ref_template=template)
    components["Event"]["description"] = (
        "A recorded event as it is stored, whose bytes are in the hash chain. Its attributes are "
        "those of the CloudEvent; `version` is that of its data."
    )
    components["Event"]["allOf"] = by_type
    return components | data


def sent_attributes() -> dict[str, Schema]:
    """The attributes that a producer gives an event, and what each has to be."""
    return {
        "specversion": {"const": "1.0"},
        "id": {**_GIVEN_TEXT, "description": "names the event: sent again, it is recorded once"},
        "source": {**_GIVEN_TEXT, "description": "URI reference: whose event it is"},
        "type": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
            "maxLength": TYPE_CHARS_MAX,
            "description": "for example message.added",
        },
        "subject": {
            "type": "string",
            "pattern": f"^{_PART}/{_PART}$",
            "description": "the agent, namespace/name; left out, it is the record's key",
        },
        "time": {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339 with a zone; left out, it is the record's timestamp",
        },
        "dataschema": {
            "type": "string",
            "description": "urn:perdure:event:TYPE:VERSION; of another form or left out: version 1",
        },
        "store": {
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$",
            "default": DEFAULT_STORE,
            "description": "the store of the cluster; those of a batch are of one store",
        },
        "expectedsequence": {
            **_NUMBER,
            "description": "refused unless it is the agent's last; a batch's first event has it",
        },
        "epoch": {
            **_NUMBER,
            "description": "refused unless it is the agent's; a batch's first event has it",
        },
        "writer": {**_GIVEN_TEXT, "description": "who wrote it, if that is not the source"},
        "writersequence": {
            **_NUMBER,
            "description": "the writer's own count, from 1, ever greater: identifies the event in "
            "place of its id, and with less to look up",
        },
        "dedupe": {"const": "id", "description": "the id identifies it, in spite of a count"},
        "correlationid": {**_GIVEN_TEXT, "description": "the task it belongs to"},
        "causationid": {**_GIVEN_TEXT, "description": "the event that caused it"},
        "traceparent": {**_GIVEN_TEXT, "description": "W3C trace context"},
        "keyid": {**_GIVEN_TEXT, "description": "the key its data is encrypted with"},
        "control": {
            "const": "claim",
            "description": "on agent.opened alone: opens the agent for exclusive writing",
        },
        "parentchain": {
            "type": "string",
            "pattern": f"^[0-9a-f]{{{2 * CHAIN_BYTES}}}$",
            "description": "on agent.forked alone: the parent's hash chain where it is forked",
        },
    }


def sent_parts(template: str) -> tuple[Schema, dict[str, Schema]]:
    """The schema of an event as it is sent in JSON, and of its parts."""
    by_type, components = _data_by_type(template)
    attributes = sent_attributes()
    return {
        "title": "An event as it is sent",
        "description": "CloudEvents 1.0 in its JSON format. Other extensions are left aside.",
        "type": "object",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            **attributes,
            "datacontenttype": {"type": "string", "pattern": JSON_TYPES},
            "data": {"description": f"any JSON of at most {EVENT_BYTES_MAX:,} bytes"},
        },
        "dependencies": {"writersequence": ["writer"]},
        "allOf": [
            *by_type,
            {
                "if": {"properties": {"type": {"const": "agent.forked"}}},
                "then": {"required": ["parentchain"]},
            },
        ],
    }, components


def _data_by_type(template: str) -> tuple[list[Schema], dict[str, Schema]]:
    """What holds for the data of built-in types, as conditions, and the schemas of such data."""
    shapes = list(BUILT_IN.values())
    _, components = msgspec.json.schema_components(shapes, ref_template=template)
    conditions = [
        {
            "if": {"properties": {"type": {"const": name}}},
            "then": {"properties": {"data": {"$ref": template.format(name=shape.__name__)}}},
        }
        for name, shape in BUILT_IN.items()
        if components[shape.__name__]["properties"]
    ]
    return conditions, components


def state_schema() -> Schema:
    """The JSON Schema of the default state."""
    reference, components = state_parts(DEFINITIONS)
    return {
        "$schema": DRAFT,
        "$id": "urn:perdure:schema:state:1",
        **reference,
        "$defs": components,
    }


def state_parts(template: str) -> tuple[Schema, dict[str, Schema]]:
    """The schema of the default state, as a reference to one of its parts."""
    shapes = (State, Tools, Task, Action, Memories, SavedObject)
    (reference, *_), components = msgspec.json.schema_components(
        shapes, schema_hook=lambda kind: _container(kind, template), ref_template=template
    )
    for shape in shapes:
        component = components[shape.__name__]
        component["description"] = (shape.__doc__ or "").partition("\n")[0]
        # Every field is written, whatever its default.
        component["required"] = list(component["properties"])
        for field in msgspec.structs.fields(shape):
            if get_origin(field.type) in {Series, Map}:
                component["properties"][field.encode_name] = _container(field.type, template)
    return reference, components


def _container(kind: object, template: str) -> Schema:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    inner: Schema = {}
    if arguments and isinstance(arguments[0], type) and issubclass(arguments[0], msgspec.Struct):
        inner = {"$ref": template.format(name=arguments[0].__name__)}
    elif arguments and arguments[0] is int:
        inner = {"type": "integer"}
    if origin is Series:
        return {"type": "array", "items": inner}
    if origin is Map:
        return {"type": "object", "additionalProperties": inner}
    raise NotImplementedError
