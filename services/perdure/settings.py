"""Where a cluster is: the addresses of its engines, and the names of what is in them.

Everything comes from one place: defaults, then a `perdure.toml`, then variables of the environment
(`PERDURE_KAFKA`, `PERDURE_CASSANDRA`, …), the later winning.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from perdure.errors import InvalidInput, NotFound

VARIABLE_PREFIX: Final = "PERDURE_"


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster. Every service is given one; agent processes know its gateway alone.

    `name` starts the names of all topics, keyspaces and collections, so that several clusters can
    share the engines. `kafka` and `cassandra` are addresses with commas between them. `blobs` is
    the URL of checkpoint storage, as fsspec takes it. `replication` is the number of copies that
    topics and keyspaces are made with. An upload of which no chunk came for `upload_seconds` is
    given up; an agent that wrote nothing for `quiet_seconds` gets its state saved, if it is worth
    it. `embedder` names what turns memories into vectors ahead of any recall, `MODULE:NAME` of an
    `Embedder` or of what makes one: the same that agents are given; empty for the default.
    `generation` has a gateway read nothing but that one, to look at what was rebuilt; 0 is what is
    live.
    `blobs` and `archive` are folders of `~/.perdure` by default, for services of one machine.

    >>> Cluster(kafka="k1:9092,k2:9092").topic("events")
    'perdure.events'
    >>> Cluster(name="staging").keyspace(2)
    'staging_g2'
    """

    name: str = "perdure"
    kafka: str = "127.0.0.1:9092"
    partitions: int = 8
    replication: int = 1
    cassandra: str = "127.0.0.1:9042"
    datacenter: str = "datacenter1"
    weaviate: str = "127.0.0.1:8080"
    weaviate_grpc: str = "127.0.0.1:50051"
    blobs: str = msgspec.field(default_factory=lambda: _at_home("blobs"))
    archive: str = msgspec.field(default_factory=lambda: _at_home("archive"))
    upload_seconds: int = 3600
    quiet_seconds: int = 30
    embedder: str = ""
    generation: int = 0
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8787
    health_host: str = "127.0.0.1"
    health_port: int = 8900
    log_level: str = "info"

    def topic(self, kind: str) -> str:
        """The name of a topic: `events`, `journal`, `chunks`, `state` or `dead-letters`."""
        return f"{self.name}.{kind}"

    def group(self, service: str) -> str:
        """The consumer group of a service."""
        return f"{self.name}.{service}"

    def keyspace(self, generation: int) -> str:
        """The keyspace with the tables of a generation."""
        return f"{self.name}_g{generation}"


def load(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that a file and the environment describe.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a value is of a wrong kind, or a name in the file is not known.

    >>> load(environment={"PERDURE_KAFKA": "broker:9092", "PERDURE_PARTITIONS": "3"}).partitions
    3
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values |= tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {path}", hint="check --config") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is no TOML: {error}", hint="mend the file") from error
    for field in msgspec.structs.fields(Cluster):
        variable = VARIABLE_PREFIX + field.name.upper()
        if variable in environment:
            values[field.name] = environment[variable]
    try:
        return msgspec.convert(values, Cluster, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"the cluster's settings are wrong: {error}",
            hint="see perdure.toml and the PERDURE_… variables",
        ) from error


def _at_home(folder: str) -> str:
    """The URL of a folder of whoever runs this: a default that can be written without asking."""
    return (Path.home() / ".perdure" / folder).as_uri()


def addresses(text: str, *, port: int) -> list[tuple[str, int]]:
    """Hosts and ports of a list of addresses.

    >>> addresses("one:9043,two", port=9042)
    [('one', 9043), ('two', 9042)]
    """
    found = []
    for address in text.split(","):
        host, _, given = address.strip().rpartition(":") if ":" in address else (address, "", "")
        if given and not given.isdecimal():
            raise InvalidInput(f"address {address!r} has no port number", hint="host:port")
        found.append((host.strip(), int(given) if given else port))
    return found
