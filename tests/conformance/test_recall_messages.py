"""Recall among messages: what was said is found, as of any moment, and nothing is written."""

import asyncio
import contextlib
import datetime as dt
import threading

import pytest
from tests.conformance.places import WordsEmbedder

import perdure
from perdure.memorizer import message_search
from perdure.model.upcast import Upcasters

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


class CountingEmbedder(WordsEmbedder):
    """The small embedder, and how many texts it was asked for."""

    def __init__(self):
        self.asked = []

    def embed(self, texts):
        """As the small one."""
        self.asked += texts
        return super().embed(texts)


class MeetingEmbedder(CountingEmbedder):
    """A counting one that lets two callers meet in it, if a second one comes before long."""

    def __init__(self):
        super().__init__()
        self._meeting = threading.Barrier(2, timeout=0.2)

    def embed(self, texts):
        """As the small one; once nobody came, nobody is waited for."""
        with contextlib.suppress(threading.BrokenBarrierError):
            self._meeting.wait()
        return super().embed(texts)


async def say(agent, text, role="user", **further):
    """Record a message."""
    return await agent.emit("message.added", {"role": role, "content": text, **further})


async def found(agent, query, **options):
    """The texts of the messages that a query finds, in their order."""
    return [hit.text for hit in await agent.recall(query, among="messages", **options)]


async def test_a_message_is_recalled(place):
    """A message is found, best first, under its event's id and sequence, with its role."""
    agent = await (await place.connect()).agent("airline/mia")
    await say(agent, "a seat at the window, please")
    answer = await agent.emit(
        "message.added",
        {"role": "tool", "content": "two bags are free", "name": "get_rules", "n": {"of": 2}},
        time=NOON,
    )
    view = (await place.connect()).view("airline/mia")
    [hit, other] = await view.recall("how many bags", among="messages")
    assert other.score <= hit.score
    assert (hit.id, hit.agent, hit.sequence) == (answer.id, "airline/mia", 2)
    assert (hit.text, hit.source, hit.time) == ("two bags are free", "tool", NOON)
    assert (hit.metadata, hit.context) == ({"name": "get_rules", "n": {"of": 2}}, {})
    assert hit.until is None
    assert f"{hit.score:.2f}" in hit.explain()


async def test_memories_and_messages_are_kept_apart(store):
    """A question is answered from what it asks: memories, or messages, never both."""
    agent = await store.agent("airline/mia")
    await say(agent, "bags said")
    await agent.remember("bags remembered")
    assert await found(agent, "bags") == ["bags said"]
    assert [hit.text for hit in await agent.recall("bags")] == ["bags remembered"]
    assert [hit.text for hit in await agent.recall("bags", among="memories")] == ["bags remembered"]
    for wrong in ("both", "", None, 5, ["messages"]):
        with pytest.raises(perdure.InvalidData):
            await agent.recall("bags", among=wrong)


async def test_nothing_is_written(store):
    """Searching messages records no event and makes no memory."""
    agent = await store.agent("airline/mia")
    await say(agent, "two bags")
    assert await found(agent, "bags") == ["two bags"]
    assert await agent.sequence() == 1
    assert await agent.recall("bags") == []
    assert agent.state.memories.count == 0


async def test_only_what_was_said_is_searched(store):
    """Text of users, assistants and tools counts: no system prompt, no blank, nothing else."""
    agent = await store.agent("airline/mia")
    await say(agent, "bags system", role="system")
    await say(agent, "bags developer", role="developer")
    await say(agent, "bags other", role="narrator")
    await say(agent, "bags user")
    await say(agent, "bags assistant", role="assistant", tool_calls=[{"id": "c"}])
    await say(agent, "bags tool", role="tool")
    for nothing in (None, "", " \n", [], 5, {"text": "bags"}, [{"type": "image_url"}], [None]):
        await say(agent, nothing)
    await agent.emit("message.added", {"role": "user"})
    await agent.emit("tool.executed", {"id": "c", "result": "bags result"})
    parts = [
        {"type": "text", "text": "bags one"},
        {"type": "image_url", "image_url": {"url": "bags:"}},
        {"type": "text", "text": "two"},
    ]
    await say(agent, parts)
    assert sorted(await found(agent, "bags", k=50)) == [
        "bags assistant",
        "bags one\ntwo",
        "bags tool",
        "bags user",
    ]


