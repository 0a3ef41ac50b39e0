"""Memory: what is remembered is recalled, as of any moment, until it is forgotten."""

import asyncio
import datetime as dt

import pytest

import perdure

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


async def texts(agent, query, **options):
    """The texts that a query finds, in their order."""
    return [hit.text for hit in await agent.recall(query, **options)]


async def test_a_memory_is_recalled(place):
    """What was remembered is found by another connection, best first, with all it was given."""
    agent = await (await place.connect()).agent("airline/mia")
    kept = await agent.remember(
        "prefers aisle seats", source="chat", context={"task": "t-7"}, time=NOON, mood="good"
    )
    await agent.remember("allergic to peanuts")
    [hit, other] = await (await place.connect()).view("airline/mia").recall("which seats", k=5)
    assert other.score <= hit.score
    assert (hit.id, hit.text, hit.source) == (kept.id, "prefers aisle seats", "chat")
    assert (hit.context, hit.metadata, hit.time) == ({"task": "t-7"}, {"mood": "good"}, NOON)
    assert (hit.agent, hit.sequence, hit.until) == ("airline/mia", 1, None)
    assert f"{hit.score:.2f}" in hit.explain()
    assert agent.state.memories.count == 2
    assert agent.state.memories.ids[kept.id] == 1


async def test_a_memory_is_an_event(store):
    """Remembering and forgetting are events, and a contributed one is a memory as well."""
    agent = await store.agent("airline/mia")
    kept = await agent.remember("prefers aisle seats")
    await agent.forget(kept)
    await store.emit("airline/mia", "memory.stored", {"text": "likes tea"})
    assert [event.type async for event in agent.events()] == [
        "memory.stored", "memory.forgotten", "memory.stored",
    ]  # fmt: skip
    assert await texts(agent, "tea or seats") == ["likes tea"]


async def test_a_forgotten_memory_is_not_recalled(store):
    """What is forgotten is found no more; forgetting it again, or what never was, is an error."""
    agent = await store.agent("airline/mia")
    kept = await agent.remember("prefers aisle seats")
    assert await texts(agent, "seats") == ["prefers aisle seats"]
    await agent.forget(kept.id)
    assert await texts(agent, "seats") == []
    assert agent.state.memories.count == 0
    for missing in (kept, kept.id, "never"):
        with pytest.raises(perdure.NotFound):
            await agent.forget(missing)


async def test_memory_as_of_a_past_sequence(store):
    """As of then, what was stored later is not seen, and what was forgotten later still is."""
    agent = await store.agent("airline/mia")
    one = await agent.remember("fact one")
    await agent.remember("fact two")
    await agent.forget(one)
    await agent.remember("fact three")
    assert [sorted(await texts(agent, "fact", seq=at)) for at in range(5)] == [
        [],
        ["fact one"],
        ["fact one", "fact two"],
        ["fact two"],
        ["fact three", "fact two"],
    ]
    [hit] = [hit for hit in await agent.recall("fact", seq=2) if hit.id == one.id]
    assert hit.until in {None, 3}
    with pytest.raises(perdure.NotFound):
        await agent.recall("fact", seq=5)


async def test_filters(store):
    """source, time and any field of context or metadata narrow what is found, also together."""
    agent = await store.agent("airline/mia")
    for number in range(6):
        await agent.remember(
            f"fact number {number}",
            source="chat" if number % 2 else "mail",
            context={"task": f"t-{number // 2}", "at": {"leg": number}},
            time=NOON + dt.timedelta(hours=number),
            topic="seats" if number < 3 else "food",
        )

    async def numbers(**options):
        return sorted(int(text[-1]) for text in await texts(agent, "fact number", k=50, **options))

    assert await numbers() == [0, 1, 2, 3, 4, 5]
    assert await numbers(source="chat") == [1, 3, 5]
    assert await numbers(since=NOON + dt.timedelta(hours=2), until="2026-11-01T16:00Z") == [2, 3]
    assert await numbers(where={"context.task": "t-1"}) == [2, 3]
    assert await numbers(where={"context.at.leg": 4}) == [4]
    assert await numbers(where={"topic": "food"}, source="mail") == [4]
    assert await numbers(where={"topic": "none"}) == []
    assert await numbers(where={"topic": "seats"}, seq=2) == [0, 1]
    with pytest.raises(perdure.InvalidData):
        await agent.recall("fact", since=dt.datetime(2026, 11, 1))


