"""What is derived from events, made anew in a generation's tables: saved states, and memory.

Nothing here is ever needed: a state that isn't saved is folded, a memory without a vector is found
by its words and embedded when it is recalled. Doing it again does no harm.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from perdure.cassandra.census import all_agents
from perdure.checkpointer import policy
from perdure.errors import NotFound, PerdureError, Unavailable
from perdure.memorizer.choice import chosen_embedder
from perdure.memorizer.recall import memorize
from perdure.model.event import NUMBER_MAX
from perdure.model.projection import DEFAULT
from perdure.model.timeline import Span
from perdure.model.upcast import Upcasters
from perdure.projector.restore import restore, save
from perdure.replay.engines import Engines, Tables
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.objects import TYPES
from perdure.weaviate.schema import Collections
from perdure.weaviate.session import Session

AGENTS_AT_ONCE: Final = 8
"""Agents whose states are folded, or whose memories are looked for, at the same time."""

EMBEDDED_AT_ONCE: Final = 64
"""Agents whose memories are embedded together."""


async def save_states(
    engines: Engines,
    tables: Tables,
    keyspace: str,
    upcasters: Upcasters,
    done: Callable[[int], None],
) -> int:
    """Save the state of each agent for which that is worth it; of how many.

    Raises:
        Unavailable: the tables don't answer.
    """
    gate = asyncio.Semaphore(AGENTS_AT_ONCE)
    saved = looked = 0

    async def look(store: str, agent: str) -> None:
        nonlocal saved, looked
        async with gate:
            try:
                saved += await engines.patiently(
                    "the tables", lambda: _save_state(tables, store, agent, upcasters)
                )
            except NotFound:
                pass  # listed, and nothing recorded yet
            except PerdureError as error:
                if error.retriable:
                    raise
                engines.tell(f"the state of {agent} is not saved: {error}")
        looked += 1
        done(looked)

    async for page in all_agents(engines.session, keyspace):
        await asyncio.gather(*(look(store, agent) for store, agent in page))
    return saved


async def _save_state(tables: Tables, store: str, agent: str, upcasters: Upcasters) -> int:
    events, states = tables.events(store), tables.states(store)
    lineage = await events.lineage(agent)
    newest = lineage[0]
    restored = await restore(
        events, states, upcasters, projection=DEFAULT, lineage=lineage, at=newest.sequence
    )
    # What is before a fork is its parent's to save.
    worth = policy.due(restored.folded, restored.saved, at_rest=True)
    if not worth or newest.forked_at >= newest.sequence:
        return 0
    await save(
        states,
        upcasters,
        projection=DEFAULT,
        agent=agent,
        sequence=restored.sequence,
        state=restored.state,
    )
    return 1


async def embed_memories(
    engines: Engines, tables: Tables, keyspace: str, done: Callable[[int], None]
) -> int:
    """Have all memories in the collection beside a generation's tables; how many were embedded.

    Raises:
        Unavailable: the tables or Weaviate don't answer.
    """
    embedder = chosen_embedder(engines.cluster.embedder)
    session = await Session.connect(engines.cluster)
    try:
        collections = Collections(session)
        embedded = looked = 0
        async for page in all_agents(engines.session, keyspace):
            by_store: dict[str, list[str]] = {}
            for store, agent in await _remembering(tables, page):
                by_store.setdefault(store, []).append(agent)
            for store, agents in by_store.items():
                index = WeaviateIndex(
                    collections,
                    store,
                    tables.events(store),
                    keyspace_of=lambda _: keyspace,
                    embedder=embedder.name,
                )
                for first in range(0, len(agents), EMBEDDED_AT_ONCE):
                    some = agents[first : first + EMBEDDED_AT_ONCE]
                    spans = [Span(agent, 1, NUMBER_MAX) for agent in some]
                    embedded += await engines.patiently(
                        "the memory index",
                        lambda index=index, spans=spans: memorize(index, embedder, spans),  # type: ignore[misc]
                    )
            looked += len(page)
            done(looked)
    finally:
        await session.close()
    return embedded


async def _remembering(tables: Tables, page: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of these agents, those that ever stored or forgot something."""
    gate = asyncio.Semaphore(AGENTS_AT_ONCE)

    async def remembers(store: str, agent: str) -> bool:
        async with gate:
            try:
                async for _ in tables.events(store).by_type(agent, TYPES):
                    return True
            except Unavailable:
                raise
            except PerdureError:
                return False  # nothing recorded, or damaged: the comparison tells
            return False

    found = await asyncio.gather(*(remembers(store, agent) for store, agent in page))
    return [each for each, yes in zip(page, found, strict=True) if yes]


async def drop_memories(engines: Engines, keyspace: str) -> list[str]:
    """Drop the collections beside a generation's tables; their names. Raises Unavailable."""
    session = await Session.connect(engines.cluster)
    try:
        return await Collections(session).drop(keyspace)
    finally:
        await session.close()


async def counted(pages: AsyncIterator[list[tuple[str, str]]]) -> int:
    """How many agents there are."""
    return sum([len(page) async for page in pages])
