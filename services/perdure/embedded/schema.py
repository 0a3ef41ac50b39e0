"""The tables of the store's file, format by format. `docs/store-format.md` describes them.

A format is never changed once it is released, not even a comment in a statement: SQLite keeps the
text, and a store whose tables are described otherwise is taken for damaged. A change is a new
migration at the end of the list.
"""

import sqlite3
from typing import Final

from perdure.embedded import memory_index, segments, state_table
from perdure.embedded.database import Migration

_AGENTS: Final = (
    """CREATE TABLE agents (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        epoch INTEGER NOT NULL,      -- fencing token of the newest exclusive opening
        parent INTEGER,              -- id of the agent it was forked from
        forked_at INTEGER NOT NULL,  -- the parent's sequence of the fork, else 0
        chain BLOB NOT NULL,         -- the hash chain before its first own event
        indexed INTEGER NOT NULL DEFAULT 0  -- whether `ids` has the ids of its sealed events
    )""",
    # Where sealed events stand, for agents that were ever given an id: most never are, and an id
    # that perdure makes is never made twice. Those of the tail are few and read with it.
    """CREATE TABLE ids (
        agent INTEGER NOT NULL,
        id BLOB NOT NULL,            -- 16 bytes of a UUID, else the text
        sequence INTEGER NOT NULL,
        PRIMARY KEY (agent, id)
    ) WITHOUT ROWID""",
    """CREATE TABLE writers (
        agent INTEGER NOT NULL,
        writer TEXT NOT NULL,
        last INTEGER NOT NULL,       -- the writer's last sequence among the sealed events
        PRIMARY KEY (agent, writer)
    ) WITHOUT ROWID""",
    """CREATE TABLE reverts (
        agent INTEGER NOT NULL,
        sequence INTEGER NOT NULL,   -- of the agent.reverted event
        target INTEGER NOT NULL,     -- what it went back to
        PRIMARY KEY (agent, sequence)
    ) WITHOUT ROWID""",
)


def _format_1(connection: sqlite3.Connection) -> None:
    for statement in (*_AGENTS, *segments.SCHEMA, *state_table.SCHEMA, *memory_index.SCHEMA):
        connection.execute(statement)


MIGRATIONS: Final[list[Migration]] = [_format_1]
