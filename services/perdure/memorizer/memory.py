"""What a memory is, what finding one gives back, and what a memory index must offer.

Invariants:
- A memory is visible in spans exactly when its event lies in one of them and no event that
  forgets it does. So recall as of a past sequence needs no other data than the spans.
- An index holds what events say and nothing else; vectors can be made again from the texts.
"""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from perdure.errors import InvalidData
from perdure.model.event import JSON, Event, utc
from perdure.model.timeline import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HITS_MAX: Final = 1_000
"""The most hits of one search."""

CONDITIONS_MAX: Final = 32
"""The most entries of `Filter.where`."""

PATH_PARTS_MAX: Final = 16
"""The most parts of a dotted path in `Filter.where`."""

Scalar: TypeAlias = str | int | float | bool | None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """A text that an agent stored, with where it comes from.

    `id` is that of the `memory.stored` event, `agent` the stream the event is in and `sequence`
    its place there. `source` says who gave it, `context` what it was about, `metadata` is the
    user's own. `until` is the later sequence of the asking agent at which it was forgotten, seen
    only when asking as of a sequence before that.

    >>> Memory(id="m-1", agent="airline/mia", sequence=3, text="prefers aisle seats",
    ...        time=dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc)).source is None
    True
    """

    id: str
    agent: str
    sequence: int
    time: dt.datetime
    text: str
    source: str | None = None
    context: dict[str, JSON] = {}
    metadata: dict[str, JSON] = {}
    until: int | None = None


class Scores(msgspec.Struct, frozen=True):
    """The parts of a hit's score, `vector` and `text` each from 0 to 1.

    `cosine` is that of query and memory (0 where the memory has no vector yet), `vector` the same
    in relation to the best cosine of the search, and `text` the BM25 score in relation to that of
    its best text match.
    """

    vector: float
    text: float
    cosine: float


class Hit(Memory, frozen=True, kw_only=True):
    """A memory that a search found, and why.

    >>> hit = Hit(id="m-1", agent="airline/mia", sequence=3, text="prefers aisle seats",
    ...           time=dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc),
    ...           score=0.65, scores=Scores(vector=0.8, text=0.2, cosine=0.41))
    >>> hit.explain()
    'score 0.65 = vector 0.80 x 0.75 + text 0.20 x 0.25 (cosine 0.41)'
    """

    score: float
    scores: Scores

    def explain(self) -> str:
        """One line: how the score is made of its parts."""
        return (
            f"score {self.score:.2f} = vector {self.scores.vector:.2f} x {VECTOR_WEIGHT:.2f}"
            f" + text {self.scores.text:.2f} x {1 - VECTOR_WEIGHT:.2f}"
            f" (cosine {self.scores.cosine:.2f})"
        )


VECTOR_WEIGHT: Final = 0.75
"""The vector's share in a score: the measured best on paraphrases and identifiers together."""


