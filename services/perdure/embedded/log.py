"""The embedded store's write side.

Invariants:
- What a transaction decides is a function of what is on disk at its start and of the writes in it,
  in their order; the cached heads are dropped whenever the disk may say something else.
- Events, and all that is derived from them (ids, writers, reverts, memories), are written in one
  transaction: they can't disagree.
- The ids and writers of sealed events are in tables of their own, those of the tail in the tail.
"""

import asyncio
import datetime as dt
import sqlite3
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias

import msgspec
import uuid_utils

from perdure.embedded import event_rows, memory_index, segments
from perdure.embedded.database import Database, settle
from perdure.embedded.segments import SEQUENCE_MAX, Piece, Segment
from perdure.errors import AgentExists, NotFound, PerdureError, Refused
from perdure.model.event import Event, decode, encode, ids_of_all
from perdure.model.sequencing import Append, Head, Recorded, decide, first_chain
from perdure.ports import Ack

STREAMS_MAX: Final = 1024
"""Heads kept in memory: each with one tail's ids, and at most `WRITERS_MAX` writers beside its."""

WRITERS_MAX: Final = 256
"""Writers' counters that a head keeps in memory when its tail is sealed; all are in a table."""

ALONE_MAX: Final = 8
"""Writes in a row that don't wait for others to join them, after one that nobody joined: about a
millisecond in which the event loop doesn't turn. One writer alone is spared the turn, which takes
as long as deciding its write; many at once still share a commit."""

Clock: TypeAlias = Callable[[], dt.datetime]
_Waiting: TypeAlias = "tuple[Append, asyncio.Future[list[Event]]]"


class _Stream:
    """What is known of one agent: its head, and its tail (the segments that are not sealed)."""

    __slots__ = (
        "forked_at",
        "fresh_writers",
        "given_again",
        "head",
        "id",
        "indexed",
        "parent",
        "tail_bytes",
        "tail_ids",
        "tail_rows",
        "time_max",
    )

    def __init__(self, agent_id: int | None, head: Head, time_max: int = 0) -> None:
        self.id = agent_id
        """None for an agent that has no row yet: it gets one with its first write."""
        self.head = head
        self.time_max = time_max
        self.indexed = False
        """Whether the ids of sealed events are in the table."""
        self.parent: str | None = None
        self.forked_at = 0
        self.tail_rows = 0
        self.tail_bytes = 0
        self.tail_ids: dict[str, int] = {}
        self.fresh_writers: set[str] = set()
        self.given_again: dict[str, tuple[int, int]] = {}
        """Of writers that repeat what is recorded: the number repeated last, and its sequence."""


class _Decoded:
    """The events of the segment that was looked into last: mostly the next look is into it too."""

    def __init__(self) -> None:
        self._of: tuple[int, int, int, int] | None = None
        self._events: list[Event] = []

    def events(self, segment: Segment, key: int, agent: str) -> list[Event]:
        """As `segments.events`."""
        of = (key, segment.first, segment.last, segment.crc)
        if of != self._of:
            self._of, self._events = None, segments.events(segment, agent)
            self._of = of
        return self._events


