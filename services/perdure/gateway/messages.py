"""What goes over HTTP between the gateway and those who ask it: bodies, lines, errors.

Invariants:
- An error arrives as the class that was raised, with its message and hint.
- A stream of lines ends with a line that says so, or with one that says what went wrong: one that
  was cut is noticed.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from perdure.errors import (
    EventTooLarge,
    InvalidInput,
    NotFound,
    PerdureError,
    ProjectionFailed,
    Refused,
    Unavailable,
    Unreachable,
)
from perdure.kafka.journal import Entry, Problem
from perdure.model.sequencing import Head
from perdure.model.timeline import Revert, Span, Stream
from perdure.ports import Finding

NDJSON: Final = "application/x-ndjson"
OCTETS: Final = "application/octet-stream"

AGENT_HEADER: Final = "perdure-agent"
SEQUENCE_HEADER: Final = "perdure-sequence"
DEFAULT_STORE: Final = "default"


class SpanBody(msgspec.Struct, frozen=True):
    """Events `first` to `last`, both included, of one agent's own stream."""

    agent: str
    first: int
    last: int


class RevertBody(msgspec.Struct, frozen=True):
    """An `agent.reverted` event: where it stands, and the sequence it went back to."""

    sequence: int
    to: int


class StreamBody(msgspec.Struct, frozen=True):
    """One stream of a lineage: the agent's own, its parent's, and so on."""

    agent: str
    sequence: int
    parent: str | None = None
    forked_at: int = 0
    reverts: tuple[RevertBody, ...] = ()


class HeadBody(msgspec.Struct, frozen=True):
    """Where an agent stands: `chain` in hexadecimal, `time_max` in ISO 8601."""

    agent: str
    sequence: int
    epoch: int
    chain: str
    time_max: str | None


class SequenceAtQuestion(msgspec.Struct, frozen=True):
    """Which is the last sequence of `spans` at `time` (microseconds since 1970)."""

    spans: list[SpanBody]
    time: int
    inclusive: bool


class SequenceBody(msgspec.Struct, frozen=True):
    """A sequence."""

    sequence: int


class ChainBody(msgspec.Struct, frozen=True):
    """The hash chain after an event, in hexadecimal."""

    chain: str


class NearestQuestion(msgspec.Struct, frozen=True):
    """Which saved state of a projection lies latest in `spans`."""

    projection: str
    key: str
    spans: list[SpanBody]


class ChangesBody(msgspec.Struct, frozen=True):
    """The version of a store: another number whenever something was recorded."""

    version: int


class Waited(msgspec.Struct, frozen=True):
    """A record of `perdure.events` whose fate is asked for."""

    partition: int
    offset: int


class VerdictsQuestion(msgspec.Struct, frozen=True):
    """Which of these records are decided; answered when one is, or after `timeout` seconds."""

    records: list[Waited]
    timeout: float = 30.0


class ErrorBody(msgspec.Struct, frozen=True):
    """An error: the name of its class in perdure's tree of errors, its message, the way out."""

    error: str
    message: str
    hint: str = ""


class VerdictBody(msgspec.Struct, frozen=True):
    """What became of one record of a partition, as the journal tells it."""

    partition: int
    entry: Entry


class ClusterBody(msgspec.Struct, frozen=True):
    """What an agent process has to know of the cluster."""

    version: str
    kafka: str
    topics: dict[str, str]
    partitions: int
    event_bytes_max: int
    record_bytes_max: int


class MemoriesQuestion(msgspec.Struct, frozen=True):
    """Which memories in `spans` have no vector of `embedder`."""

    spans: list[SpanBody]
    embedder: str
    limit: int


class VectorsBody(msgspec.Struct, frozen=True):
    """The vectors of one memory: `parts` rows of `dimensions` 32-bit floats, little-endian."""

    agent: str
    sequence: int
    parts: int
    dimensions: int
    data: bytes


class AddVectors(msgspec.Struct, frozen=True):
    """Vectors to store, all or none."""

    embedder: str
    embedded: list[VectorsBody]


class AddedBody(msgspec.Struct, frozen=True):
    """How many memories got their vectors."""

    added: int


class FilterBody(msgspec.Struct, frozen=True):
    """Which memories a search looks at; times in ISO 8601 with a zone."""

    source: str | None = None
    since: str | None = None
    until: str | None = None
    where: dict[str, str | int | float | bool | None] = {}


class SearchQuestion(msgspec.Struct, frozen=True):
    """Which memories fit a query best, by its words and its vector (32-bit floats)."""

    spans: list[SpanBody]
    text: str
    vector: bytes
    embedder: str
    k: int
    filter: FilterBody | None = None


