"""What a write waits for on a cluster, and what its writer and readers see meanwhile."""

import asyncio
import uuid

import pytest
from tests.stack.load import until

import perdure


@pytest.fixture
def url(shared_services):
    """A store that nobody has used, where writes are durable when they return."""
    return shared_services.url(f"s{uuid.uuid4().hex[:12]}")


async def test_a_durable_write_is_in_the_writers_state_at_once(url):
    """Nobody waits for the recorder to go on with what was just decided."""
    async with perdure.connect(url) as store:
        agent = await store.agent("airline/mia")
        event = await agent.emit("decision.made", {"choice": "refund"})
        assert event.sequence == 0
        assert list(agent.state.decisions) == [{"choice": "refund"}]
        assert agent.state.sequence == 1


async def test_a_writer_reads_what_it_wrote(url):
    """Events, past states, memories and objects are there for who wrote them, in the next line."""
    async with perdure.connect(url) as store:
        agent = await store.agent("airline/mia")
        for number in range(5):
            await agent.emit("decision.made", number)
            assert [event.data async for event in agent.events()] == list(range(number + 1))
        await agent.checkpoint("policy", {"weights": [0.5]})
        assert await agent.restore("policy") == {"weights": [0.5]}
        await agent.remember("prefers aisle seats")
        [hit] = await agent.recall("seats", k=1)
        assert hit.text == "prefers aisle seats"
        await agent.emit("decision.made", 5)
        assert (await agent.state_at()).decisions[-1] == 5
        assert agent.state.sequence == await agent.sequence() == 8


async def test_others_read_a_write_by_its_position(url):
    """A position of the log is waited for; `fresh` waits for whatever anybody was answered."""
    async with perdure.connect(url) as writer, perdure.connect(url) as reader:
        view = reader.view("airline/mia")
        for number in range(20):
            event = await writer.emit("airline/mia", "decision.made", number)
            state = await view.state_at(at_least=event.position)
            assert list(state.decisions) == list(range(number + 1))
        await writer.emit("airline/mia", "decision.made", 20)
        assert (await view.state_at(fresh=True)).decisions[-1] == 20


async def test_the_state_becomes_the_recorded_one(url):
    """Where others wrote in between, the writer's state has it all, in the recorded order."""
    async with perdure.connect(url) as store, perdure.connect(url) as other:
        agent = await store.agent("airline/mia")
        for number in range(10):
            await other.emit("airline/mia", "decision.made", f"other {number}")
            await agent.emit("decision.made", f"own {number}")
        state = await agent.refresh()
        recorded = [event.data async for event in store.view("airline/mia").events()]
        assert list(state.decisions) == recorded
        assert sorted(recorded) == sorted(
            f"{who} {number}" for who in ("own", "other") for number in range(10)
        )


async def test_a_fenced_writer_is_told_with_its_next_call(url):
    """A durable write of a writer that was fenced is refused, and its writer learns of it."""
    async with perdure.connect(url) as store:
        old = await store.agent("airline/mia")
        new = await store.agent("airline/mia")
        await old.emit("note", "too late")
        assert (await old.refresh()).sequence == 0
        with pytest.raises(perdure.WriterFenced):
            await old.emit("note", "and again")
        await old.close()
        await new.emit("note", "mine")
        assert [event.data async for event in new.events()] == ["mine"]


async def test_each_write_that_is_refused_by_itself_is_told(url):
    """Those that name their own writer, even where good ones follow; the writer goes on then."""
    async with perdure.connect(url) as store:
        agent = await store.agent("airline/mia")
        for number in (1, 5, 3, 6):  # The third one is none that was lost: it has been passed.
            await agent.emit("note", number, writer="crm", writer_sequence=number)
        await agent.emit("note", "good")
        assert (await agent.refresh()).sequence == await agent.sequence()
        recorded = [event.data async for event in agent.events()]
        assert recorded == [1, 5, 6, "good"]
        with pytest.raises(perdure.SequenceConflict, match="writer crm gave"):
            await agent.emit("note", "not written")
        await agent.emit("note", "written")
        assert [event.data async for event in agent.events()] == [*recorded, "written"]
        assert agent.state.sequence == len(recorded) + 1


async def test_closing_tells_who_was_not_told(url):
    """A writer whose last acknowledged write was refused learns it at the latest when it closes."""
    async with perdure.connect(url) as store:
        old = await store.agent("airline/mia")
        await store.agent("airline/mia")
        await old.emit("note", "too late")
        with pytest.raises(perdure.WriterFenced):
            await old.close()


async def test_an_expectation_waits_for_its_verdict(url):
    """Whatever it waits for otherwise: a write that may be refused says whether it was."""
    async with perdure.connect(url) as store:
        first = await store.emit("airline/mia", "note", 1, expected_sequence=0)
        assert first.sequence == 1
        with pytest.raises(perdure.SequenceConflict):
            await store.emit("airline/mia", "note", 2, expected_sequence=0, ack="sent")


async def test_what_is_sent_is_recorded_in_order_when_the_store_is_closed(url):
    """Writes that waited for nothing are there after closing, each once, in their order."""
    async with perdure.connect(url) as store:
        agent = await store.agent("airline/mia")
        for number in range(200):
            await agent.emit("note", number, ack="sent")
    async with perdure.connect(url) as store:
        state = await store.view("airline/mia").state_at(fresh=True)
        assert state.sequence == 200
        assert [event.data async for event in store.view("airline/mia").events()] == list(
            range(200)
        )


async def test_an_unknown_ack_is_refused(url):
    """What is not one of the three names is an error that lists them."""
    async with perdure.connect(url) as store:
        with pytest.raises(perdure.InvalidData, match="sent, durable, recorded"):
            await store.emit("airline/mia", "note", 1, ack="maybe")


async def test_what_was_answered_stays_in_the_state_while_it_is_read_again(url, monkeypatch):
    """A state that was read before a write was recorded does not replace one that has it."""
    async with perdure.connect(url) as store:
        agent = await store.agent("airline/mia")
        await agent.emit("decision.made", 1)
        await agent.refresh()
        reading, recorded = asyncio.Event(), asyncio.Event()
        restored = agent._restored

        async def slowly(*arguments):
            found = await restored(*arguments)
            reading.set()
            await recorded.wait()
            return found

        monkeypatch.setattr(agent, "_restored", slowly)
        # Of an id that somebody gave nobody knows before it is recorded whether it is new.
        await agent.emit("decision.made", 2, id="given")
        async with asyncio.timeout(60):
            await reading.wait()
            writing = asyncio.create_task(agent.emit("decision.made", 3, ack="recorded"))
            view = store.view("airline/mia")

            async def all_recorded():
                return await view.sequence() == 3

            await until(all_recorded)
            # It is answered as soon as it is recorded, whoever reads.
            await asyncio.wait([writing], timeout=0.5)
            recorded.set()
            await writing
            assert list(agent.state.decisions) == [1, 2, 3]
            assert agent.state.sequence == 3
