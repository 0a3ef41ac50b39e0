"""The memory index on the store's file: what is visible, what passes, what survives."""

import asyncio
import datetime as dt
import itertools
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.embedded.database import Database
from perdure.embedded.memory_index import (
    SCHEMA,
    SqliteMemoryIndex,
    record_forgetting,
    record_memory,
)
from perdure.errors import Corrupt, InvalidData, NotFound
from perdure.memorizer.memory import Embedded, Filter
from perdure.memorizer.recall import memorize, recall
from perdure.model.event import Event
from perdure.model.timeline import Span

MIA, TWIN, OTHER = "airline/mia", "airline/twin", "airline/other"
AGENTS = {MIA: 1, TWIN: 2, OTHER: 3}
NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
ALL = [Span(MIA, 1, 1_000_000)]


class Letters:
    """An embedder for tests: how often each letter of the alphabet occurs."""

    def __init__(self, name="letters", dimensions=26):
        self.name, self.dimensions, self.texts = name, dimensions, []

    def embed(self, texts):
        """Counts of letters."""
        self.texts += texts
        counts = [
            [text.lower().count(letter) for letter in string.ascii_lowercase[: self.dimensions]]
            for text in texts
        ]
        return np.array(counts, np.float32).reshape(len(texts), self.dimensions)


