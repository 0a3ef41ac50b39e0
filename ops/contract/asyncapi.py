"""What goes over Kafka, in AsyncAPI 3.0: one document for all services and for other producers.

Channels, and what a service receives and sends there, are FastStream's, of the services as they
are put together. Beside it stand the messages, which FastStream takes for bytes, and what others
than FastStream do: `BESIDE`.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec
from faststream.asgi import AsgiFastStream
from ops.contract.values import (
    JSON_TYPES,
    Schema,
    sent_attributes,
    sent_parts,
    state_parts,
    stored_parts,
)

from perdure.checkpointer import service as checkpointer
from perdure.kafka import topics, wire
from perdure.kafka.chunks import CHUNK_BYTES
from perdure.kafka.journal import JournalRecord
from perdure.memorizer import service as memorizer
from perdure.projector import service as projector
from perdure.projector.publishing import StateRecord
from perdure.recorder import service as recorder
from perdure.settings import Cluster
from perdure.version import __version__

APPLICATIONS: Final[dict[str, Callable[[Cluster], AsgiFastStream]]] = {
    "recorder": recorder.application,
    "checkpointer": checkpointer.application,
    "memorizer": memorizer.application,
    "projector": projector.application,
}

BESIDE: Final = (
    # What other clients of Kafka than FastStream's do: who, what, with which topic, what for.
    ("producer", "send", "events", "Records events of an agent; whoever has a Kafka client can"),
    ("agent", "send", "events", "Records its events, opens agents and forks them"),
    ("agent", "send", "chunks", "Saves objects"),
    ("recorder", "send", "journal", "Tells what became of records, each in its own partition"),
    ("recorder", "send", "dead-letters", "Puts aside what can't be recorded"),
    ("checkpointer", "send", "dead-letters", "Puts aside chunks that are none"),
    ("gateway", "receive", "journal", "Answers what became of records, and tells of new events"),
)

_COMPONENTS = "#/components/schemas/{name}"
_JSON = "application/json"


def document() -> dict[str, Any]:
    """The document, of a cluster with the default settings. Nothing is connected for it."""
    cluster = Cluster()
    written = {name: _written(make(cluster)) for name, make in APPLICATIONS.items()}
    channels = {
        kind: _channel(cluster, kind, description) for kind, description in _DESCRIPTIONS.items()
    }
    kinds = {cluster.topic(kind): kind for kind in topics.KINDS}
    operations = {}
    for service, application in written.items():
        for operation in application["operations"].values():
            reference = operation["channel"]["$ref"].removeprefix("#/channels/")
            channel = application["channels"][reference]
            kind, action = kinds[channel["address"]], operation["action"]
            operations[f"{service}-{action}-{kind}"] = _operation(
                service, action, kind, channel["description"]
            )
    for service, action, kind, summary in BESIDE:
        operations[f"{service}-{action}-{kind}"] = _operation(service, action, kind, summary)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "perdure on Kafka",
            "version": __version__,
            "license": {"name": "Apache-2.0"},
            "description": "The topics of a cluster. Their names start with the cluster's, here "
            "`perdure`; `GET /v1/cluster` of the gateway tells what they are and where Kafka is. "
            "`docs/wire.md` says it in prose, with an example.",
        },
        "defaultContentType": _JSON,
        "servers": {"kafka": {"host": cluster.kafka, "protocol": "kafka"}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _written(application: AsgiFastStream) -> dict[str, Any]:
    """FastStream's own document of a service."""
    found: dict[str, Any] = json.loads(application.schema.to_specification().to_json())
    return found


_MESSAGES_OF: Final = {
    "events": ("event", "structuredEvent", "eventBatch", "claim", "fork"),
    "journal": ("journalRecord",),
    "chunks": ("chunk",),
    "state": ("stateRecord",),
    "dead-letters": ("deadLetter",),
}
_DESCRIPTIONS: Final = {
    "events": "Writes: each record is one, and is recorded as a whole or not at all. An agent's "
    "records have one key and so one partition (murmur2), whose order is that of its events.",
    "journal": "What became of each record of the events, after it is in the tables. Copies of "
    "what was told already can come; per agent, sequences tell what is new.",
    "chunks": "Objects on their way to checkpoint storage, in pieces.",
    "state": "The newest state of each agent.",
    "dead-letters": "Records of the events and the chunks that can't be used, as they were, with "
    "the reason.",
}


