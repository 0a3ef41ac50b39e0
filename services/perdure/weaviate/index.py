"""The memory index of one store of a cluster, in Weaviate.

Weaviate holds what events say, with vectors and words; the tables of events are the truth, and
what the index lacks is found by comparing with them. A memory enters with its vectors, by the
memorizer or by whoever recalls it first.

Invariants:
- What a search sees is decided by its spans and the events in them, never by how far the memorizer
  is: before searching, what is missing up to the spans' ends is entered, to be found by its words.
- A search is exact: Weaviate's ranking is asked for more until enough of it is visible.
- Writing anything twice, by any process, leaves the same objects.

Objects are described in `schema`; `progress` finds what an agent lacks, `view` ranks what is there.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from perdure.errors import InvalidData, NotFound
from perdure.memorizer.fusion import fuse
from perdure.memorizer.memory import Embedded, Filter, Hit, Memory, checked_k
from perdure.model.timeline import Span
from perdure.weaviate.memory_events import EventsByType, MemoryEvents
from perdure.weaviate.objects import NEVER, Ids, memory_rows
from perdure.weaviate.progress import Lacking, Progress, vector_counts
from perdure.weaviate.schema import Collection, Collections, tenant_name
from perdure.weaviate.session import Row
from perdure.weaviate.sight import Place, Sight
from perdure.weaviate.terms import searched_terms
from perdure.weaviate.view import Seen, View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CANDIDATES_MIN: Final = 200
"""The least number of memories that each ranking brings into the fusion."""

AGENTS_KNOWN_MAX: Final = 4_096
"""How many agents' progress is remembered."""

AGENTS_AT_ONCE: Final = 16
"""How many agents are looked at concurrently."""

ROWS_AT_ONCE: Final = 256
"""How many memories without vectors are entered at a time."""

T = TypeVar("T")