class MemoryQuestion(msgspec.Struct, frozen=True):
    """Which memory of this id is visible in `spans`."""

    spans: list[SpanBody]
    id: str


class FindingsLine(msgspec.Struct, frozen=True):
    """A step of verifying an agent: how many events were looked at, and what is wrong."""

    events: int
    findings: list[Finding]


class StoredBody(msgspec.Struct, frozen=True):
    """How many bytes an object takes where it is stored; None while it isn't."""

    size: int | None


T = TypeVar("T")


class _End(msgspec.Struct, frozen=True):
    end: int


_STATUS: Final = (
    (EventTooLarge, 413),
    (InvalidInput, 400),
    (ProjectionFailed, 422),
    (Unavailable, 503),
    (NotFound, 404),
    (Refused, 409),
)


def status_of(error: PerdureError) -> int:
    """The HTTP status that fits an error.

    >>> status_of(NotFound("no agent airline/mia")), status_of(PerdureError("odd"))
    (404, 500)
    """
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(error: PerdureError) -> ErrorBody:
    """An error as it goes over HTTP."""
    return ErrorBody(type(error).__name__, error.message, error.hint)


def as_error(body: ErrorBody) -> PerdureError:
    """The error that a body tells of; Unavailable where its class is not known here.

    >>> as_error(ErrorBody("NotFound", "no agent airline/mia"))
    NotFound('no agent airline/mia', '')
    """
    return Problem(body.error, body.message, body.hint).error()


def spans_of(bodies: Sequence[SpanBody]) -> list[Span]:
    """Spans, from their bodies."""
    return [Span(body.agent, body.first, body.last) for body in bodies]


def span_bodies(spans: Sequence[Span]) -> list[SpanBody]:
    """The bodies of spans."""
    return [SpanBody(*span) for span in spans]


def stream_body(stream: Stream) -> StreamBody:
    """The body of a stream."""
    reverts = tuple(RevertBody(*revert) for revert in stream.reverts)
    return StreamBody(stream.agent, stream.sequence, stream.parent, stream.forked_at, reverts)


def stream_of(body: StreamBody) -> Stream:
    """A stream, from its body."""
    reverts = tuple(Revert(revert.sequence, revert.to) for revert in body.reverts)
    return Stream(body.agent, body.sequence, body.parent, body.forked_at, reverts)


def head_body(head: Head) -> HeadBody:
    """The body of a head, without its writers."""
    time_max = None if head.time_max is None else head.time_max.isoformat()
    return HeadBody(head.agent, head.sequence, head.epoch, head.chain.hex(), time_max)


async def begun(batches: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same, the first being there already: what can't begin has a status, and no body."""
    first = []
    async for batch in batches:
        first.append(batch)
        break

    async def all_of_them() -> AsyncIterator[T]:
        for batch in first:
            yield batch
        async for batch in batches:
            yield batch

    return all_of_them()


async def lines(batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[bytes]:
    """Batches of JSON values as lines, a piece a batch, and the line that ends them."""
    count = 0
    try:
        async for batch in batches:
            if batch:
                count += len(batch)
                yield b"\n".join(batch) + b"\n"
    except PerdureError as error:
        yield msgspec.json.encode(error_body(error)) + b"\n"
        return
    yield msgspec.json.encode(_End(count)) + b"\n"


class Lines:
    r"""The lines of a stream, from its pieces as they come in.

    >>> reader = Lines("the events")
    >>> [bytes(part) for part in reader.take(b'{"id":"a"}\n{"id"')]
    [b'{"id":"a"}\n']
    >>> [bytes(part) for part in reader.take(b':"b"}\n{"end":2}\n')]
    [b'{"id":"b"}\n']
    >>> reader.finish()
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rest = b""
        self._count = 0
        self._end: int | None = None

    def take(self, piece: bytes) -> Iterator[bytes]:
        """The complete lines that a piece completes, together. Raises what the stream tells."""
        data = self._rest + piece
        cut = data.rfind(b"\n") + 1
        self._rest = data[cut:]
        if not cut:
            return
        last = data.rfind(b"\n", 0, cut - 1) + 1
        line = data[last:cut]
        ends, fails = line.startswith(b'{"end":'), line.startswith(b'{"error":')
        if ends or fails:
            cut = last
        if cut:
            self._count += data.count(b"\n", 0, cut)
            yield data[:cut]
        if ends:
            self._end = msgspec.json.decode(line, type=_End).end
        elif fails:
            raise as_error(msgspec.json.decode(line, type=ErrorBody))

    def finish(self) -> None:
        """Say that no more comes. Raises Unreachable where the stream was cut."""
        if self._end != self._count or self._rest:
            raise Unreachable(
                f"{self._what} were cut off after {self._count} lines",
                hint="the gateway stopped meanwhile; ask again",
            )
