"""The memory index on a real Weaviate: all that the embedded index promises, and its own part."""

import datetime as dt
import json
import time
import uuid
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.unit.test_memorizer_index import (  # noqa: F401 - the cases that all adapters share
    ALL,
    MIA,
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
from weaviate import exceptions
from weaviate.classes.query import Filter as Where

from perdure.errors import NotFound, PerdureError, Unreachable, UnsupportedFormat
from perdure.memorizer.memory import Embedded, Filter
from perdure.memorizer.recall import memorize
from perdure.model.event import Event
from perdure.model.sequencing import Head
from perdure.model.timeline import Span
from perdure.ports import Batch
from perdure.weaviate import index as index_module
from perdure.weaviate import view
from perdure.weaviate.index import WeaviateIndex
from perdure.weaviate.schema import About, Collections, collection_name, definition, tenant_name
from perdure.weaviate.session import Session

ROOT = Path(__file__).parents[2]
GENERATION = 1


class Tables:
    """Memory events by agent, as tables of events give them."""

    def __init__(self):
        self.events = {}
        self.reads = 0

    def add(self, event):
        """Record an event; the same one again changes nothing."""
        self.events.setdefault(event.subject, {})[event.type, event.sequence] = event

    async def by_type(self, agent, types, *, first, last):
        """The events of an agent, newest first: an index must not rely on their order."""
        self.reads += 1
        if agent not in self.events:
            raise NotFound(f"there is no agent {agent}")
        for event in reversed(list(self.events[agent].values())):
            if event.type in types and first <= event.sequence <= last:
                yield Batch([event], 1)

    async def head(self, agent):
        """The agent's head."""
        if agent not in self.events:
            raise NotFound(f"there is no agent {agent}")
        sequence = max(sequence for _, sequence in self.events[agent])
        return Head(agent, sequence, 0, b"", None, {})


class Store(Memories):
    """One store of a cluster, through a connection of its own."""

    def __init__(self, session, cluster, name, tables):
        super().__init__()
        self.session, self.cluster, self.name, self.tables = session, cluster, name, tables
        self.collections = Collections(session)
        self.index = self.opened()

    def opened(self):
        """Another index of the same store, that knows nothing yet."""
        return WeaviateIndex(
            self.collections,
            self.name,
            self.tables,
            keyspace_of=lambda agent: self.cluster.keyspace(GENERATION),
            embedder="letters",
        )

    async def record(self, event):
        """Record an event in the tables."""
        self.tables.add(event)

    def table(self, agent=MIA, embedder="letters"):
        """The part of Weaviate where an agent's objects are."""
        name = collection_name(self.cluster.keyspace(GENERATION), embedder)
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
        opened.append(Store(session, shared_cluster, name, tables.setdefault(name, Tables())))
        return opened[-1]

    yield connect
    for store in opened:
        await store.close()


@pytest.fixture
async def store(connect):
    """A store that nobody has used."""
    return await connect()


def _by_place(properties):
    return properties["sequence"], properties["part"]


async def test_replays_never_double(store):
    """Embedding everything again, by an index that knows nothing, leaves the same objects."""
    for sequence in range(1, 31):
        await store.store(sequence, f"fact {sequence} " * (100 if sequence == 7 else 1))
    await store.forget(31, f"{MIA}-5")
    assert await memorize(store.index, store.embedder, ALL) == 30
    before = sorted(await store.objects(), key=_by_place)
    forgettings = await store.objects("forgetting")
    assert len(forgettings) == 1
    pending = [
        Embedded(MIA, sequence, np.eye(26, dtype=np.float32)[:1]) for sequence in range(1, 31)
    ]
    for _ in range(2):
        again = store.opened()
        assert await memorize(again, store.embedder, ALL) == 0
        assert await again.add_vectors("letters", pending) == 0
    assert sorted(await store.objects(), key=_by_place) == before
    assert await store.objects("forgetting") == forgettings


async def test_what_was_cut_off_half_way_is_completed(store, monkeypatch):
    """A memory of which only some windows were written is not found before it is whole."""
    await store.store(1, "aaaa " * 400 + "zzzz " * 400)
    await store.store(2, "zzzz ayyy" * 2)
    insert = Session.insert

    async def cut_off(self, table, rows):
        await insert(self, table, [row for row in rows if row.properties.get("parts") is None])
        if any(row.properties.get("parts") for row in rows):
            raise Unreachable("cut off")

    monkeypatch.setattr(Session, "insert", cut_off)
    with pytest.raises(Unreachable, match="cut off"):
        await memorize(store.index, store.embedder, ALL)
    monkeypatch.undo()
    query = Letters().embed(["zzzz"])[0] / np.float32(4)
    again = store.opened()
    hits = await again.search(ALL, "zzzz", query, "letters", k=2)
    assert sorted(hit.sequence for hit in hits) == [1, 2]
    assert await memorize(again, store.embedder, ALL) == 2
    (hit, _) = await again.search(ALL, "zzzz", query, "letters", k=2)
    assert (hit.sequence, hit.scores.cosine) == (1, pytest.approx(1))


async def test_nothing_missing_costs_one_look_at_the_head(store):
    """Once an agent's memories are in, asking for what is missing reads none of its events."""
    for sequence in range(1, 11):
        await store.store(sequence, f"fact {sequence}")
    await store._record("note", 10_000, {}, MIA, None)
    await memorize(store.index, store.embedder, ALL)
    reads = store.tables.reads
    for _ in range(3):
        assert await store.index.unembedded(ALL, "letters", 10) == []
        await store.recall("fact")
    assert store.tables.reads == reads


async def test_another_process_goes_on_from_the_mark(store):
    """What a process found to be in is not looked up again by the next one."""
    for sequence in range(1, 101):
        await store.store(sequence, f"fact {sequence}")
        await store.forget(100 + sequence, f"{MIA}-{sequence}")
    await memorize(store.index, store.embedder, ALL)
    (mark,) = await store.objects("mark")
    assert mark["sequence"] == 200
    again, reads = store.opened(), store.tables.reads
    assert await again.unembedded(ALL, "letters", 10) == []
    assert store.tables.reads == reads
    query = Letters().embed(["fact"])[0] / np.float32(2)
    assert await again.search(ALL, "fact", query, "letters", k=5) == []
    hits = await again.search([Span(MIA, 1, 150)], "fact", query, "letters", k=100)
    assert {hit.sequence: hit.until for hit in hits} == {
        sequence: 100 + sequence for sequence in range(51, 101)
    }


async def test_what_is_stored_is_found_at_once(store):
    """A search sees what the tables have, whether or not anybody has embedded it."""
    query = Letters().embed(["seat"])[0] / np.float32(2)
    for sequence in range(1, 6):
        await store.store(sequence, f"seat {sequence}")
        hits = await store.index.search(ALL, "seat", query, "letters", k=10)
        assert len(hits) == sequence
        assert (await store.index.get(ALL, f"{MIA}-{sequence}")).text == f"seat {sequence}"
    await store.forget(6, f"{MIA}-3")
    hits = await store.index.search(ALL, "seat", query, "letters", k=10)
    assert {hit.sequence for hit in hits} == {1, 2, 4, 5}
    with pytest.raises(NotFound):
        await store.index.get(ALL, f"{MIA}-3")


async def test_much_that_is_forgotten_doesnt_hide_the_rest(store, monkeypatch):
    """The few that are left are found behind hundreds of forgotten ones, in a fork as well."""
    monkeypatch.setattr(index_module, "CANDIDATES_MIN", 4)
    monkeypatch.setattr(view, "RESULTS_MAX", 32)
    for sequence in range(1, 301):
        await store.store(sequence, "aisle seat" if sequence != 150 else "aisle seat somewhere")
    for sequence in range(1, 301):
        if sequence != 150:
            await store.forget(300 + sequence, f"{MIA}-{sequence}")
            await store.forget(600 + sequence, f"{MIA}-{sequence}", agent=TWIN)
    assert await store.texts("aisle seat", k=1) == ["aisle seat somewhere"]
    # The fork forgot them itself: only looking them up tells.
    spans = [Span(MIA, 1, 300), Span(TWIN, 301, 2000)]
    assert await store.texts("aisle seat", spans, k=1) == ["aisle seat somewhere"]
    assert len(await store.texts("aisle seat", [Span(MIA, 1, 300)], k=8)) == 8


async def test_a_forgetting_that_was_undone_is_as_if_it_never_was(store):
    """What was forgotten twice is seen where one forgetting is undone and the other is later."""
    await store.store(1, "aisle seat")
    await store.forget(5, f"{MIA}-1")
    await store.forget(9, f"{MIA}-1")
    await memorize(store.index, store.embedder, ALL)
    for spans, seen in (
        ([Span(MIA, 1, 4)], True),
        ([Span(MIA, 1, 5)], False),
        ([Span(MIA, 1, 4), Span(MIA, 6, 8)], True),
        ([Span(MIA, 1, 4), Span(MIA, 6, 9)], False),
        ([Span(MIA, 1, 4), Span(MIA, 10, 12)], True),
    ):
        assert (await store.texts("aisle", spans) == ["aisle seat"]) is seen


async def test_memories_of_many_agents_and_namespaces_are_entered_together(store):
    """One call fills tenants of many namespaces, and each agent finds its own and no other's."""
    agents = [f"space-{number % 20}/agent-{number}" for number in range(60)]
    agents += ["with.dots/x", "With_Case/x", "a" * 128 + "/x"]
    for agent in agents:
        await store.store(1, f"fact of {agent}", agent=agent)
    spans = [Span(agent, 1, 9) for agent in agents]
    assert await memorize(store.index, store.embedder, spans) == len(agents)
    for agent in agents[:3] + agents[-3:]:
        (hit,) = await store.recall("fact", [Span(agent, 1, 9)])
        assert hit.text == f"fact of {agent}"
    assert len(await store.recall("fact", spans, k=100)) == len(agents)


async def test_thousands_of_memories_of_an_agent_are_searched_exactly_and_fast(store):
    """10,000 memories: every hit is the best by the vectors, in a few plain queries' time."""
    random = np.random.default_rng(7)
    vectors = random.normal(size=(10_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for sequence in range(1, 10_001):
        await store.store(sequence, f"note {sequence}", topic="odd" if sequence % 2 else "even")
    started = time.monotonic()
    for first in range(0, 10_000, 500):
        batch = [
            Embedded(MIA, row + 1, vectors[row : row + 1]) for row in range(first, first + 500)
        ]
        assert await store.index.add_vectors("random", batch) == 500
    written = time.monotonic() - started
    taken, raw = [], []
    queries = random.normal(size=(15, 64)).astype(np.float32)
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        best = np.argsort(-(vectors @ query))[:10] + 1
        started = time.monotonic()
        hits = await store.index.search(ALL, "zzz", query, "random", k=10)
        taken.append(time.monotonic() - started)
        started = time.monotonic()
        await store.table(embedder="random").query.near_vector(
            query.tolist(), limit=200, filters=Where.by_property("agent").equal(MIA)
        )
        raw.append(time.monotonic() - started)
        assert [hit.sequence for hit in hits] == best.tolist()
        hits = await store.index.search([Span(MIA, 101, 5000)], "zzz", query, "random", k=10)
        best = np.argsort(-(vectors[100:5000] @ query))[:10] + 101
        assert [hit.sequence for hit in hits] == best.tolist()
    # A search by vector and one by words, and what each hit is made of.
    assert sorted(taken)[5] < 10 * sorted(raw)[5]
    assert written < 100


@pytest.mark.parametrize("cuts_lists", [True, False])
async def test_the_best_match_by_words_is_found_among_thousands(store, monkeypatch, cuts_lists):
    """However many have a word of the query, the best by BM25 are found, whatever the server."""
    monkeypatch.setattr(view, "MATCHES_MAX", 100)
    monkeypatch.setattr(view, "RESULTS_MAX", 1_000)
    collection = await store.collections.open(store.cluster.keyspace(GENERATION), "letters")
    if collection.cuts_lists and not cuts_lists:
        return  # A server whose lists must not be trusted, and are not.
    collection.cuts_lists = cuts_lists
    random = np.random.default_rng(3)
    texts = [
        " ".join(["note", *(f"w{int(word)}" for word in random.pareto(0.6, 8) if word < 3000)])
        for _ in range(3_000)
    ]
    for sequence, text in enumerate(texts, 1):
        await store.store(sequence, f"{text} id{sequence}")
    query = np.zeros(26, np.float32)
    for words in (["note", "id2777"], ["w1", "w2"], ["w3", "id7", "w90"], ["note"]):
        hits = await store.index.search(ALL, " ".join(words), query, "letters", k=20)
        scores = _bm25(
            [f"{text} id{number}".split() for number, text in enumerate(texts, 1)], words
        )
        best = np.sort(scores)[::-1][:20]
        found = [hit.scores.text for hit in hits]
        assert found == sorted(found, reverse=True)
        # The server knows the mean length of texts only roughly, so close ones may be swapped.
        assert all(
            scores[hit.sequence - 1] > 0.8 * wanted for hit, wanted in zip(hits, best, strict=True)
        )


def _bm25(documents, words):
    """The score of each document, by the formula as it is published (k1 1.2, b 0.75)."""
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for word in words:
        counts = np.array([document.count(word) for document in documents])
        lengths = np.array([len(document) for document in documents])
        having = (counts > 0).sum()
        weight = np.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        scores += weight * counts * 2.2 / (counts + 1.2 * (0.25 + 0.75 * lengths / mean))
    return scores


async def test_the_words_are_those_of_the_embedded_store(store):
    """Stems, folded accents and other scripts match as in the embedded store."""
    for sequence, text in enumerate(
        ["She prefers aisle seats", "Zoë ordered coffees", "座席 は 窓側", "booked HAT-136 twice"],
        1,
    ):
        await store.store(sequence, text)
    await memorize(store.index, store.embedder, ALL)
    zero = np.zeros(26, np.float32)
    for query, sequence in (
        ("preferred seat", 1), ("zoe", 2), ("coffee", 2), ("窓側", 3), ("HAT-136", 4),
        ("booking", 4),
    ):  # fmt: skip
        hits = await store.index.search(ALL, query, zero, "letters", k=4)
        assert hits[0].sequence == sequence, query
        assert hits[0].scores.text == 1


async def test_odd_sizes_are_stored_and_found(store):
    """A megabyte of text, a word without end, a thousand fields and far times are no trouble."""
    fields = {f"field-{number}": number for number in range(1000)}
    far = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    await store.store(1, "word " * 190_000 + "needle", metadata=fields)
    await store.store(2, "x" * 900_000)
    await store.store(3, "seat", source="s" * 900_000, context={"k": "v" * 9_000})
    late = Event(
        id="late", type="memory.stored", subject=MIA, source="/", sequence=4, time=far,
        writer="w", writer_sequence=4, data={"text": "far seat"},
    )  # fmt: skip
    await store.record(late)
    [hit] = [hit for hit in await store.recall("needle") if hit.scores.text]
    assert (hit.sequence, hit.metadata) == (1, fields)
    for filter, found in (
        (Filter(where={"field-999": 999}), {1}),
        (Filter(where={"field-999": 998}), set()),
        (Filter(source="s" * 900_000), {3}),
        (Filter(source="s" * 899_999), set()),
        (Filter(where={"context.k": "v" * 9_000}), {3}),
        (Filter(since=far), {4}),
        (Filter(until=far), {1, 2, 3}),
        (Filter(since=far - dt.timedelta(microseconds=1), until=far), set()),
    ):
        assert {hit.sequence for hit in await store.recall("seat", filter=filter)} == found
    assert (await store.index.get(ALL, "late")).time == far


async def test_a_collection_of_a_newer_format_is_left_alone(store):
    """What a newer perdure made is not misread: the error says to install it."""
    keyspace = store.cluster.keyspace(9)
    name = collection_name(keyspace, "letters")
    made = definition(name, About(keyspace, "letters", format=2))
    await store.session.client.collections.create_from_dict(made)
    with pytest.raises(UnsupportedFormat, match="format 2"):
        await Collections(store.session).open(keyspace, "letters")
    await store.session.client.collections.delete(name)


async def test_dropping_a_generation_leaves_the_others(store):
    """The collections beside one keyspace go, those beside another stay."""
    collections = Collections(store.session)
    for generation in (1, 7, 77):
        await collections.open(store.cluster.keyspace(generation), "letters")
    dropped = await collections.drop(store.cluster.keyspace(7))
    assert dropped == [collection_name(store.cluster.keyspace(7), "letters")]
    left = set(await store.session.client.collections.list_all())
    for generation in (1, 77):
        assert collection_name(store.cluster.keyspace(generation), "letters") in left
    await collections.drop(store.cluster.keyspace(77))


async def test_a_server_that_is_away_is_told(shared_cluster):
    """Where nobody listens the error says so, and that trying again can help."""
    away = msgspec.structs.replace(shared_cluster, weaviate="127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"Weaviate at 127\.0\.0\.1:9") as raised:
        await Session.connect(away)
    assert raised.value.retriable


def test_every_error_of_the_client_is_ours():
    """No error class of Weaviate's client leaves as it is."""
    session = Session(None, "somewhere")
    for name, kind in vars(exceptions).items():
        if isinstance(kind, type) and issubclass(kind, exceptions.WeaviateBaseError):
            error = kind.__new__(kind)
            Exception.__init__(error, "what it says")
            assert isinstance(session._translated("asking", error), PerdureError), name


def test_the_schema_is_the_published_one():
    """`schemas/weaviate.json` is what a collection is made from."""
    published = json.loads((ROOT / "schemas" / "weaviate.json").read_text())
    keyspace, embedder = "perdure_g1", "all-MiniLM-L6-v2"
    made = definition(collection_name(keyspace, embedder), About(keyspace, embedder))
    assert published == made