def _channel(cluster: Cluster, kind: str, description: str) -> dict[str, Any]:
    settings = topics.settings(kind, cluster.replication)
    configuration: dict[str, Any] = {"max.message.bytes": int(settings["max.message.bytes"])}
    if "cleanup.policy" in settings:
        configuration["cleanup.policy"] = [settings["cleanup.policy"]]
    return {
        "address": cluster.topic(kind),
        "description": description,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {
            name: {"$ref": f"#/components/messages/{name}"} for name in _MESSAGES_OF[kind]
        },
        "bindings": {
            "kafka": {
                "topic": cluster.topic(kind),
                "partitions": cluster.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": "0.5.0",
            }
        },
    }


def _operation(service: str, action: str, kind: str, summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "title": f"{service}: {action} {kind}",
        "summary": summary,
        "channel": {"$ref": f"#/channels/{kind}"},
        "messages": [{"$ref": f"#/channels/{kind}/messages/{name}"} for name in _MESSAGES_OF[kind]],
    }


def _messages() -> dict[str, Any]:

    any_data = {"description": "the data; JSON null where there is none"}

    def event(headers: str, summary: str, payload: Schema = any_data) -> dict[str, Any]:
        return _message(_AGENT_KEY, _JSON, payload, summary, headers=headers)

    return {
        "event": event("EventHeaders", "One event, in the binary mode of the Kafka binding"),
        "structuredEvent": _message(
            _AGENT_KEY,
            wire.STRUCTURED_TYPE.decode(),
            {"$ref": _COMPONENTS.format(name="SentEvent")},
            "One event, in the structured mode",
            headers="StructuredHeaders",
        ),
        "eventBatch": _message(
            _AGENT_KEY,
            wire.BATCH_TYPE.decode(),
            {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": _COMPONENTS.format(name="SentEvent")},
                "description": f"at most {wire.RECORD_BYTES_MAX:,} bytes",
            },
            "Events of one agent that are recorded together, or not at all",
            headers="BatchHeaders",
        ),
        "claim": event("ClaimHeaders", "Opens an agent for exclusive writing; no event of it"),
        "fork": event(
            "ForkHeaders",
            "Creates an agent as a fork; is its first own event",
            {"$ref": _COMPONENTS.format(name="AgentForked")},
        ),
        "journalRecord": _message(
            {"type": "string", "description": "the key of the records that it tells of"},
            _JSON,
            {"$ref": _COMPONENTS.format(name="JournalRecord")},
            "What became of some records of one agent",
        ),
        "chunk": _message(
            _DIGEST,
            "application/octet-stream",
            {"type": "string", "format": "binary", "description": f"1 to {CHUNK_BYTES:,} bytes"},
            "A piece of an object's zstd frame",
            headers="ChunkHeaders",
        ),
        "stateRecord": _message(
            _AGENT_KEY,
            _JSON,
            {"$ref": _COMPONENTS.format(name="StateRecord")},
            "The state of an agent after its newest event",
        ),
        "deadLetter": _message(
            {"description": "as it was"},
            "application/octet-stream",
            {"description": "as it was"},
            "A record that can't be used",
            headers="DeadLetterHeaders",
        ),
    }  # fmt: skip


def _message(
    key: Schema, content_type: str, payload: Schema, summary: str, *, headers: str = ""
) -> dict[str, Any]:
    named = {"headers": {"$ref": _COMPONENTS.format(name=headers)}} if headers else {}
    return {
        "summary": summary,
        "contentType": content_type,
        **named,
        "payload": payload,
        "bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}},
    }