def _migration(connection):
    connection.execute("CREATE TABLE agents (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    connection.executemany("INSERT INTO agents (name, id) VALUES (?, ?)", AGENTS.items())
    for statement in SCHEMA:
        connection.execute(statement)


class Memories:
    """A store with its index, and the two events that the index knows; each adapter has its own."""

    index = None

    def __init__(self):
        self.embedder = Letters()

    async def record(self, event):
        """Record an event, as the store does."""
        raise NotImplementedError

    async def vectors(self):
        """How many vectors there are."""
        raise NotImplementedError

    async def close(self):
        """Give back what it holds."""
        raise NotImplementedError

    async def _record(self, kind, sequence, data, agent, id_):
        await self.record(
            Event(
                id=id_ or f"{agent}-{sequence}",
                type=kind,
                subject=agent,
                source=f"/{agent}",
                sequence=sequence,
                time=NOON + dt.timedelta(minutes=sequence),
                writer="w",
                writer_sequence=sequence,
                data=data,
            )
        )

    async def store(self, sequence, text, *, agent=MIA, id_=None, **more):
        """Record a `memory.stored` event."""
        await self._record("memory.stored", sequence, {"text": text, **more}, agent, id_)

    async def data(self, sequence, data):
        """Record any data under both types."""
        await self._record("memory.stored", sequence, data, MIA, None)
        await self._record("memory.forgotten", sequence, data, MIA, None)

    async def forget(self, sequence, id_, *, agent=MIA):
        """Record a `memory.forgotten` event."""
        await self._record("memory.forgotten", sequence, {"id": id_}, agent, None)

    async def recall(self, query, spans=ALL, **options):
        """The hits of a query."""
        return await recall(self.index, self.embedder, spans, query, **options)

    async def texts(self, query, spans=ALL, **options):
        """The texts of the hits."""
        return [hit.text for hit in await self.recall(query, spans, **options)]


class Store(Memories):
    """A store's file with its index."""

    def __init__(self, path, **options):
        super().__init__()
        self.database = Database(path, [_migration])
        self.index = SqliteMemoryIndex(self.database, **options)

    async def record(self, event):
        """Record an event, as the store's log does."""
        record = {"memory.stored": record_memory, "memory.forgotten": record_forgetting}
        await self.database.write(
            lambda connection: record[event.type](connection, AGENTS[event.subject], event)
        )

    async def vectors(self):
        """How many vectors there are."""
        return self.database.read().execute("SELECT count(*) FROM vectors").fetchone()[0]

    async def close(self):
        """Close the file."""
        await self.database.close()


@pytest.fixture
async def connect(tmp_path):
    """Opens a place by its name, as often as asked; all is closed at the end."""
    opened = []

    async def connect(name="store"):
        opened.append(Store(tmp_path / f"{name}.db"))
        return opened[-1]

    yield connect
    for store in opened:
        await store.close()


@pytest.fixture
async def store(connect):
    """An empty store."""
    return await connect()


async def test_a_hit_carries_the_memory_and_explains_its_score(store):
    """What was stored comes back whole, with a score that is the sum of its named parts."""
    await store.store(3, "aisle seats", source="chat", context={"task": "t"}, metadata={"n": [1]})
    (hit,) = await store.recall("aisle seats")
    assert (hit.agent, hit.sequence, hit.id) == (MIA, 3, f"{MIA}-3")
    assert (hit.text, hit.source, hit.context, hit.metadata) == (
        "aisle seats",
        "chat",
        {"task": "t"},
        {"n": [1]},
    )
    assert hit.time == NOON + dt.timedelta(minutes=3)
    assert hit.score == pytest.approx(0.75 * hit.scores.vector + 0.25 * hit.scores.text)
    assert hit.explain() == "score 1.00 = vector 1.00 x 0.75 + text 1.00 x 0.25 (cosine 1.00)"


async def test_a_memory_stored_later_is_not_seen(store):
    """Recall as of a sequence sees what was stored up to it and nothing after."""
    await store.store(2, "aisle seats")
    await store.store(5, "window seats")
    assert await store.texts("seats", [Span(MIA, 1, 4)]) == ["aisle seats"]
    assert await store.texts("seats", [Span(MIA, 1, 1)]) == []


async def test_a_memory_forgotten_later_is_still_seen_as_of_before(store):
    """Forgetting hides a memory from its sequence on, and a hit from before says until when."""
    await store.store(2, "aisle seats")
    await store.forget(6, f"{MIA}-2")
    (hit,) = await store.recall("seats", [Span(MIA, 1, 5)])
    assert (hit.text, hit.until) == ("aisle seats", 6)
    assert await store.texts("seats", [Span(MIA, 1, 6)]) == []


async def test_an_undone_forgetting_no_longer_hides(store):
    """A forgetting outside the spans does not count, and what was stored there isn't seen."""
    await store.store(2, "aisle seats")
    await store.forget(4, f"{MIA}-2")
    await store.store(5, "window seats")
    assert await store.texts("seats", [Span(MIA, 1, 3), Span(MIA, 6, 9)]) == ["aisle seats"]


async def test_a_fork_sees_its_parents_memories_and_forgets_them_alone(store):
    """A fork's spans reach into its parent; what it forgets its parent keeps."""
    await store.store(2, "aisle seats")
    await store.store(7, "window seats", agent=TWIN)
    await store.store(8, "middle seats")
    spans = [Span(MIA, 1, 5), Span(TWIN, 6, 20)]
    assert set(await store.texts("seats", spans)) == {"aisle seats", "window seats"}
    await store.forget(9, f"{MIA}-2", agent=TWIN)
    assert await store.texts("seats", spans) == ["window seats"]
    assert set(await store.texts("seats")) == {"aisle seats", "middle seats"}


async def test_thousands_of_undos_are_searched_exactly(store):
    """Spans with thousands of gaps, more than a statement has terms, leave out what is in gaps."""
    await store.store(9_000, "kept seats")
    await store.store(9_001, "undone seats")
    spans = [Span(MIA, first, first) for first in range(2, 10_000, 2)]
    assert await store.texts("seats", spans) == ["kept seats"]
    assert await store.texts("seats", spans, filter=Filter()) == ["kept seats"]


async def test_another_agents_memories_are_never_found(store):
    """Spans of one agent give nothing of another, however well it fits."""
    await store.store(1, "the very words", agent=OTHER)
    await store.store(1, "something else")
    assert await store.texts("the very words") == ["something else"]
    assert await store.texts("the very words", [Span("no/body", 1, 9)]) == []
    assert await store.texts("the very words", []) == []


async def test_recording_an_event_again_changes_nothing(store):
    """The same event recorded twice is one memory with one entry in the full text."""
    await store.store(1, "aisle seats")
    before = await store.recall("seats")
    await store.store(1, "aisle seats")
    assert await store.recall("seats") == before
    assert len(before) == 1


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {"text": 5},
        {"text": None, "id": 7},
        {"text": ["a"], "id": {}},
    ],
)
async def test_odd_data_of_foreign_events_is_passed_over(store, data):
    """An event that is called a memory and holds no text is no memory, and no error."""
    await store.data(1, data)
    assert await store.texts("text") == []