class SqliteLog:
    """`ports.EventLog` on the store's file."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        version_of: Callable[[str], int],
    ) -> None:
        self._database = database
        self._clock = clock
        self._version_of = version_of
        self._streams: dict[str, _Stream] = {}
        self._stamp = -1
        self._queue: list[_Waiting] = []
        self._recording: list[_Waiting] = []
        self._lock = threading.Lock()
        self._decoded = _Decoded()
        self._alone = 0
        """How many appends may still go without waiting for the event loop's next turn."""

    async def claim(self, agent: str) -> Head:
        def job(connection: sqlite3.Connection) -> Head:
            stream = self._stream(connection, agent)
            head = msgspec.structs.replace(stream.head, epoch=stream.head.epoch + 1)
            connection.execute(
                "UPDATE agents SET epoch = ? WHERE id = ?",
                (head.epoch, _row_id(connection, stream)),
            )
            stream.head = head
            return head

        # Nobody whom it shuts out outlives the machine, and the first write puts it on disk.
        return await self._database.write(job, durable=False)

    def append(self, append: Append, ack: Ack) -> Awaitable[list[Event]]:  # noqa: ARG002
        # Whatever is asked for: one commit makes it durable and gives it its place.
        future: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()
        if self._alone and not self._queue:
            self._alone -= 1
            if self._append_now(append, future):
                return future
        with self._lock:
            self._queue.append((append, future))
            first = len(self._queue) == 1
        if first:
            try:
                self._database.submit(self._record_queue, self._answer)
            except PerdureError:
                self._queue.clear()
                raise
        return future

    def _append_now(self, append: Append, future: "asyncio.Future[list[Event]]") -> bool:
        try:
            outcomes = self._database.write_now(
                lambda connection: self._record(connection, append.agent, [append])
            )
        except PerdureError as error:
            future.set_exception(error)
            return True
        if outcomes is None:
            return False
        settle(future, outcomes[0])
        return True

    async def fork(self, append: Append, parent: str, at: int) -> tuple[Head, Event]:
        def job(connection: sqlite3.Connection) -> tuple[Head, Event]:
            rows = event_rows.lineage(connection, parent)
            if at > rows[0].sequence:
                raise NotFound(
                    f"agent {parent} has no sequence {at}: its last is {rows[0].sequence}",
                    hint="fork at a sequence that exists",
                )
            if event_rows.find(connection, append.agent) is not None:
                raise AgentExists(
                    f"there is an agent {append.agent} already", hint="choose another name"
                )
            self._streams.pop(append.agent, None)
            # A fork shares history with whoever wrote the event it forks at.
            owner = next(row for row in rows if at > row.forked_at or row.parent is None)
            chain = event_rows.chain_at(connection, owner.agent, at)
            connection.execute(
                "INSERT INTO agents (name, epoch, parent, forked_at, chain) VALUES (?, 1, ?, ?, ?)",
                (append.agent, event_rows.agent_id(connection, parent), at, chain),
            )
            [outcome] = self._record(connection, append.agent, [append])
            if isinstance(outcome, Refused):
                raise outcome
            return self._stream(connection, append.agent).head, outcome[0]

        return await self._database.write(job)

    async def settle(self, agent: str) -> None:
        stream = self._streams.get(agent)
        if stream is None or stream.tail_rows < segments.SETTLE_ROWS:
            return

        def job(connection: sqlite3.Connection) -> None:
            stream = self._stream(connection, agent)
            self._seal(connection, _row_id(connection, stream), stream, [], always=True)

        await self._database.write(job, durable=False)

    def _record_queue(self, connection: sqlite3.Connection) -> list[list[Event] | PerdureError]:
        """Decide and write all appends that wait."""
        with self._lock:
            self._recording, self._queue = self._queue, []
        by_agent: dict[str, list[int]] = {}
        for index, (append, _) in enumerate(self._recording):
            by_agent.setdefault(append.agent, []).append(index)
        outcomes: dict[int, list[Event] | PerdureError] = {}
        for agent, indexes in by_agent.items():
            appends = [self._recording[index][0] for index in indexes]
            try:
                decided = self._record(connection, agent, appends)
            except PerdureError as error:
                # Its rows are damaged: noticed before it writes, and no matter for other agents.
                outcomes.update(dict.fromkeys(indexes, error))
            else:
                outcomes.update(zip(indexes, decided, strict=True))
        return [outcomes[index] for index in range(len(self._recording))]

    def _answer(self, outcomes: object) -> None:
        recording, self._recording = self._recording, []
        self._alone = ALONE_MAX if len(recording) == 1 else 0
        if isinstance(outcomes, list):
            for (_, future), outcome in zip(recording, outcomes, strict=True):
                settle(future, outcome)
            return
        if not recording:  # The transaction failed before it came to the queue.
            recording, self._queue = self._queue, []
        for _, future in recording:
            settle(future, outcomes)

    def _record(
        self, connection: sqlite3.Connection, agent: str, appends: list[Append]
    ) -> list[list[Event] | Refused]:
        """Decide writes to one agent, and write what they bring."""
        stream = self._stream(connection, agent)
        verdict = decide(
            stream.head,
            appends,
            _Recall(connection, stream, self._stream, self._decoded),
            now=self._clock(),
            new_id=_new_id,
            version_of=self._version_of,
        )
        if verdict.new:
            stream.head = verdict.head
            self._write(connection, stream, verdict.new)
        return verdict.outcomes

    def _write(self, connection: sqlite3.Connection, stream: _Stream, new: list[Recorded]) -> None:
        key = _row_id(connection, stream)
        pieces = _pieces(new, stream)
        size = sum([len(piece.body) for piece in pieces])
        stream.tail_ids.update([(event.id, event.sequence) for event, _, _ in new])
        stream.fresh_writers.update({event.writer for event, _, _ in new})
        if (
            size >= segments.SEAL_BYTES
            or stream.tail_rows + 1 >= segments.TAIL_ROWS_MAX
            or stream.tail_bytes + size >= segments.SEGMENT_BYTES
        ):
            self._seal(connection, key, stream, pieces)
        else:
            segments.insert(connection, key, segments.merged(pieces, seal=False))
            stream.tail_rows += 1
            stream.tail_bytes += size
        _derive(connection, key, new)

    def _stream(self, connection: sqlite3.Connection, agent: str) -> _Stream:
        if self._stamp != self._database.changes:
            self._stamp = self._database.changes
            self._streams.clear()
        stream = self._streams.get(agent)
        if stream is None:
            if len(self._streams) >= STREAMS_MAX:
                self._streams.clear()
            stream = self._streams[agent] = _load(connection, agent)
        return stream

    def _seal(
        self,
        connection: sqlite3.Connection,
        key: int,
        stream: _Stream,
        new: list[Piece],
        *,
        always: bool = False,
    ) -> None:
        """Merge the tail and `new` into sealed segments; what is left over stays plain."""
        tail = event_rows.tail(connection, key)
        old: list[Piece] = []
        for segment in reversed(tail):
            if zlib.crc32(segment.body) != segment.crc:
                break  # A damaged row stays as it is, for `verify` to find.
            old.insert(0, segments.piece_of(segment))
        if old:
            connection.execute(
                "DELETE FROM segments WHERE position BETWEEN ? AND ?",
                (segments.position(key, old[0].last), segments.position(key, old[-1].last)),
            )
        pieces = old + new
        seal_last = always or sum(len(piece.body) for piece in pieces) >= segments.SEAL_BYTES
        packed = segments.packed(pieces, seal_last=seal_last)
        for segment in packed:
            segments.insert(connection, key, segment)
        plain = [segment for segment in packed if segment.codec == segments.PLAIN]
        sealed_to = plain[0].first - 1 if plain else stream.head.sequence
        if stream.indexed:
            _index(
                connection, key, [item for item in stream.tail_ids.items() if item[1] <= sealed_to]
            )
        # The writers' counters may run ahead of what is sealed: the tail only raises them.
        connection.executemany(
            "INSERT OR REPLACE INTO writers (agent, writer, last) VALUES (?, ?, ?)",
            [(key, name, stream.head.writers[name]) for name in stream.fresh_writers],
        )
        stream.fresh_writers.clear()
        if len(stream.head.writers) > WRITERS_MAX:
            stream.head = msgspec.structs.replace(stream.head, writers={})
        if plain:
            stream.tail_ids = {name: at for name, at in stream.tail_ids.items() if at > sealed_to}
        else:
            stream.tail_ids = {}
        stream.tail_rows = len(plain)
        stream.tail_bytes = sum(len(segment.body) for segment in plain)


