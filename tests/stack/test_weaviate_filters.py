"""What the index asks of Weaviate lets pass all that it must: rules that need no server."""

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from perdure.memorizer.memory import Filter, Memory
from perdure.model.timeline import Span
from perdure.weaviate import facts
from perdure.weaviate.schema import collection_name, tenant_name
from perdure.weaviate.sight import Sight, cover, halves
from perdure.weaviate.terms import searched_terms, text_terms

SPANS = st.lists(
    st.builds(
        lambda agent, first, size: Span(agent, first, first + size),
        st.sampled_from(["a/x", "a/y"]),
        st.integers(1, 60),
        st.integers(-1, 9),
    ),
    max_size=12,
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([1.0, 0.5, 1e300, "1", "", "é"])
)
NAMES = st.sampled_from(["a", "b", "a.b", "b.a", '"', "="])
OBJECTS = st.dictionaries(
    NAMES,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(SPANS, st.integers(1, 5))
def test_a_cover_holds_all_spans_with_few_ranges(spans, ranges_max):
    """However the spans lie, what is in them is in the few ranges that a filter has for them."""
    sight = Sight(spans)
    own = [span for agent in sight.agents for span in sight.spans(agent)]
    covered = cover(own, ranges_max)
    assert len(covered) <= max(ranges_max, len(sight.agents))
    for span in spans:
        for sequence in range(span.first, span.last + 1):
            assert sight.sees(span.agent, sequence)
            assert Sight(covered).sees(span.agent, sequence)


@given(SPANS)
def test_sight_is_what_lies_in_a_span(spans):
    """An event is seen exactly where one of the spans holds it."""
    sight = Sight(spans)
    for agent in ("a/x", "a/y", "a/z"):
        for sequence in range(75):
            held = any(agent == s.agent and s.first <= sequence <= s.last for s in spans)
            assert sight.sees(agent, sequence) is (held and sequence > 0)


@given(SPANS)
def test_halves_are_all_of_it_and_nothing_twice(spans):
    """Taken apart to single events, spans give each of their events once."""
    sight = Sight(spans)
    open_ends = [[span for agent in sight.agents for span in sight.spans(agent)]]
    events = []
    while open_ends:
        part = open_ends.pop()
        if part and (parts := halves(part)):
            open_ends += parts
        else:
            events += [(span.agent, span.first) for span in part]
    assert sorted(events) == sorted(
        {(s.agent, sequence) for s in spans for sequence in range(s.first, s.last + 1)}
    )


@given(
    OBJECTS,
    OBJECTS,
    st.none() | st.text(max_size=3),
    st.sampled_from(["a", "b", "a.b", "b.a", "a.a.b", '"', "=", "context.a", "context.a.b"]),
    SCALARS,
)
def test_what_a_filter_accepts_has_its_facts(context, metadata, source, path, value):
    """No memory that a filter accepts is held back by the terms that are asked for."""
    memory = Memory(
        id="m", agent="a/b", sequence=1, time=dt.datetime(2026, 11, 1, tzinfo=dt.UTC), text="t",
        source=source, context=context, metadata=metadata,
    )  # fmt: skip
    terms = facts.facts_of(memory)
    for filter in (Filter(where={path: value}), Filter(source=source, where={path: value})):
        if filter.accepts(memory):
            assert set(facts.wanted(filter)) <= set(terms)
        elif set(facts.wanted(filter)) <= set(terms):
            # Only a value at another path that is written alike passes, and is looked at itself.
            assert any("." in name or "=" in name for name in (*context, *metadata, path))


def test_a_memory_of_very_many_fields_is_always_looked_at():
    """Beyond so many fields a memory carries a mark that every filter lets pass."""
    memory = Memory(
        id="m", agent="a/b", sequence=1, time=dt.datetime(2026, 11, 1, tzinfo=dt.UTC), text="t",
        metadata={f"field-{number}": number for number in range(facts.FACTS_MAX + 1)},
    )  # fmt: skip
    assert facts.facts_of(memory) == [facts.MANY]


@given(st.text(st.sampled_from("abÄß座1_-.:/ \n\0"), min_size=1, max_size=30))
def test_a_text_has_the_terms_that_a_query_of_it_looks_for(text):
    """Whatever a memory's text is, the same text as a query asks for terms that it has."""
    assert set(searched_terms(text).split()) <= set(text_terms(text).split())


def test_names_are_what_weaviate_takes_and_never_shared():
    """Stores, namespaces and embedders of any characters get names of their own."""
    pairs = [("a", "b__c"), ("a__b", "c"), ("a_", "b"), ("a", "_b"), ("a", "b.c"), ("a", "b:c")]
    pairs += [("s" * 63, "n" * 128), ("s" * 63, "n" * 127), ("a", "B"), ("a", "b")]
    tenants = [tenant_name(*pair) for pair in pairs]
    assert len(set(tenants)) == len(pairs)
    assert all(len(name) <= 64 and name.replace("_", "").isalnum() for name in tenants)
    names = [
        collection_name(keyspace, embedder)
        for keyspace in ("p_g1", "p_g11", "p_g1_x")
        for embedder in ("m", "M", "x/y", "x:y", "ü" * 300, "")
    ]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isascii() and name.replace("_", "").isalnum() for name in names)
