"""One search in a collection: rankings of what is visible, and the memories themselves.

Invariants:
- Whatever Weaviate lets pass is checked here: it lies in the spans, no event in them forgets it,
  the filter accepts it.
- A ranking goes on until enough of it is visible or nothing is left, however much of it isn't.
- Where the server may drop the best matches by words from a list that is full, a list is taken
  only when it isn't.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from weaviate.classes.query import Filter as Where
from weaviate.classes.query import MetadataQuery
from weaviate.collections.classes.filters import FilterReturn

from perdure.memorizer.memory import Filter, Memory
from perdure.model.timeline import Span
from perdure.weaviate.objects import READ, Ids, memory_from, number
from perdure.weaviate.progress import Progress
from perdure.weaviate.schema import Collection
from perdure.weaviate.session import Table
from perdure.weaviate.sight import Place, Sight, halves, passing, within

RESULTS_MAX: Final = 10_000
"""The most results that Weaviate gives at once."""

MATCHES_MAX: Final = 1_000
"""How many matches by words are asked for at first."""

COSINES_MAX: Final = 150
"""Of how many memories cosines are asked for at once: each has up to 64 windows."""

FETCHED_MAX: Final = 64
"""How many whole memories are fetched at once: texts can be long."""

CHECKED_MAX: Final = 500
"""How many memories are fetched at once, without their texts, to be checked."""

_RANKED: Final = ["agent", "sequence", "event"]
_CHECKED: Final = [name for name in READ if name != "text"]


class Ranked(NamedTuple):
    """A result: of which memory, and its score, larger for better."""

    agent: str
    sequence: int
    id: str
    score: float


class Seen(NamedTuple):
    """A tenant's part of a collection, and the agents of the search that are in it."""

    collection: Collection
    table: Table
    agents: list[str]


Match: TypeAlias = tuple[UUID, float]
"""A result by words: the id of a memory's part 0, and its BM25 score."""


Ranking: TypeAlias = Callable[[Seen, FilterReturn, int], Awaitable[list[Ranked]]]
"""The best results in a part that meet a condition, at most so many, best first."""


