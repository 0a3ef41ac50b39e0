"""Writes `schemas/` from the code: `make docs` runs it, and a test compares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from ops.contract import asyncapi
from ops.contract.values import event_schema, state_schema

from perdure.cassandra import schema as cassandra
from perdure.gateway import app as gateway
from perdure.settings import Cluster
from perdure.weaviate.schema import About, collection_name, definition

FOLDER = Path(__file__).parent.parent / "schemas"


def openapi() -> dict[str, Any]:
    """What the gateway answers, in OpenAPI 3.1."""
    return gateway.application(Cluster()).openapi_schema.to_schema()


def weaviate() -> dict[str, Any]:
    """A collection of memories, as Weaviate's REST interface takes it."""
    keyspace, embedder = Cluster().keyspace(1), "all-MiniLM-L6-v2"
    return definition(collection_name(keyspace, embedder), About(keyspace, embedder))


SCHEMAS: dict[str, Callable[[], dict[str, Any] | str]] = {
    "asyncapi.json": asyncapi.document,
    "cassandra.cql": cassandra.text,
    "events.schema.json": event_schema,
    "openapi.json": openapi,
    "state.schema.json": state_schema,
    "weaviate.json": weaviate,
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
