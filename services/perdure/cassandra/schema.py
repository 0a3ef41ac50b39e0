"""The keyspaces and tables: one control keyspace, and one keyspace for each generation.

`schemas/cassandra.cql` is this, written out; a test compares them.

Tables of events take no deletes and no expiry: each write carries its place in the log as its time
(`stamps`), and what is stored once is never taken back. The tables with the partition key (store,
agent, bucket) are written in one batch, which is one mutation: rows, indexes and head can't
disagree.
"""

import re
from typing import Final

from perdure.cassandra.session import Session
from perdure.errors import InvalidInput
from perdure.settings import Cluster

FORMAT: Final = 1
"""Version of the tables; of another one there is none yet."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

_MANY: Final = (
    "compression = {{'class': 'ZstdCompressor'}}"
    " AND compaction = {{'class': 'UnifiedCompactionStrategy'}}"
)

CONTROL: Final = (
    """CREATE TABLE IF NOT EXISTS {keyspace}.format (
    part text PRIMARY KEY,          -- control
    version int
)""",
    """CREATE TABLE IF NOT EXISTS {keyspace}.topics (
    topic text PRIMARY KEY,         -- events
    partitions int,                 -- with which the log was made
    generation int                  -- goes up when offsets start anew: the upper bits of stamps
)""",
    """CREATE TABLE IF NOT EXISTS {keyspace}.generations (
    generation int PRIMARY KEY,
    format int,                     -- of its tables
    state text,                     -- building, live, past, scratch, dropped
    created timestamp,
    until timestamp                 -- of one that was built up to a time of the past; else null
)""",
    """CREATE TABLE IF NOT EXISTS {keyspace}.partitions (
    partition int PRIMARY KEY,      -- of the topic of events
    generation int,                 -- the one that is read
    position bigint                 -- of the last record that switched it, or was refused; or null
)""",
    """CREATE TABLE IF NOT EXISTS {keyspace}.replays (
    generation int,                 -- the one that is built
    partition int,
    position bigint,                -- all records of the log before this offset are in its tables
    PRIMARY KEY ((generation), partition)
)""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.objects (
    digest text PRIMARY KEY,        -- SHA-256 of the encoded object, hexadecimal
    size bigint,                    -- bytes of the encoded object
    stored bigint,                  -- bytes in checkpoint storage; null while it isn't there
    uploader text,
    created timestamp,
    refused map<text, text>         -- of uploads that failed: their name, and why; for a while
) WITH {_MANY}""",
)

GENERATION: Final = (
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.events (
    store text,
    agent text,                     -- namespace/name
    bucket int,                     -- 0, 1, 2 ...
    sequence bigint,
    type text,
    event blob,                     -- JSON of the event: its stored bytes
    first bigint static,            -- sequence with which the bucket starts
    chain_before blob static,       -- hash chain before the bucket's first event
    last bigint static,             -- sequence of its last event: the head, in the newest bucket
    epoch int static,
    position bigint static,         -- offset of the record that brought its last event
    chain blob static,              -- hash chain after its last event
    time_max bigint static,         -- latest time of any event so far, microseconds since 1970
    bucket_events int static,
    bucket_bytes bigint static,     -- of stored events
    writers map<text, bigint> static, -- last number of each writer that wrote in this bucket
    lineage blob static,            -- JSON of parent, forked_at, reverts; as of the bucket's end
    PRIMARY KEY ((store, agent, bucket), sequence)
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.events_by_type (
    store text,
    agent text,
    bucket int,
    type text,
    time bigint,                    -- microseconds since 1970
    sequence bigint,
    PRIMARY KEY ((store, agent, bucket), type, time, sequence)
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.event_ids (
    store text,
    agent text,
    bucket int,
    id text,                        -- of events whose id was given by who sent them
    sequence bigint,
    PRIMARY KEY ((store, agent, bucket), id)
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.writers (
    store text,
    agent text,
    writer text,
    last bigint,                    -- its last number in buckets that are closed
    PRIMARY KEY ((store, agent), writer)
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.streams (
    store text,
    agent text,
    bucket int,                     -- the newest one, or the one about to be opened
    PRIMARY KEY ((store, agent))
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.namespaces (
    store text,
    prefix text,                    -- namespace and slash: sorts as the names of agents do
    PRIMARY KEY ((store), prefix)
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.agents (
    store text,
    prefix text,
    agent text,
    PRIMARY KEY ((store, prefix), agent)
) WITH {_MANY}""",
    f"""CREATE TABLE IF NOT EXISTS {{keyspace}}.states (
    store text,
    agent text,
    projection text,
    slot int,                       -- written over when its state is not needed any more
    key text,                       -- of the projection's code
    sequence bigint,
    size int,                       -- bytes of its pieces together: zstd of the encoded state
    crc bigint,                     -- CRC-32 of them
    PRIMARY KEY ((store, agent), projection, slot)
) WITH {_MANY}""",
    """CREATE TABLE IF NOT EXISTS {keyspace}.state_pieces (
    store text,
    agent text,
    projection text,
    slot int,
    piece int,
    body blob,
    PRIMARY KEY ((store, agent, projection, slot), piece)
) WITH compression = {{'enabled': false}}
AND compaction = {{'class': 'UnifiedCompactionStrategy'}}""",
)


