"""Reading the rows of streams: plain functions on a connection, for writers and readers alike."""

import datetime as dt
import re
import sqlite3
from collections.abc import Iterator
from typing import Final

from perdure.embedded import segments
from perdure.embedded.segments import (
    COLUMNS,
    SEQUENCE_BITS,
    SEQUENCE_MAX,
    Segment,
    from_row,
    position,
)
from perdure.errors import Corrupt, NotFound
from perdure.model.event import split_all
from perdure.model.sequencing import link
from perdure.model.timeline import Revert, Stream

EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
AGENT_IDS_MAX: Final = 4096
"""Names of agents whose ids are remembered."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MICROSECOND: Final = dt.timedelta(microseconds=1)


def microseconds(time: dt.datetime) -> int:
    """Microseconds since 1970 of a time with a zone.

    >>> microseconds(dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC))
    1000000
    """
    return (time - EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> dt.datetime:
    """The time of so many microseconds since 1970, in UTC.

    Raises:
        Corrupt: a time so far away was never written.

    >>> from_microseconds(1_000_000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    try:
        return EPOCH + dt.timedelta(microseconds=value)
    except OverflowError as error:
        raise Corrupt(
            f"{value} microseconds since 1970 are no time: a row is damaged on disk",
            hint="`perdure verify` names what is damaged; restore the file from a backup",
        ) from error


def id_key(event_id: str) -> bytes | str:
    """How an event id is indexed: the 16 bytes of a UUID in its usual form, any other as text."""
    if _UUID.fullmatch(event_id) is not None:
        return bytes.fromhex(event_id.replace("-", ""))
    return event_id


def find(connection: sqlite3.Connection, agent: str) -> int | None:
    """An agent's row id; None where there is no such agent."""
    row = connection.execute("SELECT id FROM agents WHERE name = ?", (agent,)).fetchone()
    if row is None:
        return None
    if type(row[0]) is not int:  # As a flipped bit of an index makes it.
        raise _damaged_agent(agent)
    return row[0]


def agent_id(connection: sqlite3.Connection, agent: str) -> int:
    """An agent's row id.

    Raises:
        NotFound: there is no such agent.
    """
    found = find(connection, agent)
    if found is None:
        raise _no_agent(agent)
    return found


def _no_agent(agent: str) -> NotFound:
    return NotFound(
        f"there is no agent {agent} in this store", hint="`perdure agents` lists those that are"
    )


class AgentIds:
    """Row ids by name, remembered: an agent keeps its id, and none is ever removed.

    For readers, who see only what is committed: what a writer looks up may still be rolled back.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def find(self, connection: sqlite3.Connection, agent: str) -> int | None:
        """An agent's row id; None where there is no such agent."""
        known = self._known.get(agent)
        if known is None:
            known = find(connection, agent)
            if known is not None:
                if len(self._known) >= AGENT_IDS_MAX:
                    self._known.clear()
                self._known[agent] = known
        return known

    def get(self, connection: sqlite3.Connection, agent: str) -> int:
        """An agent's row id. Raises NotFound."""
        known = self.find(connection, agent)
        return agent_id(connection, agent) if known is None else known


def newest(connection: sqlite3.Connection, key: int) -> Segment | None:
    """An agent's last segment."""
    return next(newest_first(connection, key), None)


def newest_first(connection: sqlite3.Connection, key: int) -> Iterator[Segment]:
    """An agent's segments, from its last one back."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM segments WHERE position BETWEEN ? AND ? ORDER BY position DESC",
        (position(key, 0), position(key, SEQUENCE_MAX)),
    )
    for row in rows:
        yield from_row(row)


def tail(connection: sqlite3.Connection, key: int) -> list[Segment]:
    """An agent's plain segments after its last sealed one, in order."""
    found: list[Segment] = []
    for segment in newest_first(connection, key):
        if segment.codec != segments.PLAIN:
            break
        found.append(segment)
    return found[::-1]


def from_sequence(
    connection: sqlite3.Connection, key: int, first: int, last: int = SEQUENCE_MAX
) -> Iterator[Segment]:
    """The segments that hold `first` to `last`, in order."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM segments WHERE position BETWEEN ? AND ? ORDER BY position",
        (position(key, first), position(key, SEQUENCE_MAX)),
    )
    for row in rows:
        segment = from_row(row)
        if segment.first > last:
            return
        yield segment
        if segment.last >= last:
            return  # The next row isn't even read.


def segment_of(connection: sqlite3.Connection, key: int, agent: str, sequence: int) -> Segment:
    """The segment that holds an event of an agent's own stream.

    Raises:
        Corrupt: it is missing.
    """
    for segment in from_sequence(connection, key, sequence, sequence):
        if segment.first <= sequence:
            return segment
    raise Corrupt(f"event {agent}@{sequence} is missing", hint=f"see `perdure verify {agent}`")


# The last position is not MAX(): a corrupt row must not pass as an empty stream.
_STREAM: Final = f"""
    SELECT a.id, a.forked_at, p.name,
        (SELECT position FROM segments
            WHERE position >= a.id << {SEQUENCE_BITS} AND position < a.id + 1 << {SEQUENCE_BITS}
            ORDER BY position DESC LIMIT 1),
        EXISTS (SELECT 1 FROM reverts WHERE agent = a.id)
    FROM agents a LEFT JOIN agents p ON p.id = a.parent WHERE a.name = ?
"""


def lineage(connection: sqlite3.Connection, agent: str) -> list[Stream]:
    """An agent's stream, then its parent's, and so on.

    Raises:
        NotFound: there is no such agent.
    """
    name: str | None = agent
    rows: list[Stream] = []
    child: int | None = None
    while name is not None:
        row = connection.execute(_STREAM, (name,)).fetchone()
        if row is None:
            raise _no_agent(name)
        key, forked_at, parent, last, reverted = row
        if type(key) is not int or type(forked_at) is not int:
            raise _damaged_agent(name)
        check_ancestor(name, key, child)
        child = key
        reverts: tuple[Revert, ...] = ()
        if reverted:
            reverts = tuple(
                Revert(sequence, target)
                for sequence, target in connection.execute(
                    "SELECT sequence, target FROM reverts WHERE agent = ? ORDER BY sequence", (key,)
                )
            )
        sequence = forked_at if last is None else int(last) & SEQUENCE_MAX
        rows.append(Stream(name, sequence, parent, forked_at, reverts))
        name = parent
    return rows


def _damaged_agent(agent: str) -> Corrupt:
    return Corrupt(
        f"the row of agent {agent} in the table agents is damaged",
        hint="`perdure doctor` names what is damaged; restore the file from a backup",
    )


def check_ancestor(agent: str, key: int, child: int | None) -> None:
    """Check that an agent is older than its fork, so that a damaged row leads nobody in a circle.

    Raises:
        Corrupt: it is not.
    """
    if child is not None and key >= child:
        raise Corrupt(
            f"agent {agent} is its own ancestor in the table agents: a row is damaged",
            hint="restore the file from a backup",
        )


def chain_before(connection: sqlite3.Connection, key: int, first: int) -> bytes:
    """The chain before the segment that starts with `first`."""
    row = connection.execute(
        "SELECT chain FROM segments WHERE position BETWEEN ? AND ? ORDER BY position DESC LIMIT 1",
        (position(key, 0), position(key, first - 1)),
    ).fetchone()
    if row is None:
        row = connection.execute("SELECT chain FROM agents WHERE id = ?", (key,)).fetchone()
    return bytes(row[0])


def chain_at(connection: sqlite3.Connection, agent: str, sequence: int) -> bytes:
    """The chain of an agent after one of its own events; before its first, at a lower sequence."""
    key = agent_id(connection, agent)
    for segment in from_sequence(connection, key, sequence, sequence):
        chain = chain_before(connection, key, segment.first)
        bodies = split_all(segments.plain(segment, agent))
        for data in bodies[: max(0, sequence - segment.first + 1)]:
            chain = link(chain, data)
        return chain
    return chain_before(connection, key, sequence + 1)