class View:
    """What a search sees, in which parts."""

    def __init__(
        self,
        ids: Ids,
        sight: Sight,
        seen: Sequence[Seen],
        progress: Mapping[str, Progress],
        *,
        filter: Filter | None = None,
    ) -> None:
        self._ids = ids
        self._sight = sight
        self._filter = filter or None
        self._passing = passing(filter) if filter else []
        self._seen = seen
        self._progress = progress
        self._ends = {agent: each.head for agent, each in progress.items()}
        self._forgotten_at = {agent: each.forgotten_at for agent, each in progress.items()}
        self._forgotten: set[str] = set()
        for agent, each in progress.items():
            self._forgotten |= each.forgotten_in(sight.spans(agent))
        self._accepted: dict[Place, bool] = {}

    def remembers(self, memory: Memory) -> bool:
        """Whether a memory lies in the spans and no event in them forgets it."""
        return self._sight.sees(memory.agent, memory.sequence) and memory.id not in self._forgotten

    def forgotten_after(self, span: Span) -> dict[str, int]:
        """Of each memory that a span's agent forgot after the span: when it first did."""
        progress = self._progress.get(span.agent)
        return {} if progress is None else progress.forgotten_after(span.last)

    async def by_vector(self, vector: list[float], candidates: int) -> dict[Place, float]:
        """Cosines of the best memories, each by the best of its windows."""
        ranking = partial(_near, vector=vector)
        return await self._everywhere(
            lambda seen, spans: self._first(seen, spans, ranking, candidates)
        )

    async def by_words(self, terms: str, candidates: int) -> dict[Place, float]:
        """BM25 scores of the best memories that have any of the terms."""
        if not terms:
            return {}
        ranking = partial(_matching, terms=terms)

        async def ranked(seen: Seen, spans: list[Span]) -> dict[Place, float]:
            if not seen.collection.cuts_lists:
                return await self._first(seen, spans, ranking, candidates)
            matches = await self._matches(seen, spans, terms)
            return await self._best(seen, sorted(matches, key=lambda each: -each[1]), candidates)

        return await self._everywhere(ranked)

    async def cosines(self, vector: list[float], places: Iterable[Place]) -> dict[Place, float]:
        """Cosines of some memories that are visible, those that have vectors."""
        best: dict[Place, float] = {}
        wanted = set(places)
        for seen in self._seen:
            for agent in seen.agents:
                own = sorted(sequence for name, sequence in wanted if name == agent)
                for first in range(0, len(own), COSINES_MAX):
                    some = own[first : first + COSINES_MAX]
                    condition = Where.by_property("agent").equal(agent) & Where.by_property(
                        "sequence"
                    ).contains_any(some)
                    for each in await _near(seen, condition, RESULTS_MAX, vector=vector):
                        best.setdefault((each.agent, each.sequence), each.score)
        return best

    async def by_id(self, id: str) -> list[Memory]:
        """The memories of an id, of the agents that are looked at."""
        found: list[Memory] = []
        for seen in self._seen:
            async with seen.collection.session.calling("looking for a memory"):
                rows = await seen.table.query.fetch_objects(
                    filters=Where.by_property("event").equal(
                        str(id).encode("utf-8", "replace").decode()
                    )
                    & Where.by_property("agent").contains_any(seen.agents),
                    limit=RESULTS_MAX,
                    return_properties=["agent", "sequence", "part"],
                )
            places = [
                (str(row.properties["agent"]), number(row.properties["sequence"]))
                for row in rows.objects
                if number(row.properties["part"]) == 0
            ]
            found += (await self._fetched(seen, places, READ, FETCHED_MAX)).values()
        return found

    async def memories(self, places: Sequence[Place]) -> dict[Place, Memory]:
        """The memories at some places, those that are whole."""
        found: dict[Place, Memory] = {}
        for seen in self._seen:
            own = [place for place in places if place[0] in seen.agents]
            found |= await self._fetched(seen, own, READ, FETCHED_MAX)
        return found

    async def _everywhere(
        self, ranked: Callable[[Seen, list[Span]], Awaitable[dict[Place, float]]]
    ) -> dict[Place, float]:
        found = await asyncio.gather(
            *[
                ranked(seen, [span for agent in seen.agents for span in self._sight.spans(agent)])
                for seen in self._seen
            ]
        )
        return {place: score for some in found for place, score in some.items()}

    def _condition(self, spans: Sequence[Span]) -> FilterReturn:
        return Where.all_of([within(spans, self._ends, self._forgotten_at), *self._passing])

    async def _first(
        self, seen: Seen, spans: Sequence[Span], ranking: Ranking, candidates: int
    ) -> dict[Place, float]:
        """The first visible memories of a ranking, `candidates` of them or all there are."""
        condition = self._condition(spans)
        limit = min(candidates, RESULTS_MAX)
        while True:
            results = await ranking(seen, condition, limit)
            found: dict[Place, float] = {}
            for each in await self._checked(seen, results):
                found.setdefault((each.agent, each.sequence), each.score)
            if len(results) < limit or len(found) >= candidates:
                return found
            if limit == RESULTS_MAX:
                break
            limit = min(limit * 4, RESULTS_MAX)
        # More than that is in the way: look at each half on its own.
        for half in halves(spans) or ():
            found |= await self._first(seen, half, ranking, candidates)
        return found

    async def _matches(self, seen: Seen, spans: Sequence[Span], terms: str) -> list[Match]:
        """All that have any of the terms in some spans: ids and scores, in no order."""
        condition = self._condition(spans)
        matches: list[Match] = []
        for limit in (MATCHES_MAX, RESULTS_MAX):
            matches = await _all_matching(seen, condition, limit, terms)
            if len(matches) < limit:
                return matches
        parts = halves(spans)
        if parts is None:
            return matches
        return [match for half in parts for match in await self._matches(seen, half, terms)]

    async def _best(
        self, seen: Seen, matches: Sequence[Match], candidates: int
    ) -> dict[Place, float]:
        """The first visible ones of a ranking, `candidates` of them or all there are."""
        found: dict[Place, float] = {}
        for first in range(0, len(matches), CHECKED_MAX):
            scores = dict(matches[first : first + CHECKED_MAX])
            async with seen.collection.session.calling("looking for memories"):
                rows = await seen.table.query.fetch_objects_by_ids(
                    list(scores), limit=len(scores), return_properties=_RANKED
                )
            results = [_result(row.properties, scores[UUID(str(row.uuid))]) for row in rows.objects]
            for each in await self._checked(seen, results):
                found[each.agent, each.sequence] = each.score
            if len(found) >= candidates:
                break
        return found

    async def _checked(self, seen: Seen, results: Sequence[Ranked]) -> list[Ranked]:
        visible = [
            each
            for each in results
            if each.id not in self._forgotten and self._sight.sees(each.agent, each.sequence)
        ]
        if self._filter is None:
            return visible
        new = {(each.agent, each.sequence) for each in visible} - self._accepted.keys()
        fetched = await self._fetched(seen, sorted(new), _CHECKED, CHECKED_MAX)
        for place in new:
            self._accepted[place] = place in fetched and self._filter.accepts(fetched[place])
        return [each for each in visible if self._accepted[each.agent, each.sequence]]

    async def _fetched(
        self, seen: Seen, places: Sequence[Place], properties: Sequence[str], at_once: int
    ) -> dict[Place, Memory]:
        found: dict[Place, Memory] = {}
        for first in range(0, len(places), at_once):
            some = [self._ids.memory(*place) for place in places[first : first + at_once]]
            async with seen.collection.session.calling("fetching memories"):
                rows = await seen.table.query.fetch_objects_by_ids(
                    some, limit=len(some), return_properties=list(properties)
                )
            for row in rows.objects:
                memory = memory_from(row.properties)
                found[memory.agent, memory.sequence] = memory
        return found


