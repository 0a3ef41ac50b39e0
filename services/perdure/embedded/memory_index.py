"""Memories in the store's file: texts, full text search, and vectors as they were computed.

Invariants:
- A memory is written in the transaction of its event, so neither is there without the other; its
  vectors come later and may be missing at any time.
- Rows are only ever added: what a search sees is decided by its spans. A place (agent and
  sequence in one number) is never written twice, and in a stream places go up.
- Whatever data a foreign event carries, recording it raises nothing: what is no memory is passed
  over.

What a search asks of these tables is in `memory_queries`.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from perdure.embedded import event_rows
from perdure.embedded.database import Transactions
from perdure.embedded.memory_queries import (
    FORGOTTEN,
    SPANS,
    as_json,
    by_words,
    forgotten_places,
    passing_places,
    storable,
    stream_of,
    streams,
)
from perdure.embedded.segments import SEQUENCE_MAX, position
from perdure.errors import InvalidData, NotFound
from perdure.memorizer.fusion import fuse
from perdure.memorizer.memory import (
    Embedded,
    Filter,
    Hit,
    Memory,
    Scores,
    checked_k,
)
from perdure.model.event import JSON, Event
from perdure.model.timeline import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from perdure.embedded.vector_matrix import VectorMatrices

SCHEMA: Final = (
    """CREATE TABLE memories (
        place INTEGER PRIMARY KEY,   -- position of the memory.stored event: agent and sequence
        id TEXT NOT NULL,            -- of that event
        time INTEGER NOT NULL,       -- of that event, microseconds since 1970
        text TEXT NOT NULL,
        source TEXT,
        context TEXT NOT NULL,       -- JSON object
        metadata TEXT NOT NULL       -- JSON object
    )""",
    "CREATE INDEX memories_by_id ON memories (id)",
    """CREATE TABLE forgettings (
        place INTEGER PRIMARY KEY,   -- position of the memory.forgotten event
        memory TEXT NOT NULL         -- id of what it forgets
    )""",
    "CREATE INDEX forgettings_by_memory ON forgettings (memory)",
    """CREATE TABLE embedders (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        dimensions INTEGER NOT NULL
    )""",
    # AUTOINCREMENT: an id is never given twice, which copies in main memory rely on.
    """CREATE TABLE vectors (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        agent INTEGER NOT NULL,
        embedder INTEGER NOT NULL,
        place INTEGER NOT NULL,      -- of the memory
        part INTEGER NOT NULL,       -- 0, 1, 2 …: window of the text
        vector BLOB NOT NULL         -- float32, little endian, of unit length or all zero
    )""",
    "CREATE INDEX vectors_by_agent ON vectors (agent, embedder)",
    "CREATE UNIQUE INDEX vectors_by_place ON vectors (place, embedder, part)",
    # The text itself is in memories: this holds the inverted index only.
    """CREATE VIRTUAL TABLE memory_words USING fts5 (
        text, content = 'memories', content_rowid = 'place', tokenize = 'porter unicode61'
    )""",
)
"""What makes the tables, in order."""

CANDIDATES_MIN: Final = 200
"""The least number of memories that each ranking brings into the fusion."""

VERIFIED_MAX: Final = 4_096
"""How many spans are remembered as embedded."""

_COLUMNS: Final = "m.place, m.id, m.time, m.text, m.source, m.context, m.metadata"


def record_memory(connection: sqlite3.Connection, agent_id: int, event: Event) -> None:
    """Index a `memory.stored` event, in the transaction that writes it.

    Its data: `text`, and if any `source` (text), `context` and `metadata` (objects). An event
    without a text is passed over; recording one again changes nothing.
    """
    data = event.data
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        return
    source = data.get("source")
    place = position(agent_id, event.sequence)
    text = storable(str(data["text"]))
    added = connection.execute(
        "INSERT OR IGNORE INTO memories (place, id, time, text, source, context, metadata)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            place,
            storable(event.id),
            event_rows.microseconds(event.time),
            text,
            storable(source) if isinstance(source, str) else None,
            _object(data.get("context")),
            _object(data.get("metadata")),
        ),
    )
    if added.rowcount == 1:
        connection.execute("INSERT INTO memory_words (rowid, text) VALUES (?, ?)", (place, text))


def record_forgetting(connection: sqlite3.Connection, agent_id: int, event: Event) -> None:
    """Index a `memory.forgotten` event (data: `id` of the memory), in its transaction."""
    data = event.data
    if not isinstance(data, dict) or not isinstance(data.get("id"), str):
        return
    connection.execute(
        "INSERT OR IGNORE INTO forgettings (place, memory) VALUES (?, ?)",
        (position(agent_id, event.sequence), storable(str(data["id"]))),
    )


class SqliteMemoryIndex:
    """`MemoryIndex` on the store's file. Use from the event loop of its database.

    `cache_bytes` bounds the copies of vectors in main memory; None for the default.
    """

    def __init__(self, database: Transactions, *, cache_bytes: int | None = None) -> None:
        self._database = database
        self._cache_bytes = cache_bytes
        self._vectors: VectorMatrices | None = None
        # Of an embedder and the first place of a span: up to which place all memories have vectors.
        self._verified: OrderedDict[tuple[str, int], int] = OrderedDict()

    async def unembedded(self, spans: Sequence[Span], embedder: str, limit: int) -> list[Memory]:
        """Up to `limit` memories in `spans` without a vector of `embedder`, forgotten ones too."""
        found: list[Memory] = []
        with self._database.reading() as connection:
            embedder_id = _embedder(connection, embedder)[0]
            for span, (first, last) in _places(connection, spans):
                if len(found) == limit:
                    break
                key = (embedder, first)
                after = max(first - 1, self._verified.get(key, 0))
                # Asked first: what is stored after this has a later place.
                (newest,) = connection.execute(
                    "SELECT max(place) FROM memories WHERE place > ? AND place <= ?", (after, last)
                ).fetchone()
                if newest is None:
                    continue
                rows = connection.execute(
                    f"SELECT {_COLUMNS} FROM memories m WHERE m.place > ? AND m.place <= ?"
                    " AND NOT EXISTS (SELECT 1 FROM vectors v"
                    " WHERE v.place = m.place AND v.embedder = ?) ORDER BY m.place LIMIT ?",
                    (after, newest, embedder_id, limit - len(found)),
                ).fetchall()
                found += [_memory(span.agent, row, None) for row in rows]
                # A scan of all memories at each recall would take longer than the search.
                self._verified[key] = rows[0][0] - 1 if rows else newest
                self._verified.move_to_end(key)
            while len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)
        return found

    async def add_vectors(self, embedder: str, embedded: Sequence[Embedded]) -> int:
        """Store vectors, durably and all or none; how many memories got theirs by this call.

        Idempotent: a memory that has vectors of this embedder keeps them, and one that isn't
        there is passed over.

        Raises:
            InvalidData: a vector is not finite or not of unit length, or of other dimensions than
                this embedder's others.
        """
        if not embedded:
            return 0
        dimensions, rows = _checked_vectors(embedder, embedded)

        def job(connection: sqlite3.Connection) -> int:
            known, known_dimensions = _embedder(connection, embedder)
            if known is not None:
                _check_dimensions(embedder, dimensions, known_dimensions)
            agents = {
                agent: event_rows.find(connection, agent) for agent in {row[0] for row in rows}
            }
            if known is None:
                known = connection.execute(
                    "INSERT INTO embedders (name, dimensions) VALUES (?, ?)", (embedder, dimensions)
                ).lastrowid
            added = 0
            for agent, sequence, vectors in rows:
                agent_id = agents[agent]
                if agent_id is None:
                    continue
                place = position(agent_id, sequence)
                wanted = connection.execute(
                    "SELECT 1 FROM memories WHERE place = ? AND NOT EXISTS"
                    " (SELECT 1 FROM vectors WHERE place = ? AND embedder = ?)",
                    (place, place, known),
                ).fetchone()
                if wanted is None:
                    continue
                connection.executemany(
                    "INSERT INTO vectors (agent, embedder, place, part, vector)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [(agent_id, known, place, part, vector) for part, vector in enumerate(vectors)],
                )
                added += 1
            return added

        return await self._database.write(job)

    async def drop_vectors(self, embedder: str) -> int:
        """Remove all vectors of an embedder; how many. The next recalls make them again."""

        def job(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM vectors WHERE embedder = (SELECT id FROM embedders WHERE name = ?)",
                (embedder,),
            ).rowcount

        removed = await self._database.write(job)
        self._verified.clear()
        if self._vectors is not None:
            self._vectors.clear()
        return removed

    async def search(
        self,
        spans: Sequence[Span],
        query_text: str,
        query_vector: "NDArray[np.float32]",
        embedder: str,
        *,
        k: int,
        filter: Filter | None = None,
    ) -> list[Hit]:
        """The `k` best of the memories visible in `spans` that pass `filter`, best first.

        Exact: every vector is looked at. The later of equals goes first.

        Raises:
            InvalidData: `k` is not from 1 to 1000, or the vector has other dimensions than stored.
            Corrupt: a stored vector is not what was written.
        """
        k = checked_k(k)
        candidates = max(CANDIDATES_MIN, 4 * k)
        with self._database.reading() as connection:
            places = [bounds for _, bounds in _places(connection, spans)]
            text_scores = by_words(connection, places, query_text, filter, candidates)
        cosines = await self._by_vector(
            places, query_vector, embedder, filter, candidates=candidates, asked=list(text_scores)
        )
        with self._database.reading() as connection:
            return _hits(connection, spans, fuse(cosines, text_scores, k))

    async def get(self, spans: Sequence[Span], id: str) -> Memory:
        """The visible memory of this id.

        Raises:
            NotFound: there is none in `spans`, or it is forgotten there.
        """
        with self._database.reading() as connection:
            known = _places(connection, spans)
            row = connection.execute(
                f"WITH {SPANS}, {FORGOTTEN} SELECT {_COLUMNS} FROM memories m"
                " WHERE m.id = :id AND m.place NOT IN (SELECT place FROM forgotten) AND EXISTS"
                " (SELECT 1 FROM spans WHERE m.place BETWEEN spans.first AND spans.last)"
                " ORDER BY m.place DESC LIMIT 1",
                {"spans": as_json([bounds for _, bounds in known]), "id": storable(str(id))},
            ).fetchone()
            if row is None:
                raise NotFound(
                    f"there is no memory {str(id)[:60]!r}, or it is forgotten",
                    hint="recall() gives the ids of the memories there are",
                )
            return _memory(_names(connection, [row[0]])[row[0]], row, _until(connection, spans, id))

    async def _by_vector(
        self,
        places: Sequence[tuple[int, int]],
        query: "NDArray[np.float32]",
        embedder: str,
        filter: Filter | None,
        *,
        candidates: int,
        asked: Sequence[int],
    ) -> dict[int, float]:
        """Cosines of the best `candidates` memories, and of those in `asked`, by place."""
        import numpy as np  # importing perdure must not import numpy

        from perdure.embedded.vector_matrix import CACHE_BYTES_MAX, VectorMatrices

        query = np.ascontiguousarray(query, dtype=np.float32).reshape(-1)
        with self._database.reading() as connection:
            embedder_id, dimensions = _embedder(connection, embedder)
            if embedder_id is None or not places:
                return {}
            _check_dimensions(embedder, len(query), dimensions)
            passing = passing_places(connection, places, filter) if filter else None
            forgotten = forgotten_places(connection, places)
        if self._vectors is None:
            self._vectors = VectorMatrices(
                self._database, CACHE_BYTES_MAX if self._cache_bytes is None else self._cache_bytes
            )
        best: dict[int, float] = {}
        spans = np.array(sorted(places), np.int64)
        for agent in streams(places):
            found, cosines = await self._vectors.cosines(agent, embedder_id, query)
            # The span that starts last at or before a place is the only one that can hold it.
            span = np.searchsorted(spans[:, 0], found, side="right") - 1
            visible = (span >= 0) & (found <= spans[span, 1])
            if passing is not None:
                visible &= np.isin(found, passing)
            if forgotten:
                visible &= ~np.isin(found, forgotten)
            found, cosines = found[visible], cosines[visible]
            chosen = np.isin(found, asked)
            if len(found) > candidates:
                chosen[np.argpartition(cosines, -candidates)[-candidates:]] = True
            else:
                chosen[:] = True
            best.update(zip(found[chosen].tolist(), cosines[chosen].tolist(), strict=True))
        return best


def _hits(
    connection: sqlite3.Connection,
    spans: Sequence[Span],
    ranked: Sequence[tuple[int, float, Scores]],
) -> list[Hit]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM memories m WHERE m.place IN (SELECT value FROM json_each(?))",
        (as_json([place for place, _, _ in ranked]),),
    ).fetchall()
    found = {row[0]: row for row in rows}
    names = _names(connection, found)
    hits = []
    for place, score, scores in ranked:
        if place in found:
            row = found[place]
            memory = _memory(names[place], row, _until(connection, spans, row[1]))
            hits.append(Hit(**msgspec.structs.asdict(memory), score=score, scores=scores))
    return hits


def _until(connection: sqlite3.Connection, spans: Sequence[Span], id: str) -> int | None:
    """The first later sequence of the asking agent, the last span's, that forgets the memory."""
    agent_id = event_rows.find(connection, spans[-1].agent)
    if agent_id is None:
        return None
    (place,) = connection.execute(
        "SELECT min(place) FROM forgettings WHERE memory = ? AND place > ? AND place <= ?",
        (
            storable(id),
            position(agent_id, min(spans[-1].last, SEQUENCE_MAX)),
            position(agent_id, SEQUENCE_MAX),
        ),
    ).fetchone()
    return None if place is None else int(place) & SEQUENCE_MAX