class _Recall:
    """`model.sequencing.Recall` on the store's file."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        stream: _Stream,
        stream_of: Callable[[sqlite3.Connection, str], _Stream],
        decoded: _Decoded,
    ) -> None:
        self._connection = connection
        self._decoded = decoded
        self._stream = stream
        self._stream_of = stream_of
        self._key = -1 if stream.id is None else stream.id

    def by_id(self, agent: str, event_id: str) -> Event | None:
        found, stream = self._own(agent, event_id), self._stream
        shared = SEQUENCE_MAX
        while found is None and stream.parent is not None:
            # What was done before the fork was done in the fork's history, too.
            parent, shared, child = stream.parent, min(shared, stream.forked_at), stream.id
            stream = self._stream_of(self._connection, parent)
            theirs = _Recall(self._connection, stream, self._stream_of, self._decoded)
            event_rows.check_ancestor(parent, theirs._key, child)
            found = theirs._own(parent, event_id)
        return None if found is None or found.sequence > shared else found

    def _own(self, agent: str, event_id: str) -> Event | None:
        sequence = self._stream.tail_ids.get(event_id)
        if sequence is None:
            self._index_sealed(agent)
            row = self._connection.execute(
                "SELECT sequence FROM ids WHERE agent = ? AND id = ?",
                (self._key, event_rows.id_key(event_id)),
            ).fetchone()
            if row is None:
                return None
            sequence = int(row[0])
        segment = event_rows.segment_of(self._connection, self._key, agent, sequence)
        return _copy(self._decoded.events(segment, self._key, agent)[sequence - segment.first])

    def _index_sealed(self, agent: str) -> None:
        """Have the ids of the agent's sealed events in the table, from the first id given on."""
        if self._stream.indexed or self._stream.id is None:
            return
        for segment in event_rows.from_sequence(self._connection, self._key, 0):
            if segment.codec != segments.PLAIN:
                ids = ids_of_all(segments.plain(segment, agent))
                _index(self._connection, self._key, ids)
        self._connection.execute("UPDATE agents SET indexed = 1 WHERE id = ?", (self._key,))
        self._stream.indexed = True

    def by_writer(self, agent: str, writer: str, writer_sequence: int) -> Event | None:
        # A writer's numbers go up along the stream, and whoever repeats them does so in order: all
        # but the first are found a few events after the one before.
        again = self._stream.given_again
        number, at = again.get(writer, (writer_sequence + 1, 0))
        found = (
            self._onward(agent, writer, writer_sequence, at)
            if number <= writer_sequence
            else self._back(agent, writer, writer_sequence)
        )
        if found is None or found.writer_sequence != writer_sequence:
            return None
        if len(again) >= WRITERS_MAX:
            again.clear()
        again[writer] = (writer_sequence, found.sequence)
        return _copy(found)

    def _onward(self, agent: str, writer: str, number: int, first: int) -> Event | None:
        """From a sequence on, the writer's first event of this number or a higher one."""
        for segment in event_rows.from_sequence(self._connection, self._key, first):
            for event in self._decoded.events(segment, self._key, agent):
                if event.writer == writer and event.writer_sequence >= number:
                    return event
        return None

    def _back(self, agent: str, writer: str, number: int) -> Event | None:
        """From the end back, the writer's first event of this number or a lower one."""
        for segment in event_rows.newest_first(self._connection, self._key):
            for event in reversed(self._decoded.events(segment, self._key, agent)):
                if event.writer == writer and event.writer_sequence <= number:
                    return event
        return None

    def last_of(self, agent: str, writer: str) -> int:  # noqa: ARG002 - its key is known
        row = self._connection.execute(
            "SELECT last FROM writers WHERE agent = ? AND writer = ?", (self._key, writer)
        ).fetchone()
        return 0 if row is None else int(row[0])