class Condition(NamedTuple):
    """One entry of `Filter.where`: the value at `path` within `column` equals `value`."""

    column: Literal["context", "metadata"]
    path: tuple[str, ...]
    value: Scalar


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which memories a search looks at.

    `source`: exactly this one. `since` (included) and `until` (not included): when it was stored.
    `where`: dotted paths and the value that must stand there; a path that starts with `context.`
    goes into the context, any other into the metadata (a leading `metadata.` may be written). A
    key that itself holds dots is found as well. Values compare as JSON: `1` equals `1.0`, but
    neither `True` nor `"1"`; None is a null that is there, not a missing key.

    Raises:
        InvalidData: a part of it is of a wrong type, a time has no zone, a path is empty.

    >>> Filter(source="chat", where={"context.task": "t-7", "topic": "seats"}).conditions()[0]
    Condition(column='context', path=('task',), value='t-7')
    >>> Filter(where={"topic": ["seats"]})
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: where["topic"] is of type list (compare with a str, number, bool or None)
    """  # noqa: E501 - the last line is what Python prints

    source: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    where: Mapping[str, Scalar] = {}

    def __post_init__(self) -> None:
        if self.source is not None and not isinstance(self.source, str):
            raise InvalidData(
                f"source is of type {type(self.source).__name__}", hint="give the text it was"
            )
        for name in ("since", "until"):
            if (time := getattr(self, name)) is not None:
                msgspec.structs.force_setattr(self, name, utc(name, time))
        if not isinstance(self.where, Mapping):
            raise InvalidData(
                f"where is of type {type(self.where).__name__}",
                hint='give a dict such as {"context.task": "t-7"}',
            )
        if len(self.where) > CONDITIONS_MAX:
            raise InvalidData(
                f"where has {len(self.where)} entries", hint=f"{CONDITIONS_MAX} are the most"
            )
        for path, value in self.where.items():
            _check_condition(path, value)

    def conditions(self) -> list[Condition]:
        """The entries of `where`, taken apart."""
        return [_condition(path, value) for path, value in self.where.items()]

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.source is not None or self.since or self.until or self.where)

    def accepts(self, memory: Memory) -> bool:
        """Whether the memory passes: what every index's own filtering must equal.

        >>> memory = Memory(id="m", agent="a/b", sequence=1, text="x", context={"task": "t-7"},
        ...                 time=dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc))
        >>> Filter(where={"context.task": "t-7"}).accepts(memory)
        True
        """
        return (
            (self.source is None or memory.source == self.source)
            and (self.since is None or memory.time >= self.since)
            and (self.until is None or memory.time < self.until)
            and all(
                _holds(
                    memory.context if condition.column == "context" else memory.metadata, condition
                )
                for condition in self.conditions()
            )
        )


class Embedded(NamedTuple):
    """The vectors of one memory: one for each window of its text (parts x dimensions)."""

    agent: str
    sequence: int
    vectors: "NDArray[np.float32]"


class MemoryIndex(Protocol):
    """Where memories are searched. Memories enter it with the event that stores them."""

    async def unembedded(self, spans: Sequence[Span], embedder: str, limit: int) -> list[Memory]:
        """Up to `limit` memories in `spans` without a vector of `embedder`, forgotten ones too."""
        ...

    async def add_vectors(self, embedder: str, embedded: Sequence[Embedded]) -> int:
        """Store vectors, durably and all or none; how many memories got theirs by this call.

        Idempotent: a memory that has vectors of this embedder keeps them. One that isn't there
        is passed over.

        Raises:
            InvalidData: a vector is not finite, or of other dimensions than this embedder's others.
        """
        ...

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

        Equal scores: the later memory first. A memory without a vector is found by its words.

        Raises:
            InvalidData: `k` is not from 1 to 1000, or the vector has other dimensions than stored.
        """
        ...

    async def get(self, spans: Sequence[Span], id: str) -> Memory:
        """The visible memory of this id.

        Raises:
            NotFound: there is none in `spans`, or it is forgotten there.
        """
        ...


class ScratchIndex(MemoryIndex, Protocol):
    """An index beside the store's, in main memory: for what is to be searched and is no memory."""

    async def add(self, events: Sequence[Event]) -> None:
        """Index `memory.stored` events, of whichever agents. Adding one again changes nothing."""
        ...

    def close(self) -> None:
        """Drop all of it. Closing twice is harmless; what is asked later raises StoreClosed."""
        ...


def checked_k(k: object) -> int:
    """How many hits a caller wants: 1 to 1000.

    Raises:
        InvalidData: it is anything else.

    >>> checked_k(0)
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: k is 0 (give a whole number from 1 to 1,000)
    """
    if type(k) is not int or not 1 <= k <= HITS_MAX:
        raise InvalidData(f"k is {str(k)[:40]}", hint=f"give a whole number from 1 to {HITS_MAX:,}")
    return k


def _check_condition(path: object, value: object) -> None:
    if not isinstance(path, str):
        raise InvalidData(
            f"where has the key {str(path)[:60]!r} of type {type(path).__name__}",
            hint="keys are dotted paths, such as context.task",
        )
    parts = path.split(".")
    if not all(parts) or path in ("context", "metadata") or len(parts) > PATH_PARTS_MAX:
        raise InvalidData(
            f"where has the path {path[:60]!r}",
            hint=f"name a field, such as context.task or topic, at most {PATH_PARTS_MAX} deep",
        )
    try:
        path.encode()
        str(value).encode()
    except UnicodeEncodeError as error:
        raise InvalidData(
            f"where[{ascii(path)[:60]}] holds a lone surrogate", hint="text has to be valid Unicode"
        ) from error
    if not (value is None or isinstance(value, str | int | float)):
        raise InvalidData(
            f'where["{path[:60]}"] is of type {type(value).__name__}',
            hint="compare with a str, number, bool or None",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidData(f'where["{path[:60]}"] is {value}, which JSON doesn\'t have')
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidData(
            f'where["{path[:60]}"] is an integer of more than 64 bits', hint="keep it as a str"
        )


def _condition(path: str, value: Scalar) -> Condition:
    first, *rest = path.split(".")
    if rest and first == "context":
        return Condition("context", tuple(rest), value)
    if rest and first == "metadata":
        return Condition("metadata", tuple(rest), value)
    return Condition("metadata", (first, *rest), value)


def _holds(values: Mapping[str, JSON], condition: Condition) -> bool:
    """Whether the value is at the path, or at a key that is the dotted path itself."""
    dotted = ".".join(condition.path)
    if dotted in values and _equal(values[dotted], condition.value):
        return True
    node: JSON = dict(values)
    for name in condition.path:
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return _equal(node, condition.value)


def _equal(found: JSON, wanted: Scalar) -> bool:
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, dict | list):
        return False
    return found == wanted
