"""How much of an agent's memory events a collection holds, and what it lacks.

An agent's *mark* is an object beside its memories: up to its sequence, every memory is in with its
vectors, and every forgetting. It is written rarely and may lag: what follows it is looked up again
after a restart. In this process, everything up to `through` is known to be in.

Invariants:
- The mark is written after what it promises, and promises nothing that isn't there.
- Whatever isn't there at the agent's head, as read before looking, is found.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple

from weaviate.classes.query import Filter as Where
from weaviate.classes.query import Sort

from perdure.memorizer.memory import Memory
from perdure.model.timeline import Span
from perdure.weaviate.memory_events import MemoryEvents
from perdure.weaviate.objects import (
    FORGETTING,
    Forgetting,
    Ids,
    forgetting_row,
    mark_row,
    number,
)
from perdure.weaviate.schema import Collection
from perdure.weaviate.session import Table

MARK_EVENTS: Final = 64
"""After so many memory events the mark is moved on,"""

MARK_SEQUENCES: Final = 4_096
"""or after so many events of any type."""

LOOKED_UP_MAX: Final = 512
"""How many objects are looked up at once."""

PAGE: Final = 1_000
AT_ONCE: Final = 8


class Lacking(NamedTuple):
    """A memory without vectors; `there`: it can be found by its words already."""

    memory: Memory
    there: bool


class Progress:
    """What is known of one agent in one collection. One caller at a time: hold `lock`."""

    def __init__(
        self, collection: Collection, tenant: str, agent: str, ids: Ids, events: MemoryEvents
    ) -> None:
        self.lock = asyncio.Lock()
        self.head = 0
        self.through = 0
        self._collection = collection
        self._tenant = tenant
        self._agent = agent
        self._ids = ids
        self._events = events
        self._loaded = False
        self._marked = 0
        self._since_mark = 0
        # Forgettings of the agent, in order; up to `_forgets_to` none is missing.
        self._forgettings: list[Forgetting] = []
        self._first_forgotten: dict[str, int] = {}
        self._forgets_to = 0

    @property
    def forgotten_at(self) -> Sequence[int]:
        """The sequences of the agent's forgettings, in order."""
        return [each.sequence for each in self._forgettings]

    def forgotten_in(self, spans: Sequence[Span]) -> set[str]:
        """The ids of the memories that the agent forgot in some spans of its own."""
        found: set[str] = set()
        for span in spans:
            low = bisect_right(self._forgettings, (span.first - 1, "\U0010ffff"))
            high = bisect_right(self._forgettings, (span.last, "\U0010ffff"))
            found.update(each.memory for each in self._forgettings[low:high])
        return found

    def forgotten_after(self, sequence: int) -> dict[str, int]:
        """Of each memory that the agent forgot later than `sequence`: when it first did."""
        low = bisect_right(self._forgettings, (sequence, "\U0010ffff"))
        found: dict[str, int] = {}
        for each in self._forgettings[low:]:
            found.setdefault(each.memory, each.sequence)
        return found

    def first_forgotten(self, memory: str) -> int | None:
        """The first sequence at which the agent forgot a memory."""
        return self._first_forgotten.get(memory)

    async def lacking(self, head: int, spans: Sequence[Span]) -> AsyncGenerator[Lacking, None]:
        """The memories in the agent's own `spans`, up to its head, that have no vectors, in order.

        On the way forgettings are entered. Whoever stops early finds the rest by asking again.
        """
        await self._load()
        self.head = max(self.head, head)
        if self.through >= head:
            return
        last = max((span.last for span in spans), default=0)
        first, whole = self.through + 1, True
        while first <= head:
            if first > last and not whole:
                # Nothing is asked for here, and nothing can be promised: only forgettings count.
                first = max(first, self._forgets_to + 1)
                if first > head:
                    return
            stop, events = await self._events.window(self._agent, first, head)
            await self._enter([each for each in events if isinstance(each, Forgetting)], stop)
            asked = whole or first <= last
            first = stop + 1
            if not asked:
                continue
            stored = [each for each in events if isinstance(each, Memory)]
            parts = await self._parts(stored)
            missing = [memory for memory in stored if not parts.get(memory.sequence)]
            if whole:
                through = missing[0].sequence - 1 if missing else stop
                self._since_mark += sum(each.sequence <= through for each in events)
                self.through = max(self.through, through)
                whole = not missing
                await self._mark()
            for memory in missing:
                if any(span.first <= memory.sequence <= span.last for span in spans):
                    yield Lacking(memory, memory.sequence in parts)

    async def _load(self) -> None:
        """Where the mark is, and what was forgotten up to it; once."""
        if self._loaded:
            return
        table = await self._collection.tenant(self._tenant)
        if table is not None:
            async with self._collection.session.calling("reading a mark"):
                mark = await table.query.fetch_object_by_id(self._ids.mark(self._agent))
            if mark is not None:
                through = number(mark.properties["sequence"])
                self._remember(await self._forgotten(table, through), through)
                self.through = self._marked = through
        self._loaded = True

    async def _forgotten(self, table: Table, through: int) -> list[Forgetting]:
        found: list[Forgetting] = []
        own = Where.by_property("agent").equal(self._agent) & Where.by_property("kind").equal(
            FORGETTING
        )
        after = 0
        while True:
            sequence = Where.by_property("sequence")
            async with self._collection.session.calling("reading what is forgotten"):
                page = await table.query.fetch_objects(
                    filters=own & sequence.greater_than(after) & sequence.less_or_equal(through),
                    sort=Sort.by_property("sequence"),
                    limit=PAGE,
                    return_properties=["sequence", "forgets"],
                )
            rows = [row.properties for row in page.objects]
            found += [Forgetting(number(row["sequence"]), str(row["forgets"])) for row in rows]
            if len(rows) < PAGE:
                return found
            after = found[-1].sequence

    async def _parts(self, stored: Sequence[Memory]) -> dict[int, int]:
        """Of each memory that is there: how many vectors it has."""
        table = await self._collection.tenant(self._tenant)
        if table is None:
            return {}
        return await vector_counts(
            self._collection, table, self._ids, [(each.agent, each.sequence) for each in stored]
        )

    async def _enter(self, forgettings: Sequence[Forgetting], stop: int) -> None:
        """Write forgettings that aren't known yet; everything up to `stop` is among them."""
        new = [each for each in forgettings if each.sequence > self._forgets_to]
        if new:
            table = await self._collection.made_tenant(self._tenant)
            rows = [forgetting_row(self._ids, self._agent, each) for each in new]
            await self._collection.session.insert(table, rows)
            first = [each for each in new if each.memory not in self._first_forgotten]
            await self._note_until(table, {each.memory: each.sequence for each in first[::-1]})
        self._remember(new, stop)

    def _remember(self, new: Sequence[Forgetting], stop: int) -> None:
        if stop <= self._forgets_to:
            return
        self._forgettings += new
        for each in new:
            self._first_forgotten.setdefault(each.memory, each.sequence)
        self._forgets_to = stop

    async def _note_until(self, table: Table, until: dict[str, int]) -> None:
        """Note on memories that are there when they were first forgotten.

        Only so that searches pass them over sooner: that they are forgotten is looked up.
        """
        session = self._collection.session
        ids = list(until)
        for start in range(0, len(ids), PAGE):
            async with session.calling("looking for what is forgotten"):
                found = await table.query.fetch_objects(
                    filters=Where.by_property("agent").equal(self._agent)
                    & Where.by_property("event").contains_any(ids[start : start + PAGE]),
                    limit=10 * PAGE,
                    return_properties=["event"],
                )
            for first in range(0, len(found.objects), AT_ONCE):
                async with session.calling("noting what is forgotten"):
                    await asyncio.gather(
                        *[
                            table.data.update(
                                uuid=row.uuid,
                                properties={"until": until[str(row.properties["event"])]},
                            )
                            for row in found.objects[first : first + AT_ONCE]
                        ]
                    )

    async def _mark(self) -> None:
        if (
            self._since_mark < MARK_EVENTS and self.through - self._marked < MARK_SEQUENCES
        ) or self._marked == self.through:
            return
        table = await self._collection.tenant(self._tenant)
        if table is None:
            return  # No agent of the namespace remembers anything.
        await self._collection.session.insert(
            table, [mark_row(self._ids, self._agent, self.through)]
        )
        self._marked, self._since_mark = self.through, 0


async def vector_counts(
    collection: Collection, table: Table, ids: Ids, places: Sequence[tuple[str, int]]
) -> dict[int, int]:
    """How many vectors the memories of one agent have, by sequence; only those that are there."""
    counts: dict[int, int] = {}
    for first in range(0, len(places), LOOKED_UP_MAX):
        some = [ids.memory(*place) for place in places[first : first + LOOKED_UP_MAX]]
        async with collection.session.calling("looking for memories"):
            found = await table.query.fetch_objects_by_ids(
                some, limit=len(some), return_properties=["sequence", "parts"]
            )
        for row in found.objects:
            counts[number(row.properties["sequence"])] = number(row.properties["parts"])
    return counts
