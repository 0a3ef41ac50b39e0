"""The read side of one store's streams on Cassandra.

Invariants:
- A gap in the sequences is an error, never skipped.
- Reading holds nothing but a page of events, and `AHEAD` more that are on their way.
- Whether events can be read already that were acknowledged elsewhere is for the gateway to know:
  `version` and `caught_up` are its own.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from typing import Final

import msgspec

from perdure.cassandra.cells import from_microseconds, microseconds
from perdure.cassandra.event_rows import EventRows, Request, decoded, gap, page_rows
from perdure.cassandra.session import AT_ONCE, Row, Session
from perdure.cassandra.tables import Bucket, Generations, Tables
from perdure.cassandra.verification import verify
from perdure.errors import Corrupt, NotFound
from perdure.model.event import NUMBER_MAX
from perdure.model.sequencing import Head, link
from perdure.model.timeline import Span, Stream
from perdure.ports import AgentSummary, Batch, Finding

AGENTS_PAGE: Final = 256
"""Agents of one batch of a list."""

NAMESPACES_PAGE: Final = 64
"""Namespaces whose agents are asked for at once."""

BUCKETS_AT_ONCE: Final = 16
"""Buckets whose index is asked at once."""

AHEAD: Final = 3
"""Pages of events that are asked for before they are needed: the tables and who reads them are
both busy then, and a slow page holds up nobody."""

_TIME_MAX: Final = 2**63 - 1


class _Numbered(msgspec.Struct):
    """What is read of a stored event to see that none is missing."""

    sequence: int


_numbers = msgspec.json.Decoder(list[_Numbered])


class CassandraEventTable:
    """`ports.EventTable` without `version` and `caught_up`, of one store."""

    def __init__(self, session: Session, store: str, generations: Generations) -> None:
        self._session = session
        self._store = store
        self._generations = generations
        self._rows = EventRows(session, store, generations)

    async def lineage(self, agent: str) -> list[Stream]:
        streams: list[Stream] = []
        name: str | None = agent
        while name is not None:
            if any(name == stream.agent for stream in streams):
                raise Corrupt(
                    f"agent {name} is its own ancestor: its head in Cassandra is damaged",
                    hint="`perdure replay` builds the tables anew",
                )
            newest = await self._rows.newest(name)
            parent, forked_at, reverts = msgspec.structs.astuple(newest.lineage)
            streams.append(Stream(name, newest.last, parent, forked_at, reverts))
            name = parent
        return streams

    async def head(self, agent: str) -> Head:
        newest = await self._rows.newest(agent)
        time = None if newest.time_max is None else from_microseconds(newest.time_max)
        return Head(agent, newest.last, newest.epoch, newest.chain, time, {})

    async def read(self, span: Span) -> AsyncGenerator[Batch, None]:
        sequence = span.first
        async with contextlib.aclosing(self._pages(span)) as pages:
            async for page in pages:
                events = decoded(page)
                _check(span.agent, sequence, [event.sequence for event in events])
                sequence += len(events)
                yield Batch(events, sum(map(len, page)))
        if sequence <= span.last:
            raise gap(span.agent, sequence)

    async def read_stored(self, span: Span) -> AsyncGenerator[list[bytes], None]:
        """As `read`, but each event as its stored bytes, which nobody decodes."""
        sequence = span.first
        async with contextlib.aclosing(self._pages(span)) as pages:
            async for page in pages:
                _check(span.agent, sequence, _sequences(page))
                sequence += len(page)
                yield page
        if sequence <= span.last:
            raise gap(span.agent, sequence)

    async def _pages(self, span: Span) -> AsyncGenerator[list[bytes], None]:
        """The stored bytes of a span's events, page by page."""
        coming: deque[asyncio.Task[list[Row]]] = deque()
        try:
            async with contextlib.aclosing(self._requests(span)) as requests:
                async for statement, parameters in requests:
                    coming.append(asyncio.create_task(self._session.execute(statement, parameters)))
                    if len(coming) > AHEAD:
                        yield [row[0] for row in await coming.popleft()]
            while coming:
                yield [row[0] for row in await coming.popleft()]
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _requests(self, span: Span) -> AsyncGenerator[Request, None]:
        """The requests for a span's events, bucket by bucket."""
        if span.first > span.last:
            return
        newest = await self._rows.reaching(span.agent, span.last)
        bucket: Bucket | None = await self._rows.holding(span.agent, span.first, newest)
        while bucket is not None:
            for request in self._rows.requests(span.agent, bucket, span.first, span.last):
                yield request
            if bucket.number >= newest.number or bucket.last >= span.last:
                return
            following = bucket.number + 1
            bucket = (
                newest
                if following == newest.number
                else await self._rows.closed(span.agent, following)
            )

    async def sequence_at(self, spans: Sequence[Span], time: int, *, inclusive: bool) -> int:
        limit = time if inclusive else time - 1
        before = 0
        for span in spans:
            start = await self._first_later(span, limit)
            if start is not None:
                async with contextlib.aclosing(
                    self.read(Span(span.agent, start, span.last))
                ) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            if microseconds(event.time) > limit:
                                return (
                                    before if event.sequence == span.first else event.sequence - 1
                                )
            before = span.last
        return before

    async def _first_later(self, span: Span, limit: int) -> int | None:
        """Where the first bucket of a span starts that may hold an event later than `limit`.

        `time_max` never falls along a stream: found by bisection.
        """
        newest = await self._rows.newest(span.agent)
        low = (await self._rows.holding(span.agent, span.first, newest)).number
        high = (await self._rows.holding(span.agent, span.last, newest)).number

        async def bucket(number: int) -> Bucket:
            if number == newest.number:
                return newest
            return await self._rows.closed(span.agent, number)

        if ((await bucket(high)).time_max or 0) <= limit:
            return None
        while low < high:
            middle = (low + high) // 2
            if ((await bucket(middle)).time_max or 0) > limit:
                high = middle
            else:
                low = middle + 1
        return max((await bucket(low)).first, span.first)

    async def by_type(
        self,
        agent: str,
        types: Collection[str],
        *,
        since: int | None = None,
        until: int | None = None,
        first: int = 1,
        last: int = NUMBER_MAX,
    ) -> AsyncGenerator[Batch, None]:
        """The agent's own events of some types, in order, in batches; found by an index.

        Only those with a time from `since` until `until`, both included, in microseconds since
        1970, and with a sequence from `first` to `last`.

        Raises:
            NotFound: there is no such agent.
            Corrupt: an event that the index names is missing or damaged.
        """
        newest = await self._rows.newest(agent)
        start = (await self._rows.holding(agent, first, newest)).number
        end = (await self._rows.holding(agent, last, newest)).number
        times = (-_TIME_MAX if since is None else since, _TIME_MAX if until is None else until)
        tables = self._rows.tables(agent)
        for group in range(start, end + 1, BUCKETS_AT_ONCE):
            numbers = range(group, min(end + 1, group + BUCKETS_AT_ONCE))
            asked = [(number, kind) for number in numbers for kind in sorted(set(types))]
            answers = await self._session.execute_many(
                (tables.types, (self._store, agent, number, kind, *times)) for number, kind in asked
            )
            found: dict[int, list[int]] = {number: [] for number in numbers}
            for (number, _), rows in zip(asked, answers, strict=True):
                found[number] += [row[0] for row in rows if first <= row[0] <= last]
            for number, sequences in found.items():
                sequences.sort()
                bucket = newest
                if number < newest.number and sequences:
                    bucket = await self._rows.closed(agent, number)
                page = page_rows(bucket.events, bucket.bytes)
                for at in range(0, len(sequences), page):
                    part = sequences[at : at + page]
                    yield Batch(*await self._rows.events(agent, number, part))

    async def chain_at(self, agent: str, sequence: int) -> bytes:
        """The hash chain after one of the agent's own events, 32 bytes.

        Before its first, at a lower sequence.

        Raises:
            NotFound: there is no such agent.
            Corrupt: the stream has no such event, or one before it is missing.
        """
        newest = await self._rows.newest(agent)
        bucket = await self._rows.holding(agent, sequence, newest)
        if sequence < bucket.first:
            return bucket.chain_before
        if sequence == bucket.last:
            return bucket.chain
        chain = bucket.chain_before
        async with contextlib.aclosing(
            self.read_stored(Span(agent, bucket.first, sequence))
        ) as pages:
            async for page in pages:
                for data in page:
                    chain = link(chain, data)
        return chain

    async def agents(
        self, prefix: str, *, after: str = ""
    ) -> AsyncGenerator[list[AgentSummary], None]:
        """As the port has it; with `after`, only agents whose name is greater."""
        while True:
            pages = await asyncio.gather(
                *(self._names(tables, prefix, after) for tables in self._generations.all())
            )
            names = sorted(
                name
                for tables, (page, _) in zip(self._generations.all(), pages, strict=True)
                for name in page
                if len(pages) == 1 or self._rows.tables(name) is tables
            )
            # Beyond where one of the pages ends, it is not known what comes next.
            ends = [page[-1] for page, more in pages if more]
            if ends:
                names = [name for name in names if name <= min(ends)]
            for start in range(0, len(names), AGENTS_PAGE):
                part = names[start : start + AGENTS_PAGE]
                if found := await self._summaries(part):
                    yield found
            if not ends:
                return
            after = min(ends)

    async def _names(self, tables: Tables, prefix: str, after: str) -> tuple[list[str], bool]:
        """Names of a generation's agents, in order; and whether there may be more after them."""
        start = max(prefix, after)
        if "/" in prefix:
            namespace = prefix[: prefix.index("/") + 1]
            return await self._names_in(tables, [namespace], prefix, start, after)
        first = start[: start.index("/") + 1] if "/" in start else start
        while True:
            rows = await self._session.execute(
                tables.namespaces, (self._store, first, NAMESPACES_PAGE)
            )
            namespaces = [row[0] for row in rows if row[0].startswith(prefix)]
            names, more = await self._names_in(tables, namespaces, prefix, start, after)
            if more or len(namespaces) < NAMESPACES_PAGE:
                return names, more
            if names:
                return names, True
            first = namespaces[-1]

    async def _names_in(
        self, tables: Tables, namespaces: Sequence[str], prefix: str, start: str, after: str
    ) -> tuple[list[str], bool]:
        answers = await self._session.execute_many(
            (tables.agents, (self._store, namespace, start, AGENTS_PAGE))
            for namespace in namespaces
        )
        names: list[str] = []
        for rows in answers:
            names += [row[0] for row in rows if row[0] != after and row[0].startswith(prefix)]
            if len(rows) == AGENTS_PAGE and rows[-1][0].startswith(prefix):
                return names, True
        return names, False

    async def _summaries(self, names: Sequence[str]) -> list[AgentSummary]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def summary(agent: str) -> AgentSummary | None:
            async with gate:
                newest = await self._rows.find_newest(agent, self._rows.bucket)
            if newest is None:  # Listed by a recorder that was stopped before its first event.
                return None
            time = None
            if newest.time_max is not None:
                time = from_microseconds(newest.time_max).isoformat()
            parent, forked_at, _ = msgspec.structs.astuple(newest.lineage)
            return AgentSummary(agent, newest.last, newest.epoch, time, parent, forked_at)

        found = await asyncio.gather(*(summary(name) for name in names))
        return [each for each in found if each is not None]

    async def verify(self, agent: str) -> AsyncIterator[tuple[int, list[Finding]]]:
        newest = await self._rows.newest(agent)
        parent, forked_at, _ = msgspec.structs.astuple(newest.lineage)
        origin = None
        if parent is not None:
            try:
                streams = await self.lineage(agent)
                owner = next(s for s in streams[1:] if forked_at > s.forked_at or s.parent is None)
                origin = (owner.agent, await self.chain_at(owner.agent, forked_at))
            except (Corrupt, NotFound) as error:
                yield 0, [Finding(f"{parent}@{forked_at}", error.message)]
        async for found in verify(self._rows, agent, newest, origin):
            yield found


def _check(agent: str, first: int, sequences: list[int]) -> None:
    """Check that sequences go on from `first` without a gap. Raises Corrupt."""
    if sequences != list(range(first, first + len(sequences))):
        for expected, sequence in enumerate(sequences, first):
            if sequence != expected:
                raise gap(agent, expected)


def _sequences(page: list[bytes]) -> list[int]:
    try:
        return [each.sequence for each in _numbers.decode(b"[" + b",".join(page) + b"]")]
    except msgspec.MsgspecError as error:
        raise Corrupt(f"stored bytes are no list of events: {error}") from error