async def test_odd_parts_of_a_memory_are_left_out(store):
    """A source that is no text and a context that is no object don't cost the memory."""
    await store.store(1, "aisle\0 seats \ud800", source=5, context=["x"], metadata="y")
    (hit,) = await store.recall("aisle")
    assert (hit.text, hit.source, hit.context, hit.metadata) == ("aisle\0 seats ?", None, {}, {})


@pytest.mark.parametrize(
    "query",
    [
        '" OR *',
        "NEAR(",
        "seats NEAR/2 x",
        'text : "',
        "AND NOT OR",
        "^seats*",
        "-seats + {text} : (x",
        "''''; DROP TABLE memories; --",
        "a\0b",
        "\0",
        "\ud800 seats",
        "💺✈️",
        "座席",
        "the of and",
        "_",
        "seats " * 1_700,
        "x" * 10_000,
        " ".join(f"w{number}" for number in range(2_000)),
    ],
)
async def test_any_text_is_a_query(store, query):
    """Whatever a user types is looked for, never understood as a search operator."""
    await store.store(1, "aisle seats")
    await store.store(2, "window seats")
    assert len(await store.recall(query)) == 2


@pytest.mark.parametrize("query", ["", " \n", "\u2003"])
async def test_a_blank_query_is_refused(store, query):
    """There is nothing to look for in a blank query, and the error says so."""
    with pytest.raises(InvalidData, match="query is blank"):
        await store.recall(query)


@pytest.mark.parametrize("k", [0, -1, 1001, True, 2.0, "5", None, 10**100])
async def test_k_has_bounds(store, k):
    """K is a whole number from 1 to 1000."""
    with pytest.raises(InvalidData, match="k is"):
        await store.recall("seats", k=k)


async def test_k_bounds_the_hits_best_first(store):
    """At most k hits come, in the order of their scores, the later of equals first."""
    for sequence in range(1, 30):
        await store.store(sequence, "abc" if sequence % 2 else "xyz")
    hits = await store.recall("abc", k=4)
    assert [hit.sequence for hit in hits] == [29, 27, 25, 23]


@pytest.mark.parametrize("name", ["HAT136", "4WQ150", "gift_card_7815826", "OPS-2291", "a/b:c.d"])
async def test_an_identifier_is_found_by_its_words_alone(store, name):
    """An identifier that means nothing to an embedder still brings its memory to the top."""
    store.embedder = Letters("one letter", 1)
    for sequence in range(1, 20):
        await store.store(sequence, f"aaa reservation ZZ{sequence} of card_{sequence} was changed")
    await store.store(20, f"aaa reservation {name} was changed")
    hits = await store.recall(f"what about {name}?", k=3)
    assert hits[0].sequence == 20


async def test_get_finds_what_is_visible(store):
    """A memory is got by its id where it is visible, and is not there elsewhere."""
    await store.store(2, "aisle seats", id_="m")
    await store.forget(6, "m")
    assert (await store.index.get([Span(MIA, 1, 5)], "m")).until == 6
    for spans in ([Span(MIA, 1, 6)], [Span(MIA, 1, 1)], [Span(OTHER, 1, 9)], []):
        with pytest.raises(NotFound, match="no memory 'm'"):
            await store.index.get(spans, "m")


