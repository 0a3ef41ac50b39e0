# ruff: noqa: D102 - what the method of a port promises is said once, in ports.py
"""The ports of a store over HTTP, for an agent process: it knows the gateway and nothing behind it.

Invariants:
- A stream that is cut goes on with the event after the last one that came; a gap is an error.
- However many writes wait for their verdicts, few requests are under way.
- Nothing is kept but what the caller was given.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from perdure.errors import Corrupt, InvalidData, Unreachable
from perdure.gateway.connection import Connection, Cut, agent_path
from perdure.gateway.messages import (
    AGENT_HEADER,
    OCTETS,
    SEQUENCE_HEADER,
    AddedBody,
    AddVectors,
    ChainBody,
    ChangesBody,
    FilterBody,
    FindingsLine,
    HeadBody,
    MemoriesQuestion,
    MemoryQuestion,
    NearestQuestion,
    SearchQuestion,
    SequenceAtQuestion,
    SequenceBody,
    StoredBody,
    StreamBody,
    VectorsBody,
    VerdictBody,
    VerdictsQuestion,
    Waited,
    span_bodies,
    stream_of,
)
from perdure.kafka.journal import Entry
from perdure.memorizer.memory import Embedded, Filter, Hit, Memory
from perdure.model.event import NUMBER_MAX, Event
from perdure.model.sequencing import Head
from perdure.model.timeline import Span, Stream
from perdure.ports import AgentSummary, Batch, Finding, SavedState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLL_SECONDS: Final = 25.0
"""How long the gateway may keep a question that waits for something to happen."""

CAUGHT_UP_SECONDS: Final = 120.0
"""After so long without being caught up a read gives up: the recorder is away, or far behind."""

POLLS_MAX: Final = 4
"""Requests for verdicts under way at a time."""

POLL_RECORDS_MAX: Final = 2_000
"""Records that one request asks for."""

AGENTS_PAGE: Final = 256

CUTS_MAX: Final = 5
"""How often reading on is tried without a single event in between."""

_events_decoder = msgspec.json.Decoder(Event)
_findings_decoder = msgspec.json.Decoder(FindingsLine)


class HttpVerdicts:
    """What became of records of `perdure.events`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[tuple[int, int], list[asyncio.Future[Entry]]] = {}
        self._asked: set[tuple[int, int]] = set()
        self._polls: set[asyncio.Task[None]] = set()

    async def wait(self, store: str, partition: int, offset: int, timestamp: int) -> Entry:  # noqa: ARG002 - the journal finds it by its place
        """The journal's entry of a record, as soon as there is one.

        Raises:
            Unreachable: the gateway does not answer.
        """
        key = (partition, offset)
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        try:
            self._poll()
            return await future
        finally:
            waiting = self._waiting.get(key, [])
            if future in waiting:
                waiting.remove(future)
                if not waiting:
                    del self._waiting[key]

    async def close(self) -> None:
        """Ask no more; who still waits is told."""
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)
        closed = Unreachable("the store was closed before the write was confirmed")
        self._fail(list(self._waiting), closed)

    def _poll(self) -> None:
        """Ask for what nobody asks for yet, if not too many requests are under way."""
        if len(self._polls) < POLLS_MAX and len(self._asked) < len(self._waiting):
            poll = asyncio.create_task(self._ask())
            self._polls.add(poll)
            poll.add_done_callback(self._asked_once)

    def _asked_once(self, poll: asyncio.Task[None]) -> None:
        self._polls.discard(poll)
        self._poll()

    def _fail(self, keys: Iterable[tuple[int, int]], error: Exception) -> None:
        for key in keys:
            for future in self._waiting.pop(key, ()):
                if not future.done():
                    future.set_exception(error)

    async def _ask(self) -> None:
        await asyncio.sleep(0)  # whoever is about to wait too is asked for with it
        keys = []
        for key in self._waiting:
            if key not in self._asked:
                keys.append(key)
                if len(keys) == POLL_RECORDS_MAX:
                    break
        if not keys:
            return
        self._asked.update(keys)
        try:
            question = VerdictsQuestion([Waited(*key) for key in keys], POLL_SECONDS)
            found = await self._connection.post("/v1/verdicts", question, list[VerdictBody])
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked is told
            self._fail(keys, error)
            return
        finally:
            self._asked.difference_update(keys)
        for body in found:
            for future in self._waiting.pop((body.partition, body.entry.offset), ()):
                if not future.done():
                    future.set_result(body.entry)