def control_keyspace(cluster: Cluster) -> str:
    """The name of the control keyspace.

    Raises:
        InvalidInput: the cluster's name can't be the name of a keyspace.

    >>> control_keyspace(Cluster(name="staging"))
    'staging'
    """
    if _NAME.fullmatch(cluster.name) is None:
        raise InvalidInput(
            f"the cluster's name {cluster.name!r} can't name tables in Cassandra",
            hint="use up to 40 of a-z, 0-9 and _, a letter first",
        )
    return cluster.name


async def create_control(session: Session, cluster: Cluster) -> None:
    """Create the control keyspace and its tables where they are not there.

    Raises:
        InvalidInput: the cluster's name can't be the name of a keyspace.
        Unreachable: not enough nodes answered in time.
    """
    keyspace = control_keyspace(cluster)
    await _create(session, cluster, keyspace, CONTROL)
    rows = await session.execute(
        "SELECT column_name FROM system_schema.columns"
        f" WHERE keyspace_name = '{keyspace}' AND table_name = 'partitions'"
    )
    if ("position",) not in rows:  # made before there was one
        await session.run_schema(
            [f"ALTER TABLE {keyspace}.partitions ADD IF NOT EXISTS position bigint"]
        )


async def create_generation(session: Session, cluster: Cluster, generation: int) -> None:
    """Create the keyspace of a generation and its tables where they are not there.

    Raises as `create_control`.
    """
    await _create(session, cluster, cluster.keyspace(generation), GENERATION)


def statements(keyspace: str, tables: tuple[str, ...], replication: int) -> list[str]:
    """What creates a keyspace and its tables."""
    copies = f"{{'class': 'NetworkTopologyStrategy', 'replication_factor': {replication}}}"
    return [
        f"CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {copies}",
        *(table.format(keyspace=keyspace) for table in tables),
    ]


def text() -> str:
    """All statements with the names and the replication that are the default."""
    cluster = Cluster()
    parts = [
        "-- The control keyspace",
        *statements(cluster.name, CONTROL, cluster.replication),
        "-- The keyspace of a generation: a replay builds the next one beside it",
        *statements(cluster.keyspace(1), GENERATION, cluster.replication),
    ]
    return "\n\n".join(part if part.startswith("--") else f"{part};" for part in parts) + "\n"


async def _create(
    session: Session, cluster: Cluster, keyspace: str, tables: tuple[str, ...]
) -> None:
    rows = await session.execute(
        f"SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}'"
    )
    if len(rows) < len(tables):
        await session.run_schema(statements(keyspace, tables, cluster.replication))