FILTERS = {
    "by source": ({"source": "chat"}, {1, 3}),
    "from a time on": ({"since": NOON + dt.timedelta(minutes=2)}, {2, 3, 4}),
    "before a time": ({"until": NOON + dt.timedelta(minutes=2)}, {1}),
    "in the context": ({"where": {"context.task": "t-7"}}, {1, 2}),
    "in the metadata": ({"where": {"topic": "seats"}}, {2}),
    "metadata written out": ({"where": {"metadata.topic": "seats"}}, {2}),
    "deep in it": ({"where": {"context.trip.leg.to": "SEA"}}, {3}),
    "a key with dots": ({"where": {"user.id": 7}}, {1}),
    "an odd key": ({"where": {'say "hi"': None}}, {4}),
    "true is not one": ({"where": {"flag": True}}, {3}),
    "one is one point zero": ({"where": {"flag": 1}}, {1, 4}),
    "text is not a number": ({"where": {"flag": "1"}}, {2}),
    "all at once": ({"source": "chat", "where": {"context.task": "t-7", "flag": 1}}, {1}),
    "nothing": ({"where": {"nowhere.at.all": 1}}, set()),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_a_filter_leaves_exactly_what_fits(store, name):
    """Source, times and fields each filter as written, for vectors and words alike."""
    options, expected = FILTERS[name]
    await store.store(
        1, "seats", source="chat", context={"task": "t-7"}, metadata={"user.id": 7, "flag": 1}
    )
    await store.store(
        2, "seats", source="mail", context={"task": "t-7"}, metadata={"topic": "seats", "flag": "1"}
    )
    await store.store(
        3, "seats", source="chat", context={"trip": {"leg": {"to": "SEA"}}}, metadata={"flag": True}
    )
    await store.store(4, "seats", metadata={'say "hi"': None, "flag": 1.0, "topic": {"seats": 1}})
    filter_ = Filter(**options)
    assert {hit.sequence for hit in await store.recall("seats", filter=filter_)} == expected
    everything = await store.recall("seats")
    assert {hit.sequence for hit in everything if filter_.accepts(hit)} == expected


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([1.0, 0.5, "1", "true", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b", "a.b", '"', "$"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_examples = itertools.count()
_objects = st.dictionaries(st.sampled_from(["a", "b", "a.b", '"', "$"]), _values, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(st.tuples(_objects, _objects), min_size=1, max_size=6),
    st.sampled_from(["a", "b", "a.b", "b.a", '"', "$", "a.$", "context.a", "context.a.b"]),
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([1.0, 0.5, "1", "true", ""]),
)
async def test_the_index_filters_as_the_filter_says(connect, objects, path, value):
    """For any metadata and condition, the index finds just the memories the filter accepts."""
    store = await connect(f"example {next(_examples)}")
    for sequence, (context, metadata) in enumerate(objects, 1):
        await store.store(sequence, "seats", context=context, metadata=metadata)
    filter_ = Filter(where={path: value})
    found = {hit.sequence for hit in await store.recall("seats", k=10, filter=filter_)}
    everything = await store.recall("seats", k=10)
    assert found == {hit.sequence for hit in everything if filter_.accepts(hit)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": 5}, "source is of type int"),
        ({"since": dt.datetime(2026, 1, 1)}, "since .* has no zone"),
        ({"until": 5}, "until is of type int"),
        ({"where": ["a"]}, "where is of type list"),
        ({"where": {"": 1}}, "path ''"),
        ({"where": {"a..b": 1}}, "path 'a..b'"),
        ({"where": {"context": {}}}, "path 'context'"),
        ({"where": {5: 1}}, "key '5' of type int"),
        ({"where": {"a": [1]}}, r'where\["a"\] is of type list'),
        ({"where": {"a": float("nan")}}, "is nan"),
        ({"where": {"a": 2**63}}, "64 bits"),
        ({"where": {"a": "\ud800"}}, "surrogate"),
        ({"where": {f"k{number}": 1 for number in range(33)}}, "33 entries"),
        ({"where": {"a." * 20 + "b": 1}}, "at most 16 deep"),
    ],
)
def test_a_wrong_filter_says_what_is_wrong(options, message):
    """A filter that can't be meant is refused where it is made."""
    with pytest.raises(InvalidData, match=message):
        Filter(**options)


async def test_a_memory_without_vector_is_found_and_picked_up(connect):
    """After a crash between storing and embedding the words find it, and recall embeds it."""
    crashed = await connect()
    await crashed.store(1, "aisle seats")
    await crashed.close()
    store = await connect()
    query = Letters().embed(["aisle"])[0]
    (hit,) = await store.index.search(ALL, "aisle", query, "letters", k=5)
    assert (hit.text, hit.scores.cosine, hit.scores.text) == ("aisle seats", 0, 1)
    (hit,) = await store.recall("aisle")
    assert hit.scores.cosine > 0.5
    assert await store.index.unembedded(ALL, "letters", 10) == []


async def test_only_what_lacks_a_vector_is_embedded(store):
    """Embedding ahead does each memory once, in batches, whatever the order of spans asked."""
    for sequence in range(1, 201):
        await store.store(sequence, f"memory number {sequence}")
    progress = []
    spans = [Span(MIA, 1, 150)]
    assert await memorize(store.index, store.embedder, spans, progress=progress.append) == 150
    assert progress == [64, 128, 150]
    assert await memorize(store.index, store.embedder, ALL) == 50
    assert await memorize(store.index, store.embedder, spans) == 0
    await store.store(201, "one more")
    assert await memorize(store.index, store.embedder, ALL) == 1
    assert len(store.embedder.texts) == 201


async def test_recalls_at_the_same_time_agree(store):
    """Recalls that run at once embed and search side by side, and each gets the full answer."""
    for sequence in range(1, 101):
        await store.store(sequence, f"{'abcdefghij'[sequence % 10] * 3} seat {sequence}")
    queries = ["aaa seat", "bbb seat", "ccc seat", "aaa seat"]
    at_once = await asyncio.gather(*(store.recall(query, k=10) for query in queries))
    assert at_once == [await store.recall(query, k=10) for query in queries]
    assert await store.vectors() == 100


async def test_embedders_don_t_mix(store):
    """Vectors of another embedder, of other dimensions, lie beside and are not compared."""
    await store.store(1, "aisle seats")
    await store.recall("aisle")
    store.embedder = Letters("few letters", 5)
    (hit,) = await store.recall("aisle")
    expected = Letters(dimensions=5).embed(["aisle", "aisle seats"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert hit.scores.cosine == pytest.approx(expected[0] @ expected[1])
    store.embedder = Letters()
    assert len(await store.recall("aisle")) == 1


async def test_an_embedder_that_changed_under_its_name_is_told(store):
    """Other dimensions under a known name are an error that says what to do."""
    await store.store(1, "aisle seats")
    await store.recall("aisle")
    store.embedder = Letters(dimensions=5)
    with pytest.raises(InvalidData, match="gives 5 dimensions, its stored vectors have 26"):
        await store.recall("aisle")
    await store.store(2, "window seats")
    with pytest.raises(InvalidData, match="name of its own"):
        await store.recall("aisle")


async def test_vectors_that_are_none_are_refused(store):
    """NaN, a wrong length or shape never reach the file."""
    await store.store(1, "aisle seats")
    for vectors in ([[float("nan"), 0]], [[3, 4]], [], [0.6, 0.8]):
        embedded = Embedded(MIA, 1, np.array(vectors, np.float32))
        with pytest.raises(InvalidData):
            await store.index.add_vectors("e", [embedded])
    assert await store.vectors() == 0


async def test_adding_vectors_again_keeps_the_first(store):
    """A memory's vectors are written once; memories that aren't there are passed over."""
    await store.store(1, "aisle seats")
    vectors = np.eye(2, dtype=np.float32)
    assert await store.index.add_vectors("e", [Embedded(MIA, 1, vectors)]) == 1
    assert await store.index.add_vectors("e", [Embedded(MIA, 1, vectors[:1])]) == 0
    assert await store.index.add_vectors("e", [Embedded(MIA, 7, vectors)]) == 0
    assert await store.index.add_vectors("e", [Embedded("no/body", 1, vectors)]) == 0


async def test_what_another_process_adds_is_seen(connect):
    """A search sees memories and vectors that were written through another connection."""
    one, two = await connect(), await connect()
    await one.store(1, "aaa")
    assert await one.texts("bbb") == ["aaa"]
    assert await two.texts("bbb") == ["aaa"]
    await two.store(2, "bbb")
    await two.recall("bbb")
    await one.store(3, "ccc")
    assert await one.texts("bbb", k=1) == ["bbb"]
    assert set(await two.texts("bbb")) == {"aaa", "bbb", "ccc"}


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 600_000, 2**30])
async def test_a_search_is_exact_whatever_fits_in_memory(tmp_path, cache_bytes):
    """With no, little or enough room for vectors the best hits are the same."""
    store = Store(tmp_path / "store.db", cache_bytes=cache_bytes)
    random = np.random.default_rng(7)
    vectors = random.normal(size=(9_000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [MIA, TWIN, OTHER]

    def fill(connection):
        for row in range(len(vectors)):
            agent = names[row % 3]
            event = Event(
                id=str(row), type="memory.stored", subject=agent, source="/", sequence=row + 1,
                time=NOON, writer="w", writer_sequence=row + 1, data={"text": "t"},
            )  # fmt: skip
            record_memory(connection, AGENTS[agent], event)

    await store.database.write(fill)
    rows = [
        Embedded(names[row % 3], row + 1, vectors[row : row + 1]) for row in range(len(vectors))
    ]
    await store.index.add_vectors("e", rows)
    spans = [Span(MIA, 1, 6_000), Span(TWIN, 2_000, 9_000), Span(OTHER, 1, 9_000)]
    visible = [
        row
        for row in range(len(vectors))
        for span in spans
        if names[row % 3] == span.agent and span.first <= row + 1 <= span.last
    ]
    for query in vectors[:6]:
        order = sorted(visible, key=lambda row: -float(vectors[row] @ query))
        hits = await store.index.search(spans, "zzz", query, "e", k=10)
        assert [hit.sequence - 1 for hit in hits] == order[:10]
    if store.index._vectors is not None:
        assert store.index._vectors.size <= cache_bytes
    await store.database.close()


@pytest.mark.parametrize("damage", [b"\xff" * 104, b"\0\0\0\x60" * 26, b"short", "text", 5])
async def test_a_damaged_vector_is_noticed_and_can_be_made_again(store, damage):
    """A vector that is not what was written is an error with a way out, which works."""
    await store.store(1, "aisle seats")
    await memorize(store.index, store.embedder, ALL)
    await store.database.write(
        lambda connection: connection.execute("UPDATE vectors SET vector = ?", (damage,))
    )
    with pytest.raises(Corrupt, match="is damaged"):
        await store.recall("aisle")
    assert await store.index.drop_vectors("letters") == 1
    assert await store.texts("aisle") == ["aisle seats"]


async def test_a_long_text_is_found_by_any_of_its_parts(store):
    """A memory of several windows counts by the best of them."""
    await store.store(1, "aaaa " * 400 + "zzzz " * 400)
    await store.store(2, "zzzz ayyy" * 2)
    hits = await store.recall("zzzz", k=1)
    assert hits[0].sequence == 1
    assert hits[0].scores.cosine == pytest.approx(1)