class HttpEventTable:
    """`ports.EventTable` of one store, in a log of so many partitions."""

    def __init__(
        self, connection: Connection, store: str, verdicts: HttpVerdicts, partitions: int
    ) -> None:
        self._connection = connection
        self._store = store
        self._partitions = partitions
        self._verdicts = verdicts
        self._version = 0

    async def lineage(self, agent: str) -> list[Stream]:
        path = agent_path(self._store, agent, "lineage")
        return [stream_of(body) for body in await self._connection.ask(path, list[StreamBody])]

    async def caught_up(self, agent: str, position: str | None) -> None:
        place = "" if position is None else position.rpartition("@")[2]
        if place.isdecimal():
            return  # It was recorded before anybody was given its sequence.
        partition, separator, offset = place.partition(":")
        try:
            async with asyncio.timeout(CAUGHT_UP_SECONDS):
                if separator and partition.isdecimal() and offset.isdecimal():
                    # Checked here: the gateway refuses a question for what others wait for, too.
                    if int(partition) >= self._partitions or int(offset) > NUMBER_MAX:
                        raise InvalidData(
                            f"position {position!r} is none of the log, which has"
                            f" {self._partitions} partitions",
                            hint="give the position of an event of this agent",
                        )
                    entry = await self._verdicts.wait(self._store, int(partition), int(offset), 0)
                    entry.answers()
                elif position is None:
                    path = agent_path(self._store, agent, "caught-up")
                    while not await self._connection.ask(path, bool, timeout=POLL_SECONDS):
                        pass
                else:
                    raise InvalidData(
                        f"position {position!r} is not one of agent {agent}",
                        hint="give the position of an event of this agent",
                    )
        except TimeoutError as error:
            raise Unreachable(
                f"agent {agent} was not caught up within {CAUGHT_UP_SECONDS:.0f} s",
                hint="look at /readyz and the lag of the recorder; what was acknowledged is safe",
            ) from error

    async def head(self, agent: str) -> Head:
        body = await self._connection.ask(agent_path(self._store, agent, "head"), HeadBody)
        time_max = None if body.time_max is None else dt.datetime.fromisoformat(body.time_max)
        chain = bytes.fromhex(body.chain)
        return Head(body.agent, body.sequence, body.epoch, chain, time_max, {})

    async def read(self, span: Span) -> AsyncIterator[Batch]:
        path = agent_path(self._store, span.agent, "events")
        sequence, cuts = span.first, 0
        while sequence <= span.last:
            parameters: dict[str, str | float] = {
                "own": "true",
                "first": sequence,
                "last": span.last,
            }
            what = f"the events of {span.agent}"
            try:
                async for part in self._connection.lines(what, path, parameters):
                    events = _events(part, span.agent, sequence)
                    sequence, cuts = events[-1].sequence + 1, 0
                    yield Batch(events, len(part))
            except Cut:
                cuts += 1
                if cuts > CUTS_MAX:
                    raise
                continue
            if sequence <= span.last:
                raise _gap(span.agent, sequence)

    async def sequence_at(self, spans: Sequence[Span], time: int, *, inclusive: bool) -> int:
        question = SequenceAtQuestion(span_bodies(spans), time, inclusive)
        path = f"/v1/stores/{self._store}/sequence-at"
        return (await self._connection.post(path, question, SequenceBody)).sequence

    async def agents(self, prefix: str) -> AsyncIterator[list[AgentSummary]]:
        path = f"/v1/stores/{self._store}/agents"
        after = ""
        while True:
            page = await self._connection.ask(
                path, list[AgentSummary], prefix=prefix, after=after, limit=AGENTS_PAGE
            )
            if page:
                yield page
            if len(page) < AGENTS_PAGE:
                return
            after = page[-1].agent

    async def verify(self, agent: str) -> AsyncIterator[tuple[int, list[Finding]]]:
        path = agent_path(self._store, agent, "verify")
        async for part in self._connection.lines(f"the findings of {agent}", path):
            for line in _findings_decoder.decode_lines(part):
                yield line.events, line.findings

    def version(self) -> int:
        return self._version

    async def changed(self, version: int) -> None:
        """Wait until something of the store was recorded after a version that this one gave."""
        path = f"/v1/stores/{self._store}/changes"
        while self._version == version:
            found = await self._connection.ask(
                path, ChangesBody, after=version, timeout=POLL_SECONDS
            )
            self._version = found.version

    async def chain_at(self, agent: str, sequence: int) -> bytes:
        """The hash chain of an agent after one of its events, its parents' included.

        Raises:
            NotFound: there is no such agent, or it has no such sequence.
        """
        path = agent_path(self._store, agent, "chain-at", str(sequence))
        return bytes.fromhex((await self._connection.ask(path, ChainBody)).chain)


