"""The prepared statements of a generation's tables, and who finds the generation of an agent."""

import asyncio
import dataclasses
from typing import Final, NamedTuple, Protocol

from perdure.cassandra.cells import Lineage
from perdure.cassandra.session import Session, Statement

_BUCKET: Final = "store = ? AND agent = ? AND bucket = ?"
_AGENT: Final = "store = ? AND agent = ?"

HEAD: Final = (
    "bucket, first, chain_before, last, epoch, position, chain, time_max, bucket_events,"
    " bucket_bytes, lineage"
)
"""The static columns of a bucket that readers want, in the order of `Bucket`."""

STATEMENTS: Final = {
    # Of the hot path: their values are packed by hand in `streams`, in this order.
    "insert_event": "INSERT INTO {}.events (store, agent, bucket, sequence, type, event)"
    " VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
    "insert_type": "INSERT INTO {}.events_by_type (store, agent, bucket, type, time, sequence)"
    " VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
    "insert_id": "INSERT INTO {}.event_ids (store, agent, bucket, id, sequence)"
    " VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
    # Writers are added cell by cell: a whole map would be a tombstone and its cells.
    "update_head": "UPDATE {}.events USING TIMESTAMP ? SET last = ?, epoch = ?, position = ?,"
    " chain = ?, time_max = ?, bucket_events = ?, bucket_bytes = ?, writers = writers + ?,"
    " lineage = ?, first = ?, chain_before = ?"
    f" WHERE {_BUCKET}",
    "insert_writer": "INSERT INTO {}.writers (store, agent, writer, last) VALUES (?, ?, ?, ?)"
    " USING TIMESTAMP ?",
    # The rest is bound by the driver.
    "insert_stream": "INSERT INTO {}.streams (store, agent, bucket) VALUES (?, ?, ?)"
    " USING TIMESTAMP ?",
    "insert_namespace": "INSERT INTO {}.namespaces (store, prefix) VALUES (?, ?) USING TIMESTAMP ?",
    "insert_agent": "INSERT INTO {}.agents (store, prefix, agent) VALUES (?, ?, ?)"
    " USING TIMESTAMP ?",
    "stream": f"SELECT bucket FROM {{}}.streams WHERE {_AGENT}",
    # DISTINCT reads the static columns of a partition and none of its rows.
    "bucket": f"SELECT DISTINCT {HEAD} FROM {{}}.events WHERE {_BUCKET}",
    "bucket_writers": f"SELECT DISTINCT {HEAD}, writers, WRITETIME(position) FROM {{}}.events"
    f" WHERE {_BUCKET}",
    "writers": f"SELECT writer, last FROM {{}}.writers WHERE {_AGENT} AND writer IN ?",
    "events": f"SELECT event FROM {{}}.events WHERE {_BUCKET} AND sequence >= ? AND sequence <= ?",
    "events_of": f"SELECT event FROM {{}}.events WHERE {_BUCKET} AND sequence IN ?",
    "events_back": "SELECT event, WRITETIME(event) FROM {}.events"
    f" WHERE {_BUCKET} AND sequence <= ? ORDER BY sequence DESC",
    "sequenced": f"SELECT sequence, event FROM {{}}.events WHERE {_BUCKET}",
    "ids": f"SELECT id, sequence FROM {{}}.event_ids WHERE {_BUCKET} AND id IN ?",
    "all_ids": f"SELECT id, sequence FROM {{}}.event_ids WHERE {_BUCKET}",
    "types": "SELECT sequence FROM {}.events_by_type"
    f" WHERE {_BUCKET} AND type = ? AND time >= ? AND time <= ?",
    "all_types": f"SELECT type, time, sequence FROM {{}}.events_by_type WHERE {_BUCKET}",
    "namespaces": "SELECT prefix FROM {}.namespaces WHERE store = ? AND prefix >= ? LIMIT ?",
    "agents": "SELECT agent FROM {}.agents WHERE store = ? AND prefix = ? AND agent >= ? LIMIT ?",
    "insert_state": "INSERT INTO {}.states"
    " (store, agent, projection, slot, key, sequence, size, crc)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "insert_piece": "INSERT INTO {}.state_pieces"
    " (store, agent, projection, slot, piece, body) VALUES (?, ?, ?, ?, ?, ?)",
    "states": "SELECT projection, slot, key, sequence, size, crc FROM {}.states"
    f" WHERE {_AGENT} AND projection = ?",
    "all_states": f"SELECT projection, slot, key, sequence, size, crc FROM {{}}.states"
    f" WHERE {_AGENT}",
    "piece": "SELECT body FROM {}.state_pieces"
    f" WHERE {_AGENT} AND projection = ? AND slot = ? AND piece = ?",
}


class Known:
    """What was learnt of a generation's streams, for all stores together.

    `newest` is an agent's newest bucket as it was when it was last looked at. `closed` are buckets
    that have a successor, which never change again.
    """

    def __init__(self) -> None:
        self.newest: dict[tuple[str, str], Bucket] = {}
        self.closed: dict[tuple[str, str, int], Bucket] = {}


class Bucket(NamedTuple):
    """The static columns of a bucket. `time_max` is in microseconds since 1970.

    `writers` and `written` (the stamp of the head) are there where they were asked for.
    """

    number: int
    first: int
    chain_before: bytes
    last: int
    epoch: int
    position: int
    chain: bytes
    time_max: int | None
    events: int
    bytes: int
    lineage: Lineage
    writers: dict[str, int] | None = None
    written: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Tables:
    """A generation: each of `STATEMENTS`, prepared, and what is known of its streams."""

    keyspace: str
    insert_event: Statement
    insert_type: Statement
    insert_id: Statement
    update_head: Statement
    insert_writer: Statement
    insert_stream: Statement
    insert_namespace: Statement
    insert_agent: Statement
    stream: Statement
    bucket: Statement
    bucket_writers: Statement
    writers: Statement
    events: Statement
    events_of: Statement
    events_back: Statement
    sequenced: Statement
    ids: Statement
    all_ids: Statement
    types: Statement
    all_types: Statement
    namespaces: Statement
    agents: Statement
    insert_state: Statement
    insert_piece: Statement
    states: Statement
    all_states: Statement
    piece: Statement
    known: Known = dataclasses.field(init=False, default_factory=Known)

    @classmethod
    async def prepare(cls, session: Session, keyspace: str) -> "Tables":
        """Prepare them for the tables of a keyspace.

        Raises:
            Incompatible: the tables are not those of the schema.
            Unreachable: no node answered in time.
        """
        prepared = await asyncio.gather(
            *(session.prepare(cql.replace("{}", keyspace)) for cql in STATEMENTS.values())
        )
        return cls(keyspace, **dict(zip(STATEMENTS, prepared, strict=True)))


class Generations(Protocol):
    """Who knows in which generation's tables an agent is."""

    def of(self, store: str, agent: str) -> Tables:
        """The tables of an agent."""
        ...

    def all(self) -> list[Tables]:
        """The tables of all generations that agents are in."""
        ...


class OneGeneration:
    """All agents in the tables of one generation. `Generations` for a rebuild, and for most."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def of(self, store: str, agent: str) -> Tables:  # noqa: ARG002 - it is the same for all
        return self._tables

    def all(self) -> list[Tables]:
        return [self._tables]