async def test_an_agent_that_said_nothing(store):
    """Without messages nothing is found, and what is asked is checked all the same."""
    agent = await store.agent("airline/mia")
    assert await found(agent, "bags") == []
    await say(agent, "bags", role="system")
    assert await found(agent, "bags") == []
    for query, k in ((" ", 5), (None, 5), ("bags", 0), ("bags", 1001), ("bags", True)):
        with pytest.raises(perdure.InvalidData):
            await agent.recall(query, k, among="messages")
    with pytest.raises(perdure.NotFound):
        await agent.recall("bags", among="messages", seq=2)
    with pytest.raises(perdure.NotFound):
        await store.view("airline/nobody").recall("bags", among="messages")


async def test_messages_as_of_a_past_sequence(store):
    """As of then, later messages are not seen, in whichever order moments are asked about."""
    agent = await store.agent("airline/mia")
    for number in range(6):
        await say(agent, f"bag {number}")
    for at in (3, 6, 0, 1, 5):
        assert sorted(await found(agent, "bag", k=50, seq=at)) == [f"bag {n}" for n in range(at)]
    await say(agent, "bag 6")
    assert len(await found(agent, "bag", k=50)) == 7
    assert sorted(await found(agent, "bag", k=50, seq=2)) == ["bag 0", "bag 1"]


async def test_filters_of_messages(store):
    """Role, time and any further field narrow what is found, also together; k limits it."""
    agent = await store.agent("airline/mia")
    for number in range(6):
        await agent.emit(
            "message.added",
            {
                "role": "tool" if number % 2 else "user",
                "content": f"bag {number}",
                "name": "rules" if number < 3 else "book",
                "seen": {"by": number},
            },
            time=NOON + dt.timedelta(hours=number),
        )

    async def numbers(**options):
        return sorted(int(text[-1]) for text in await found(agent, "bag", **{"k": 50, **options}))

    assert await numbers() == [0, 1, 2, 3, 4, 5]
    assert await numbers(source="tool") == [1, 3, 5]
    assert await numbers(since=NOON + dt.timedelta(hours=2), until="2026-11-01T16:00Z") == [2, 3]
    assert await numbers(where={"name": "book"}, source="user") == [4]
    assert await numbers(where={"seen.by": 4}) == [4]
    assert await numbers(where={"name": "none"}) == []
    assert len(await numbers(k=2)) == 2


async def test_undo_and_fork_cover_messages(store):
    """What was undone is not found, nor what a fork's parent said after the fork."""
    agent = await store.agent("airline/mia")
    await say(agent, "bag one")
    await say(agent, "bag two")
    twin = await agent.fork(at=1, name="airline/twin")
    await say(twin, "bag twin")
    assert sorted(await found(agent, "bag")) == ["bag one", "bag two"]
    assert sorted(await found(twin, "bag")) == ["bag one", "bag twin"]
    await agent.revert(to=1)
    await say(agent, "bag three")
    assert sorted(await found(agent, "bag")) == ["bag one", "bag three"]
    assert sorted(await found(agent, "bag", seq=2)) == ["bag one", "bag two"]
    await agent.revert(to=2)
    assert sorted(await found(agent, "bag")) == ["bag one", "bag two"]
    await twin.revert(to=1)
    assert await found(twin, "bag") == ["bag one"]
    [hit] = await twin.recall("bag", among="messages")
    assert (hit.agent, hit.sequence) == ("airline/mia", 1)


async def test_agents_do_not_share_messages(store):
    """An agent's question is answered from its own messages alone."""
    for name in ("mia", "bob"):
        await store.emit(f"airline/{name}", "message.added", {"role": "user", "content": name})
    for name in ("mia", "bob"):
        assert await found(store.view(f"airline/{name}"), "mia or bob") == [name]


async def test_a_message_is_embedded_once(place):
    """A second question embeds only the question, one after a new message that one besides."""
    embedder = CountingEmbedder()
    agent = await (await place.connect(embedder=embedder)).agent("airline/mia")
    for number in range(10):
        await say(agent, f"bag {number}")
    done = []
    await agent.recall("first", among="messages", progress=done.append)
    assert sorted(embedder.asked) == [*(f"bag {number}" for number in range(10)), "first"]
    assert done[-1] == 10
    embedder.asked.clear()
    done.clear()
    await say(agent, "bag new")
    assert "bag new" in await found(agent, "second", k=50, progress=done.append)
    assert done == [1]
    assert await found(agent, "second", seq=10, k=50)
    assert embedder.asked == ["bag new", "second"]