def _memory(
    agent: str, row: tuple[int, str, int, str, str | None, str, str], until: int | None
) -> Memory:
    place, id_, time, text, source, context, metadata = row
    return Memory(
        id=id_,
        agent=agent,
        sequence=place & SEQUENCE_MAX,
        time=event_rows.from_microseconds(time),
        text=text,
        source=source,
        context=msgspec.json.decode(context),
        metadata=msgspec.json.decode(metadata),
        until=until,
    )


def _places(
    connection: sqlite3.Connection, spans: Sequence[Span]
) -> list[tuple[Span, tuple[int, int]]]:
    """The spans that can hold anything, each with its first and last place."""
    ids = {agent: event_rows.find(connection, agent) for agent in {span.agent for span in spans}}
    found = []
    for span in spans:
        first, last = max(span.first, 0), min(span.last, SEQUENCE_MAX)
        if (agent_id := ids[span.agent]) is not None and first <= last:
            found.append((span, (position(agent_id, first), position(agent_id, last))))
    return found


def _names(connection: sqlite3.Connection, places: Iterable[int]) -> dict[int, str]:
    agents = {place: stream_of(place) for place in places}
    rows = connection.execute(
        "SELECT id, name FROM agents WHERE id IN (SELECT value FROM json_each(?))",
        (as_json(sorted(set(agents.values()))),),
    )
    names = dict(rows.fetchall())
    return {place: names[agent] for place, agent in agents.items()}