async def test_k(store):
    """K limits what is found; a wrong k, or an empty query, is refused."""
    agent = await store.agent("airline/mia")
    for number in range(8):
        await agent.remember(f"fact {number}")
    assert len(await agent.recall("fact")) == 5
    assert len(await agent.recall("fact", k=3)) == 3
    assert len(await agent.recall("fact", k=1000)) == 8
    for wrong in (0, -1, 1001, "5", True):
        with pytest.raises(perdure.InvalidData):
            await agent.recall("fact", k=wrong)
    for query in ("", "  ", None, 5):
        with pytest.raises(perdure.InvalidData):
            await agent.recall(query)


@pytest.mark.parametrize("text", ["", "  \n", None, 5, b"x", "\ud800"], ids=ascii)
async def test_wrong_texts_are_refused(store, text):
    """What is no text can't be remembered, and records nothing."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.InvalidData):
        await agent.remember(text)
    assert await agent.sequence() == 0


@pytest.mark.parametrize(
    "query", ['"', "a AND", "NEAR(", "*", "x:y", "'; --", "日本", "\x00", "()"]
)
async def test_any_text_is_a_query(store, query):
    """No query is an error for what stands in it, and a memory can be any text too."""
    agent = await store.agent("airline/mia")
    await agent.remember(f"fact {query} end")
    assert len(await agent.recall(query)) <= 1
    assert await texts(agent, f"fact {query}") == [f"fact {query} end"]


async def test_agents_do_not_share_memories(store):
    """An agent recalls its own memories alone."""
    mia, bob = await store.agent("airline/mia"), await store.agent("airline/bob")
    await mia.remember("fact of mia", source="x")
    kept = await bob.remember("fact of bob", source="x")
    assert await texts(mia, "fact") == ["fact of mia"]
    with pytest.raises(perdure.NotFound):
        await mia.forget(kept)
    assert await texts(bob, "fact") == ["fact of bob"]


async def test_undo_and_fork_cover_memory(store):
    """Undone memories are not recalled, undone forgettings are; a fork has its parent's."""
    agent = await store.agent("airline/mia")
    one = await agent.remember("fact one")
    await agent.forget(one)
    await agent.remember("fact two")
    twin = await agent.fork(at=1, name="airline/twin")
    await twin.remember("fact twin")
    await agent.revert(to=1)
    assert await texts(agent, "fact") == ["fact one"]
    assert sorted(await texts(twin, "fact")) == ["fact one", "fact twin"]
    await agent.revert(to=3)
    assert await texts(agent, "fact") == ["fact two"]
    assert sorted(await texts(twin, "fact")) == ["fact one", "fact twin"]
    await twin.forget(one)
    assert await texts(twin, "fact") == ["fact twin"]
    assert await texts(agent, "fact", seq=1) == ["fact one"]
    await twin.revert(to=1)
    assert await texts(twin, "fact") == ["fact one"]


async def test_many_memories_at_once(place):
    """Memories stored and asked for concurrently are all found afterwards, each once."""
    stores = [await place.connect(), await place.connect()]
    await asyncio.gather(
        *[
            stores[number % 2].emit("airline/mia", "memory.stored", {"text": f"fact {number}"})
            for number in range(100)
        ]
    )
    found = await asyncio.gather(
        *[store.view("airline/mia").recall("fact", k=200) for store in stores for _ in range(3)]
    )
    for hits in found:
        assert sorted(int(hit.text[5:]) for hit in hits) == list(range(100))


async def test_the_default_embedder_finds_by_meaning(place):
    """Without an embedder of one's own, a question finds the memory that means the same."""
    agent = await (await place.connect(embedder=None)).agent("airline/mia")
    for text in (
        "The customer is allergic to peanuts",
        "She always wants to sit next to the window",
        "Payment was refused by the bank",
    ):
        await agent.remember(text)
    [best, *_] = await agent.recall("where in the plane would she like her seat?")
    assert best.text == "She always wants to sit next to the window"
    [best, *_] = await agent.recall("credit card problem")
    assert best.text == "Payment was refused by the bank"