class HttpStateTable:
    """`ports.StateTable` of one store."""

    def __init__(self, connection: Connection, store: str) -> None:
        self._connection = connection
        self._store = store

    async def nearest(self, projection: str, key: str, spans: Sequence[Span]) -> SavedState | None:
        question = NearestQuestion(projection, key, span_bodies(spans))
        answer = await self._connection.request(
            "POST",
            f"/v1/stores/{self._store}/states/nearest",
            body=msgspec.json.encode(question),
        )
        if answer.status == 204:
            return None
        agent, sequence = answer.headers[AGENT_HEADER], int(answer.headers[SEQUENCE_HEADER])
        return SavedState(agent, sequence, projection, key, answer.body)

    async def save(self, saved: SavedState) -> None:
        path = agent_path(self._store, saved.agent, "states", saved.projection, str(saved.sequence))
        await self._connection.request(
            "PUT", path, {"key": saved.key}, body=saved.data, content_type=OCTETS
        )

    async def check(self, agent: str) -> list[Finding]:
        path = agent_path(self._store, agent, "states", "check")
        return await self._connection.ask(path, list[Finding])


class HttpBlobs:
    """`ports.Blobs`: read over HTTP; `upload` (digest, packed object) writes, over Kafka."""

    def __init__(
        self, connection: Connection, upload: Callable[[str, bytes], Awaitable[int]]
    ) -> None:
        self._connection = connection
        self._upload = upload

    async def put(self, digest: str, data: bytes) -> int:
        return await self._upload(digest, data)

    async def get(self, digest: str) -> bytes:
        answer = await self._connection.request("GET", _object_path(digest))
        return answer.body

    async def size(self, digest: str) -> int:
        answer = await self._connection.request("HEAD", _object_path(digest))
        return int(answer.headers["content-length"])


class HttpStored:
    """Asks whether an object that was uploaded is stored; fills `kafka.chunks.Stored`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def __call__(self, digest: str, *, upload: str = "", wait: float = 0) -> int | None:
        found = await self._connection.ask(
            _object_path(digest, "stored"), StoredBody, upload=upload, timeout=wait
        )
        return found.size


class HttpMemoryIndex:
    """`memorizer.memory.MemoryIndex` of one store."""

    def __init__(self, connection: Connection, store: str) -> None:
        self._connection = connection
        self._path = f"/v1/stores/{store}/memories"

    async def unembedded(self, spans: Sequence[Span], embedder: str, limit: int) -> list[Memory]:
        question = MemoriesQuestion(span_bodies(spans), embedder, limit)
        return await self._connection.post(f"{self._path}/unembedded", question, list[Memory])

    async def add_vectors(self, embedder: str, embedded: Sequence[Embedded]) -> int:
        bodies = [
            VectorsBody(
                each.agent,
                each.sequence,
                parts=each.vectors.shape[0],
                dimensions=each.vectors.shape[1],
                data=_floats(each.vectors),
            )
            for each in embedded
        ]
        path = f"{self._path}/vectors"
        return (await self._connection.post(path, AddVectors(embedder, bodies), AddedBody)).added

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
        question = SearchQuestion(
            span_bodies(spans),
            query_text,
            _floats(query_vector),
            embedder,
            k,
            None if filter is None else _filter_body(filter),
        )
        return await self._connection.post(f"{self._path}/search", question, list[Hit])

    async def get(self, spans: Sequence[Span], id: str) -> Memory:
        question = MemoryQuestion(span_bodies(spans), id)
        return await self._connection.post(f"{self._path}/get", question, Memory)


def _events(part: bytes, agent: str, first: int) -> list[Event]:
    """The events of complete lines, which have to start at `first` and go on without a gap."""
    try:
        events = _events_decoder.decode_lines(part)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"an event of {agent} from {first} on is damaged: {error}") from error
    if [event.sequence for event in events] != list(range(first, first + len(events))):
        raise _gap(agent, first)
    return events


def _gap(agent: str, sequence: int) -> Corrupt:
    return Corrupt(
        f"event {agent}@{sequence} is missing in the cluster's tables",
        hint=f"`perdure verify {agent}` shows what is damaged; `perdure replay` rebuilds it",
    )


def _object_path(digest: str, *rest: str) -> str:
    return "/".join(("/v1/objects", quote(digest, safe=""), *rest))


def _floats(values: "NDArray[np.float32]") -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _filter_body(filter: Filter) -> FilterBody:
    return FilterBody(
        filter.source,
        None if filter.since is None else filter.since.isoformat(),
        None if filter.until is None else filter.until.isoformat(),
        dict(filter.where),
    )
