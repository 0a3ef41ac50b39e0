"""The memory index on a real Weaviate: all that the embedded index promises, and its own part."""

import asyncio
import contextlib
import datetime as dt
import time
import uuid

import numpy as np
import pytest
from weaviate.classes.query import Filter as Where

from perdure.errors import InvalidData, NotFound, Unreachable, UnsupportedFormat
from perdure.memorizer.memory import Embedded, Filter
from perdure.memorizer.recall import memorize
from perdure.model.event import Event
from perdure.model.timeline import Span
from perdure.weaviate import index as index_module
from perdure.weaviate import progress, view
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.schema import About, Collections, collection_name, definition, tenant_name
from perdure.weaviate.session import Session
from tests.unit.test_memorizer_index import (  # noqa: F401 - the cases that all adapters share
    ALL,
    FILTERS,
    MIA,
    NOON,
    OTHER,
    TWIN,
    Letters,
    Memories,
    test_a_filter_leaves_exactly_what_fits,
    test_a_fork_sees_its_parents_memories_and_forgets_them_alone,
    test_a_hit_carries_the_memory_and_explains_its_score,
    test_a_long_text_is_found_by_any_of_its_parts,
    test_a_memory_forgotten_later_is_still_seen_as_of_before,
    test_a_memory_stored_later_is_not_seen,
    test_a_memory_without_vector_is_found_and_picked_up,
    test_adding_vectors_again_keeps_the_first,
    test_an_embedder_that_changed_under_its_name_is_told,
    test_an_identifier_is_found_by_its_words_alone,
    test_an_undone_forgetting_no_longer_hides,
    test_another_agents_memories_are_never_found,
    test_any_text_is_a_query,
    test_embedders_don_t_mix,
    test_get_finds_what_is_visible,
    test_k_bounds_the_hits_best_first,
    test_k_has_bounds,
    test_odd_data_of_foreign_events_is_passed_over,
    test_odd_parts_of_a_memory_are_left_out,
    test_only_what_lacks_a_vector_is_embedded,
    test_recalls_at_the_same_time_agree,
    test_recording_an_event_again_changes_nothing,
    test_the_index_filters_as_the_filter_says,
    test_thousands_of_undos_are_searched_exactly,
    test_vectors_that_are_none_are_refused,
    test_what_another_process_adds_is_seen,
)

GENERATION = 1


class Tables:
    """Memory events by agent, as tables of events give them."""

    def __init__(self):
        self.events = {}
        self.reads = 0

    def add(self, event):
        """Record an event; the same one again changes nothing."""
        self.events.setdefault(event.subject, {})[event.type, event.sequence] = event

    async def between(self, agent, first, last):
        """The events of an agent, newest first: an index must not rely on their order."""
        self.reads += 1
        for event in reversed(list(self.events.get(agent, {}).values())):
            if first <= event.sequence <= last:
                yield event

    async def sequence_of(self, agent):
        """The agent's head."""
        return max((sequence for _, sequence in self.events.get(agent, ())), default=0)


class Store(Memories):
    """One store of a cluster, through a connection of its own."""

    def __init__(self, session, cluster, name, tables):
        super().__init__()
        self.session, self.cluster, self.name, self.tables = session, cluster, name, tables
        self.collections = Collections(session, cluster.name, GENERATION)
        self.index = self.opened()

    def opened(self):
        """Another index of the same store, that knows nothing yet."""
        return WeaviateIndex(
            self.collections,
            self.name,
            memory_events=self.tables.between,
            sequence_of=self.tables.sequence_of,
            embedder="letters",
        )

    async def record(self, event):
        """Record an event in the tables."""
        self.tables.add(event)

    def table(self, agent=MIA, embedder="letters"):
        """The part of Weaviate where an agent's objects are."""
        name = collection_name(self.cluster.name, GENERATION, embedder)
        tenant = tenant_name(self.name, agent.partition("/")[0])
        return self.session.client.collections.use(name).with_tenant(tenant)

    async def objects(self, kind="memory", agent=MIA):
        """The properties of an agent's objects of a kind."""
        found = await self.table(agent).query.fetch_objects(
            filters=Where.by_property("kind").equal(kind) & Where.by_property("agent").equal(agent),
            limit=10_000,
        )
        return [each.properties for each in found.objects]

    async def vectors(self):
        """How many vectors the store has, of any embedder."""
        count = 0
        for name in await self.session.client.collections.list_all():
            collection = self.session.client.collections.use(name)
            for tenant in await collection.tenants.get() if self.cluster.name in name else ():
                if tenant.startswith(f"{self.name}__"):
                    found = await collection.with_tenant(tenant).query.fetch_objects(limit=10_000)
                    count += sum(int(each.properties["parts"] or 0) for each in found.objects)
        return count

    async def close(self):
        """Close the connection."""
        await self.session.close()


@pytest.fixture
async def connect(shared_cluster):
    """Opens a store of its own by a name, as often as asked, each time anew."""
    run, opened, tables = uuid.uuid4().hex[:8], [], {}

    async def connect(name="store"):
        session = await Session.connect(shared_cluster)
        name = f"{name.replace(' ', '-')}-{run}"
        opened.append(
            Store(session, shared_cluster, name, tables.setdefault(name, Tables()))
        )
        return opened[-1]

    yield connect
    for store in opened:
        await store.close()


@pytest.fixture
async def store(connect):
    """A store that nobody has used."""
    return await connect()
