"""One search in a collection: rankings of what is visible, and the memories themselves.

Invariants:
- Whatever Weaviate lets pass is checked here: it lies in the spans, no event in them forgets it,
  the filter accepts it.
- A ranking goes on until enough of it is visible or nothing is left, however much of it isn't.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

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


Ranking: TypeAlias = Callable[[FilterReturn, int], Awaitable[list[Ranked]]]
"""The best results that meet a condition, at most so many, best first."""


class View:
    """What a search sees. `seen` are the parts of tenants, each with its agents of the search."""

    def __init__(
        self,
        collection: Collection,
        ids: Ids,
        sight: Sight,
        seen: Sequence[tuple[Table, Sequence[str]]],
        progress: Mapping[str, Progress],
        *,
        filter: Filter | None = None,
    ) -> None:
        self._session = collection.session
        self._collection = collection
        self._ids = ids
        self._sight = sight
        self._filter = filter or None
        self._passing = passing(filter) if filter else []
        self._seen = seen
        self._ends = {agent: each.head for agent, each in progress.items()}
        self._forgotten_at = {agent: each.forgotten_at for agent, each in progress.items()}
        self._forgotten: set[str] = set()
        for agent, each in progress.items():
            self._forgotten |= each.forgotten_in(sight.spans(agent))
        self._accepted: dict[Place, bool] = {}

    def remembers(self, memory: Memory) -> bool:
        """Whether a memory lies in the spans and no event in them forgets it."""
        return self._sight.sees(memory.agent, memory.sequence) and memory.id not in self._forgotten

    async def by_vector(self, vector: list[float], candidates: int) -> dict[Place, float]:
        """Cosines of the best memories, each by the best of its windows."""
        if not await self._collection.dimensions():
            return {}
        return await self._ranked(lambda table: self._near(table, vector), candidates)

    async def by_words(self, terms: str, candidates: int) -> dict[Place, float]:
        """BM25 scores of the best memories that have any of the terms."""
        if not terms:
            return {}
        return await self._ranked(lambda table: self._matching(table, terms), candidates)

    async def cosines(self, vector: list[float], places: Iterable[Place]) -> dict[Place, float]:
        """Cosines of some memories that are visible, those that have vectors."""
        best: dict[Place, float] = {}
        if not await self._collection.dimensions():
            return best
        wanted = set(places)
        for table, agents in self._seen:
            for agent in agents:
                own = sorted(sequence for name, sequence in wanted if name == agent)
                # A memory has at most 64 windows.
                for first in range(0, len(own), RESULTS_MAX // 64):
                    some = own[first : first + RESULTS_MAX // 64]
                    condition = Where.by_property("agent").equal(agent) & Where.by_property(
                        "sequence"
                    ).contains_any(some)
                    for each in await self._near(table, vector)(condition, RESULTS_MAX):
                        best.setdefault((each.agent, each.sequence), each.score)
        return best

    async def by_id(self, id: str) -> list[Memory]:
        """The memories of an id, of the agents that are looked at."""
        found: list[Memory] = []
        for table, agents in self._seen:
            async with self._session.calling("looking for a memory"):
                rows = await table.query.fetch_objects(
                    filters=Where.by_property("event").equal(
                        str(id).encode("utf-8", "replace").decode()
                    )
                    & Where.by_property("agent").contains_any(list(agents)),
                    limit=RESULTS_MAX,
                    return_properties=["agent", "sequence", "part"],
                )
            places = [
                (str(row.properties["agent"]), number(row.properties["sequence"]))
                for row in rows.objects
                if number(row.properties["part"]) == 0
            ]
            found += (await self._fetched(table, places, READ, FETCHED_MAX)).values()
        return found

    async def memories(self, places: Sequence[Place]) -> dict[Place, Memory]:
        """The memories at some places, those that are whole."""
        found: dict[Place, Memory] = {}
        for table, agents in self._seen:
            own = [place for place in places if place[0] in agents]
            found |= await self._fetched(table, own, READ, FETCHED_MAX)
        return found

    async def _ranked(
        self, ranking: Callable[[Table], Ranking], candidates: int
    ) -> dict[Place, float]:
        found = await asyncio.gather(
            *[
                self._visible(
                    table,
                    [span for agent in agents for span in self._sight.spans(agent)],
                    ranking(table),
                    candidates,
                )
                for table, agents in self._seen
            ]
        )
        return {place: score for some in found for place, score in some.items()}

    async def _visible(
        self, table: Table, spans: Sequence[Span], ranking: Ranking, candidates: int
    ) -> dict[Place, float]:
        """The best visible memories in some spans, `candidates` of them or all there are."""
        condition = Where.all_of([within(spans, self._ends, self._forgotten_at), *self._passing])
        limit = candidates
        while True:
            results = await ranking(condition, limit)
            found: dict[Place, float] = {}
            for each in await self._checked(table, results):
                found.setdefault((each.agent, each.sequence), each.score)
            if len(results) < limit or len(found) >= candidates:
                return found
            if limit == RESULTS_MAX:
                break
            limit = min(limit * 4, RESULTS_MAX)
        # More than that is in the way: look at each half on its own.
        for half in halves(spans) or ():
            found |= await self._visible(table, half, ranking, candidates)
        return found

    async def _checked(self, table: Table, results: Sequence[Ranked]) -> list[Ranked]:
        seen = [
            each
            for each in results
            if each.id not in self._forgotten and self._sight.sees(each.agent, each.sequence)
        ]
        if self._filter is None:
            return seen
        new = {(each.agent, each.sequence) for each in seen} - self._accepted.keys()
        fetched = await self._fetched(table, sorted(new), _CHECKED, CHECKED_MAX)
        for place in new:
            self._accepted[place] = place in fetched and self._filter.accepts(fetched[place])
        return [each for each in seen if self._accepted[each.agent, each.sequence]]

    async def _fetched(
        self, table: Table, places: Sequence[Place], properties: Sequence[str], at_once: int
    ) -> dict[Place, Memory]:
        found: dict[Place, Memory] = {}
        for first in range(0, len(places), at_once):
            some = [self._ids.memory(*place) for place in places[first : first + at_once]]
            async with self._session.calling("fetching memories"):
                rows = await table.query.fetch_objects_by_ids(
                    some, limit=len(some), return_properties=list(properties)
                )
            for row in rows.objects:
                memory = memory_from(row.properties)
                found[memory.agent, memory.sequence] = memory
        return found

    def _near(self, table: Table, vector: list[float]) -> Ranking:
        async def ranking(condition: FilterReturn, limit: int) -> list[Ranked]:
            async with self._session.calling("searching by vector"):
                results = await table.query.near_vector(
                    vector,
                    limit=limit,
                    filters=condition,
                    return_properties=_RANKED,
                    return_metadata=MetadataQuery(distance=True),
                )
            # The distance is the dot product, less is better.
            return [
                _result(each.properties, -(each.metadata.distance or 0.0))
                for each in results.objects
            ]

        return ranking

    def _matching(self, table: Table, terms: str) -> Ranking:
        async def ranking(condition: FilterReturn, limit: int) -> list[Ranked]:
            async with self._session.calling("searching by words"):
                results = await table.query.bm25(
                    terms,
                    query_properties=["terms"],
                    limit=limit,
                    filters=condition,
                    return_properties=_RANKED,
                    return_metadata=MetadataQuery(score=True),
                )
            return [
                _result(each.properties, each.metadata.score or 0.0) for each in results.objects
            ]

        return ranking


def _result(properties: Mapping[str, object], score: float) -> Ranked:
    return Ranked(
        str(properties["agent"]),
        number(properties["sequence"]),
        str(properties["event"]),
        score,
    )