async def test_the_newest_messages_are_searched(store, monkeypatch):
    """Of more messages than are searched at most, the newest at the asked moment are."""
    monkeypatch.setattr(message_search, "MESSAGES_MAX", 5)
    monkeypatch.setattr(message_search, "KEPT_MAX", 20)
    monkeypatch.setattr(message_search, "BLOCK_EVENTS", 4)
    agent = await store.agent("airline/mia")
    for number in range(10, 40):
        await agent.emit_many(
            [
                ("message.added", {"role": "user", "content": f"bag {number}"}),
                ("decision.made", {"choice": number}),
            ]
        )
    fork = await agent.fork(at=53, name="airline/fork")
    await say(fork, "bag fork")
    for _ in range(2):  # what is kept is dropped in between, which changes no answer
        for at in (*range(0, 61, 3), 60):
            numbers = range(10, 40)[: (at + 1) // 2][-5:]
            assert sorted(await found(agent, "bag", k=50, seq=at)) == [f"bag {n}" for n in numbers]
        assert sorted(await found(fork, "bag", k=50)) == [
            "bag 33", "bag 34", "bag 35", "bag 36", "bag fork",
        ]  # fmt: skip


async def test_many_questions_at_once(place):
    """Questions that come at once get the answers of one alone, and embed no text twice."""
    embedder = MeetingEmbedder()
    store = await place.connect(embedder=embedder)
    names = ["airline/mia", "airline/bob"]
    for name in names:
        for number in range(30):
            data = {"role": "user", "content": f"bag {number} of {name}"}
            await store.emit(name, "message.added", data)
    asked = [(name, at) for name in names for at in (30, 7, 21, 30)]
    answers = await asyncio.gather(
        *(found(store.view(name), "bag", k=50, seq=at) for name, at in asked)
    )
    for (name, at), answer in zip(asked, answers, strict=True):
        assert sorted(answer) == sorted(f"bag {number} of {name}" for number in range(at))
    assert sorted(embedder.asked) == sorted(set(embedder.asked))


async def test_a_question_that_was_given_up(store):
    """A question that is cancelled leaves the next one its answer."""
    agent = await store.agent("airline/mia")
    for number in range(50):
        await say(agent, f"bag {number}")
    for turns in range(12):
        task = asyncio.create_task(found(agent, "bag", k=50))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(await found(agent, "bag", k=50)) == 50


async def test_messages_of_an_old_version_are_lifted(place):
    """A message in an old version is searched for the text that its upcaster gives it."""
    upcasters = Upcasters()

    @upcasters.upcaster("message.added", 1, 2)
    def named(data):
        return {**data, "content": data["content"].replace("bag", "suitcase")}

    agent = await (await place.connect()).agent("airline/mia")
    await say(agent, "two bag")
    view = (await place.connect(upcasters=upcasters)).view("airline/mia")
    assert await found(view, "suitcase") == ["two suitcase"]


@pytest.mark.parametrize("text", ['"', "a AND", "NEAR(", "日本", "\x00", "()", "x" * 20_000])
async def test_any_text_of_a_message_is_searched(store, text):
    """Whatever a message says, it is found by its words, and asking for it is no error."""
    agent = await store.agent("airline/mia")
    await say(agent, f"bag {text} end")
    assert len(await agent.recall(text, among="messages")) <= 1
    assert await found(agent, f"bag {text}") == [f"bag {text} end"]


async def test_a_closed_store_is_not_searched(place):
    """After closing, the question is refused as any other is."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    await say(agent, "bag")
    assert await found(agent, "bag") == ["bag"]
    await store.close()
    with pytest.raises(perdure.StoreClosed):
        await found(agent, "bag")


async def test_closing_ends_the_questions_under_way(place):
    """Who asks while the store is closed gets an answer or is told so, and never waits."""
    store = await place.connect()
    agent = await store.agent("airline/mia")
    for number in range(20):
        await say(agent, f"bag {number}")
    asked = [asyncio.create_task(found(agent, "bag")) for _ in range(3)]
    await asyncio.sleep(0)
    await store.close()
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, perdure.StoreClosed) or len(answer) == 5