async def _near(
    seen: Seen, condition: FilterReturn, limit: int, *, vector: list[float]
) -> list[Ranked]:
    if not await seen.collection.dimensions():
        return []
    async with seen.collection.session.calling("searching by vector"):
        results = await seen.table.query.near_vector(
            vector,
            limit=limit,
            filters=condition,
            return_properties=_RANKED,
            return_metadata=MetadataQuery(distance=True),
        )
    # The distance is the dot product, negated.
    return [_result(each.properties, -(each.metadata.distance or 0.0)) for each in results.objects]


async def _matching(seen: Seen, condition: FilterReturn, limit: int, *, terms: str) -> list[Ranked]:
    async with seen.collection.session.calling("searching by words"):
        results = await seen.table.query.bm25(
            terms,
            query_properties=["terms"],
            limit=limit,
            filters=condition,
            return_properties=_RANKED,
            return_metadata=MetadataQuery(score=True),
        )
    return [_result(each.properties, each.metadata.score or 0.0) for each in results.objects]


async def _all_matching(seen: Seen, condition: FilterReturn, limit: int, terms: str) -> list[Match]:
    """As `_matching`, without properties: they would take most of the time of a long list."""
    async with seen.collection.session.calling("searching by words"):
        results = await seen.table.query.bm25(
            terms,
            query_properties=["terms"],
            limit=limit,
            filters=condition,
            return_properties=False,
            return_metadata=MetadataQuery(score=True),
        )
    return [(UUID(str(each.uuid)), each.metadata.score or 0.0) for each in results.objects]


def _result(properties: Mapping[str, object], score: float) -> Ranked:
    return Ranked(
        str(properties["agent"]),
        number(properties["sequence"]),
        str(properties["event"]),
        score,
    )