def _schemas() -> dict[str, Schema]:
    sent, _ = sent_parts(_COMPONENTS)
    _, state = state_parts(_COMPONENTS)
    _, told = msgspec.json.schema_components([JournalRecord, StateRecord], ref_template=_COMPONENTS)
    told["Entry"]["properties"]["events"]["items"] = {"$ref": _COMPONENTS.format(name="Event")}
    told["StateRecord"]["properties"]["state"] = {"$ref": _COMPONENTS.format(name="State")}
    parts = [stored_parts(_COMPONENTS), {"SentEvent": sent}, state, told, _headers()]
    merged: dict[str, Schema] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise ValueError(f"two schemas have one name: {sorted(twice)}")
        merged |= part
    return merged


_AGENT_KEY: Final[Schema] = {
    "type": "string",
    "description": "namespace/name in the store `default`, else STORE/namespace/name",
    "examples": ["airline/mia", "lab/airline/mia"],
}
_DIGEST: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9a-f]{64}$",
    "description": "SHA-256, in hexadecimal, of what the object's zstd frame holds",
}


def _headers() -> dict[str, Schema]:
    attributes = {f"ce_{name}": _as_text(schema) for name, schema in sent_attributes().items()}
    required = ["ce_specversion", "ce_id", "ce_source", "ce_type"]
    binary = {"content-type": {"type": "string", "pattern": JSON_TYPES}, **attributes}
    common = {name: binary[name] for name in binary if name not in {"ce_control", "ce_parentchain"}}
    return {
        "EventHeaders": _object(common, required),
        "StructuredHeaders": _object(
            {"content-type": {"const": wire.STRUCTURED_TYPE.decode()}}, ["content-type"]
        ),
        "BatchHeaders": _object(
            {"content-type": {"const": wire.BATCH_TYPE.decode()}}, ["content-type"]
        ),
        "ClaimHeaders": _object(
            {**common, "ce_type": {"const": "agent.opened"}, "ce_control": binary["ce_control"]},
            [*required, "ce_control"],
        ),
        "ForkHeaders": _object(
            {**common, "ce_type": {"const": "agent.forked"},
             "ce_parentchain": binary["ce_parentchain"]},
            [*required, "ce_parentchain"],
        ),
        "ChunkHeaders": _object(
            {
                "perdure-upload": _text("^[0-9a-zA-Z_-]{1,64}$", "names this attempt to upload"),
                "perdure-digest": _DIGEST,
                "perdure-index": _text("^[0-9]+$", "of the chunk, from 0"),
                "perdure-count": _text("^[0-9]+$", "of the chunks of the upload"),
                "perdure-bytes": _text("^[0-9]+$", "of all chunks together"),
                "perdure-crc": _text("^[0-9a-f]{8}$", "CRC-32 of the value"),
                "perdure-uploader": _text(".*", "which process sent it"),
            },
            [f"perdure-{name}" for name in ("upload", "digest", "index", "count", "bytes", "crc")],
        ),
        "DeadLetterHeaders": _object(
            {
                "perdure-reason": _text(".*", "what is wrong, in a sentence"),
                "perdure-error": _text(".*", "the name of a class of `perdure.errors`"),
                "perdure-topic": _text(".*", "where the record is"),
                "perdure-partition": _text("^[0-9]+$", "where the record is"),
                "perdure-offset": _text("^[0-9]+$", "where the record is"),
                "perdure-time": {
                    "type": "string",
                    "format": "date-time",
                    "description": "when it was put aside",
                },
            },
            [
                f"perdure-{name}"
                for name in ("reason", "error", "topic", "partition", "offset", "time")
            ],
        ),
    }  # fmt: skip


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _text(pattern: str, description: str) -> Schema:
    return {"type": "string", "pattern": pattern, "description": description}


def _as_text(schema: Schema) -> Schema:
    """The schema of an attribute as a header: a number is written in digits there."""
    if "anyOf" not in schema:
        return schema
    [_, text] = schema["anyOf"]
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **text}