def _copy(event: Event) -> Event:
    """An event to give away: its data is the receiver's, who may change it."""
    return decode(encode(event))


def _load(connection: sqlite3.Connection, agent: str) -> _Stream:
    """An agent's head from disk."""
    row = connection.execute(
        "SELECT a.id, a.epoch, a.forked_at, a.chain, a.indexed, p.name FROM agents a"
        " LEFT JOIN agents p ON p.id = a.parent WHERE a.name = ?",
        (agent,),
    ).fetchone()
    if row is None:
        return _Stream(None, Head(agent, 0, 0, first_chain(agent), None, {}))
    agent_id, epoch, forked_at, chain, indexed, parent = row
    tail = event_rows.tail(connection, agent_id)
    newest = event_rows.newest(connection, agent_id)
    writers: dict[str, int] = {}
    stream = _Stream(agent_id, Head(agent, forked_at, epoch, chain, None, writers))
    stream.indexed = bool(indexed)
    stream.parent, stream.forked_at = parent, forked_at
    if newest is None:
        return stream
    if not segments.chain_is_sound(newest):
        raise segments.damaged(newest, agent, "its chain is cut")
    for segment in tail:
        for event in segments.events(segment, agent):
            stream.tail_ids[event.id] = event.sequence
            stream.fresh_writers.add(event.writer)
            if event.writer_sequence > writers.get(event.writer, 0):
                writers[event.writer] = event.writer_sequence
    stream.tail_rows = len(tail)
    stream.tail_bytes = sum(len(segment.body) for segment in tail)
    stream.time_max = newest.time_max
    time_max = event_rows.from_microseconds(newest.time_max)
    stream.head = Head(agent, newest.last, epoch, newest.chain, time_max, writers)
    return stream