class WeaviateIndex:
    """`MemoryIndex` of one store. Use from one event loop.

    `events` are the store's tables of events, and `keyspace_of` gives the keyspace that an agent's
    are in. `embedder` names the collection that `get` looks into, which needs no vectors: the one
    that the memorizer fills.
    """

    def __init__(
        self,
        collections: Collections,
        store: str,
        events: EventsByType,
        *,
        keyspace_of: Callable[[str], str],
        embedder: str,
    ) -> None:
        self._collections = collections
        self._session = collections.session
        self._store = store
        self._events = MemoryEvents(events, keyspace_of)
        self._keyspace_of = keyspace_of
        self._embedder = embedder
        self._progress: OrderedDict[tuple[str, str], Progress] = OrderedDict()

    async def unembedded(self, spans: Sequence[Span], embedder: str, limit: int) -> list[Memory]:
        """Up to `limit` memories in `spans` without a vector of `embedder`, forgotten ones too.

        As the tables have them now. Where nothing is missing this takes one point read an agent.
        """
        sight = Sight(spans)
        found: list[Memory] = []
        for first in range(0, len(sight.agents), AGENTS_AT_ONCE):
            agents = sight.agents[first : first + AGENTS_AT_ONCE]
            lacking = await asyncio.gather(
                *[self._lacking(embedder, sight, each, limit - len(found)) for each in agents]
            )
            found += [each.memory for some in lacking for each in some]
            if len(found) >= limit:
                break
        return found[:limit]

    async def add_vectors(self, embedder: str, embedded: Sequence[Embedded]) -> int:
        """Store vectors; how many memories got theirs by this call.

        Idempotent: a memory that has vectors keeps them, one that isn't there is passed over. All
        vectors of a memory count, or none; after an error some memories may have theirs.

        Raises:
            InvalidData: a vector is not finite or not of unit length, or of other dimensions than
                this embedder's others.
            Unreachable: Weaviate or the tables don't answer.
        """
        if not embedded:
            return 0
        dimensions = _checked_vectors(embedder, embedded)
        vectors = {(each.agent, each.sequence): each.vectors for each in embedded}
        added = 0
        for collection, tenants in (await self._parts(embedder, [a for a, _ in vectors])).items():
            await collection.check_dimensions(dimensions)
            missing = await _some_at_once(
                [
                    partial(self._missing, collection, tenant, [p for p in vectors if p[0] in own])
                    for tenant, own in tenants.items()
                ]
            )
            found = {t: some for t, some in zip(tenants, missing, strict=True) if some}
            if found:
                await collection.check_dimensions(dimensions, first=True)
                await collection.make_tenants(found)
            await _some_at_once(
                [partial(self._write, collection, *each, vectors) for each in found.items()]
            )
            added += sum(map(len, found.values()))
        return added

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

        Raises:
            InvalidData: `k` is not from 1 to 1000, or the vector has other dimensions than stored.
            Unreachable: Weaviate or the tables don't answer.
        """
        k = checked_k(k)
        sight = Sight(spans)
        if not sight.agents:
            return []
        vector: list[float] = query_vector.reshape(-1).tolist()
        parts = await self._parts(embedder, sight.agents)
        for collection in parts:
            await collection.check_dimensions(len(vector))
        await self._enter(embedder, sight)
        view = await self._view(embedder, parts, sight, filter)
        terms = await asyncio.to_thread(searched_terms, query_text)
        candidates = max(CANDIDATES_MIN, 4 * k)
        cosines, texts = await asyncio.gather(
            view.by_vector(vector, candidates), view.by_words(terms, candidates)
        )
        cosines |= await view.cosines(vector, [place for place in texts if place not in cosines])
        places = {sight.place(*place): place for place in cosines | texts}
        ranked = fuse(
            {sight.place(*place): cosine for place, cosine in cosines.items()},
            {sight.place(*place): score for place, score in texts.items()},
            len(places),
        )
        until = view.forgotten_after(spans[-1])
        hits: list[Hit] = []
        # More than once only where a write of several parts was cut off before its last one.
        for first in range(0, len(ranked), k):
            some = [(places[key], score, each) for key, score, each in ranked[first : first + k]]
            memories = await view.memories([place for place, _, _ in some])
            for place, score, scores in some:
                if (memory := memories.get(place)) is not None:
                    fields = msgspec.structs.asdict(memory) | {"until": until.get(memory.id)}
                    hits.append(Hit(**fields, score=score, scores=scores))
            if len(hits) >= k:
                break
        return hits[:k]

    async def get(self, spans: Sequence[Span], id: str) -> Memory:
        """The visible memory of this id.

        Raises:
            NotFound: there is none in `spans`, or it is forgotten there.
            Unreachable: Weaviate or the tables don't answer.
        """
        sight = Sight(spans)
        lacking = await asyncio.gather(
            *[self._lacking(self._embedder, sight, agent) for agent in sight.agents]
        )
        # Not entered for this: without vectors they would only be looked up again.
        found = [each.memory for some in lacking for each in some if each.memory.id == id]
        parts = await self._parts(self._embedder, sight.agents)
        view = await self._view(self._embedder, parts, sight)
        found = [each for each in [*found, *await view.by_id(id)] if view.remembers(each)]
        if not found:
            raise NotFound(
                f"there is no memory {str(id)[:60]!r}, or it is forgotten",
                hint="recall() gives the ids of the memories there are",
            )
        latest = max(found, key=lambda each: sight.place(each.agent, each.sequence))
        until = view.forgotten_after(spans[-1])
        return msgspec.structs.replace(latest, until=until.get(latest.id))

    def _tenant(self, agent: str) -> str:
        return tenant_name(self._store, agent.partition("/")[0])

    async def _parts(
        self, embedder: str, agents: Iterable[str]
    ) -> dict[Collection, dict[str, list[str]]]:
        """Where agents are: collection, tenant, agents."""
        parts: dict[Collection, dict[str, list[str]]] = {}
        for agent in dict.fromkeys(agents):
            collection = await self._collections.open(self._keyspace_of(agent), embedder)
            parts.setdefault(collection, {}).setdefault(self._tenant(agent), []).append(agent)
        return parts

    def _ids(self, embedder: str) -> Ids:
        return Ids(self._store, embedder)

    def _progress_of(self, collection: Collection, agent: str) -> Progress:
        key = collection.name, agent
        if key not in self._progress:
            self._progress[key] = Progress(
                collection,
                self._tenant(agent),
                agent,
                self._ids(collection.embedder),
                self._events,
            )
        self._progress.move_to_end(key)
        while len(self._progress) > AGENTS_KNOWN_MAX:
            self._progress.popitem(last=False)
        return self._progress[key]

    async def _lacking(
        self, embedder: str, sight: Sight, agent: str, limit: int | None = None
    ) -> list[Lacking]:
        """What an agent lacks in its spans; forgettings up to its head are known then."""
        head = await self._events.head(agent)
        collection = await self._collections.open(self._keyspace_of(agent), embedder)
        progress = self._progress_of(collection, agent)
        found: list[Lacking] = []
        async with (
            progress.lock,
            contextlib.aclosing(progress.lacking(head, sight.spans(agent))) as lacking,
        ):
            async for each in lacking:
                found.append(each)
                if len(found) == limit:
                    break
        return found

    async def _enter(self, embedder: str, sight: Sight) -> None:
        """Enter what the tables have and the collections lack, to be found by its words."""
        for first in range(0, len(sight.agents), AGENTS_AT_ONCE):
            agents = sight.agents[first : first + AGENTS_AT_ONCE]
            lacking = await asyncio.gather(
                *[self._lacking(embedder, sight, agent) for agent in agents]
            )
            for agent, some in zip(agents, lacking, strict=True):
                missing = [each.memory for each in some if not each.there]
                collection = await self._collections.open(self._keyspace_of(agent), embedder)
                for start in range(0, len(missing), ROWS_AT_ONCE):
                    memories = missing[start : start + ROWS_AT_ONCE]
                    await self._write(collection, self._tenant(agent), memories, {})

    async def _write(
        self,
        collection: Collection,
        tenant: str,
        memories: Sequence[Memory],
        vectors: Mapping[Place, "NDArray[np.float32]"],
    ) -> None:
        until = [
            self._progress_of(collection, each.agent).first_forgotten(each.id) or NEVER
            for each in memories
        ]
        rows = await asyncio.to_thread(
            _rows, self._ids(collection.embedder), memories, vectors, until
        )
        table = await collection.made_tenant(tenant)
        # A memory's part 0, which says that it is whole, comes after its other parts.
        for is_last in (False, True):
            await self._session.insert(
                table, [row for row in rows if ("parts" in (row.properties or {})) is is_last]
            )

    async def _view(
        self,
        embedder: str,
        parts: Mapping[Collection, Mapping[str, list[str]]],
        sight: Sight,
        filter: Filter | None = None,
    ) -> View:
        seen: list[Seen] = []
        progress: dict[str, Progress] = {}
        for collection, tenants in parts.items():
            for tenant, agents in tenants.items():
                progress |= {agent: self._progress_of(collection, agent) for agent in agents}
                if (table := await collection.tenant(tenant)) is not None:
                    seen.append(Seen(collection, table, agents))
        return View(self._ids(embedder), sight, seen, progress, filter=filter)

    async def _missing(
        self, collection: Collection, tenant: str, places: Sequence[Place]
    ) -> list[Memory]:
        """The memories at some places of a tenant that have no vectors; only those there are."""
        table = await collection.tenant(tenant)
        by_agent: dict[str, list[Place]] = {}
        for place in places:
            by_agent.setdefault(place[0], []).append(place)
        missing: list[Memory] = []
        for own in by_agent.values():
            counts: dict[int, int] = {}
            if table is not None:
                ids = self._ids(collection.embedder)
                counts = await vector_counts(collection, table, ids, own)
            for place in own:
                if not counts.get(place[1]):
                    memory = await self._events.memory(*place)
                    missing += [] if memory is None else [memory]
        return missing


async def _some_at_once(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """What calls give, in their order, `AGENTS_AT_ONCE` of them made at a time."""
    given: list[T] = []
    for first in range(0, len(calls), AGENTS_AT_ONCE):
        given += await asyncio.gather(*[call() for call in calls[first : first + AGENTS_AT_ONCE]])
    return given


def _rows(
    ids: Ids,
    memories: Sequence[Memory],
    vectors: Mapping[Place, "NDArray[np.float32]"],
    until: Sequence[int],
) -> list[Row]:
    return [
        row
        for memory, forgotten in zip(memories, until, strict=True)
        for row in memory_rows(ids, memory, vectors.get((memory.agent, memory.sequence)), forgotten)
    ]


def _checked_vectors(embedder: str, embedded: Sequence[Embedded]) -> int:
    """The dimensions of vectors that are as they have to be."""
    import numpy as np

    dimensions = int(embedded[0].vectors.shape[-1])
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
    return dimensions