def _embedder(connection: sqlite3.Connection, name: str) -> tuple[int | None, int]:
    """An embedder's row id, None where it has no vectors yet, and its dimensions."""
    row = connection.execute(
        "SELECT id, dimensions FROM embedders WHERE name = ?", (name,)
    ).fetchone()
    return (None, 0) if row is None else (int(row[0]), int(row[1]))


def _check_dimensions(embedder: str, given: int, stored: int) -> None:
    if given != stored:
        raise InvalidData(
            f"embedder {embedder} gives {given} dimensions, its stored vectors have {stored}",
            hint="give every embedder, and every version of it, a name of its own",
        )


def _checked_vectors(
    embedder: str, embedded: Sequence[Embedded]
) -> tuple[int, list[tuple[str, int, list[bytes]]]]:
    """The dimensions, and of each memory the bytes of its vectors."""
    import numpy as np  # importing perdure must not import numpy

    dimensions = embedded[0].vectors.shape[-1]
    rows = []
    for agent, sequence, vectors in embedded:
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != dimensions:
            raise InvalidData(
                f"vectors of {agent}@{sequence} have the shape {vectors.shape}",
                hint=f"give parts x {dimensions} numbers, at least one part",
            )
        lengths = np.einsum("ij,ij->i", vectors, vectors)
        if not (np.isclose(lengths, 1, atol=1e-4) | (lengths == 0)).all():
            raise InvalidData(
                f"a vector of {agent}@{sequence} by {embedder} is not of unit length",
                hint="divide each vector by its length",
            )
        rows.append((agent, sequence, [row.astype("<f4").tobytes() for row in vectors]))
    return dimensions, rows


def _object(data: JSON) -> str:
    """A JSON object as text; an empty one for what is none."""
    try:
        return msgspec.json.encode(data if isinstance(data, Mapping) else {}).decode()
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return "{}"