def _row_id(connection: sqlite3.Connection, stream: _Stream) -> int:
    """The id of an agent's row, which is made if there is none."""
    if stream.id is None:
        cursor = connection.execute(
            "INSERT INTO agents (name, epoch, forked_at, chain) VALUES (?, 0, 0, ?)",
            (stream.head.agent, first_chain(stream.head.agent)),
        )
        stream.id = int(cursor.lastrowid or 0)
    return stream.id


def _pieces(new: Sequence[Recorded], stream: _Stream) -> list[Piece]:
    """What was recorded, cut where a segment is long enough."""
    pieces = []
    first, size = 0, 0
    for index, recorded in enumerate(new, 1):
        size += len(recorded.data)
        if size >= segments.SEGMENT_BYTES or index == len(new):
            part = new[first:index]
            # What is recorded together mostly has one and the same time.
            times = {event.time for event, _, _ in part}
            stream.time_max = max(stream.time_max, *map(event_rows.microseconds, times))
            pieces.append(segments.piece(part, stream.time_max))
            first, size = index, 0
    return pieces


def _index(connection: sqlite3.Connection, key: int, ids: Iterable[tuple[str, int]]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO ids (agent, id, sequence) VALUES (?, ?, ?)",
        [(key, event_rows.id_key(name), sequence) for name, sequence in ids],
    )


def _derive(connection: sqlite3.Connection, agent_id: int, new: Iterable[Recorded]) -> None:
    """Write what other tables keep of an event."""
    for event, _, _ in new:
        if event.type == "memory.stored":
            memory_index.record_memory(connection, agent_id, event)
        elif event.type == "memory.forgotten":
            memory_index.record_forgetting(connection, agent_id, event)
        elif event.type == "agent.reverted" and isinstance(event.data, dict):
            connection.execute(
                "INSERT OR REPLACE INTO reverts (agent, sequence, target) VALUES (?, ?, ?)",
                (agent_id, event.sequence, event.data["to"]),
            )


def _new_id() -> str:
    return str(uuid_utils.uuid7())
