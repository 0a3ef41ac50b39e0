"""Who may write: exclusive opening by epochs, and contributions that need none."""

import asyncio
import json
import sys

import pytest

import perdure


async def test_the_later_opener_wins(store):
    """The newest handle of an agent writes; the earlier one's next write raises."""
    earlier = await store.agent("airline/mia")
    await earlier.emit("note", 1)
    later = await store.agent("airline/mia")
    assert later.epoch > earlier.epoch
    assert later.state.sequence == 1
    with pytest.raises(perdure.WriterFenced, match="airline/mia"):
        await earlier.emit("note", "lost")
    await later.emit("note", 2)
    assert [event.data async for event in later.events()] == [1, 2]


@pytest.mark.parametrize(
    "write",
    [
        lambda agent: agent.emit("note"),
        lambda agent: agent.emit_many([("note", 1), ("note", 2)]),
        lambda agent: agent.records.put("profile", 1),
        lambda agent: agent.records.delete("profile"),
        lambda agent: agent.remember("prefers aisle seats"),
        lambda agent: agent.checkpoint("policy", {"a": 1}),
        lambda agent: agent.revert(to=0),
    ],
    ids=["emit", "emit_many", "put", "delete", "remember", "checkpoint", "revert"],
)
async def test_every_write_of_an_earlier_handle_is_refused(place, write):
    """Whatever way an earlier handle tries to write, and from wherever, it is told."""
    earlier = await (await place.connect()).agent("airline/mia")
    await earlier.emit("note", 1)
    later = await (await place.connect()).agent("airline/mia")
    with pytest.raises(perdure.WriterFenced):
        await write(earlier)
    assert await later.sequence() == 1


async def test_an_earlier_handle_still_reads(place):
    """Being fenced ends writing, not reading: the earlier handle sees what the later one does."""
    earlier = await (await place.connect()).agent("airline/mia")
    later = await (await place.connect()).agent("airline/mia")
    await later.emit("decision.made", {"choice": 1})
    assert [event.data async for event in earlier.events()] == [{"choice": 1}]
    assert (await earlier.refresh()) == later.state


async def test_the_earlier_one_may_take_the_agent_back(place):
    """Opening again gives a newer epoch: now the other one is fenced."""
    store_a, store_b = await place.connect(), await place.connect()
    a = await store_a.agent("airline/mia")
    b = await store_b.agent("airline/mia")
    again = await store_a.agent("airline/mia")
    assert a.epoch < b.epoch < again.epoch
    await again.emit("note", 1)
    for fenced in (a, b):
        with pytest.raises(perdure.WriterFenced):
            await fenced.emit("note", "lost")
    assert await again.sequence() == 1


async def test_every_opening_has_an_epoch_of_its_own(place):
    """Many that open one agent at once get different epochs, and exactly one of them can write."""
    connections = [await place.connect() for _ in range(3)]
    handles = await asyncio.gather(
        *[store.agent("airline/mia") for store in connections for _ in range(4)]
    )
    assert len({handle.epoch for handle in handles}) == len(handles)
    answers = await asyncio.gather(
        *[handle.emit("note", handle.epoch) for handle in handles], return_exceptions=True
    )
    won = [answer for answer in answers if isinstance(answer, perdure.Event)]
    assert [event.data for event in won] == [max(handle.epoch for handle in handles)]
    assert all(isinstance(a, perdure.Event | perdure.WriterFenced) for a in answers)


async def test_a_revived_writer_is_fenced(place):
    """A process that was thought dead, and whose agent another took over, writes nothing."""
    hung = await (await place.connect()).agent("airline/mia")
    await hung.emit("note", "before")
    successor = await (await place.connect()).agent("airline/mia")
    await successor.emit_many([("note", i) for i in range(300)])
    for _ in range(3):
        with pytest.raises(perdure.WriterFenced):
            await hung.emit("note", "revived")
    assert await successor.sequence() == 301


async def test_epochs_only_rise(place):
    """An agent's epoch outlives every process: each opening's is above all before."""
    epochs = []
    for _ in range(4):
        store = await place.connect()
        epochs.append((await store.agent("airline/mia")).epoch)
        await store.close()
    assert epochs == sorted(set(epochs))


async def test_events_carry_the_epoch_of_their_writer(store):
    """An event says which opening wrote it, and 0 where it was contributed without one."""
    first = await store.agent("airline/mia")
    await first.emit("note")
    second = await store.agent("airline/mia")
    await second.emit("note")
    await store.emit("airline/mia", "note")
    found = [event.epoch async for event in second.events()]
    assert found == [first.epoch, second.epoch, 0]


async def test_contributions_mix_with_an_opened_agent(place):
    """What others contribute and what the owner writes share one order without gaps."""
    owner = await (await place.connect()).agent("airline/mia")
    other = await place.connect()

    async def own():
        return [await owner.emit("decision.made", {"own": i}) for i in range(30)]

    async def contributed():
        return [await other.emit("airline/mia", "decision.made", {"other": i}) for i in range(30)]

    mine, theirs = await asyncio.gather(own(), contributed())
    recorded = [event async for event in owner.events()]
    assert [event.sequence for event in recorded] == list(range(1, 61))
    assert sorted(mine + theirs, key=lambda event: event.sequence) == recorded
    await owner.refresh()
    assert list(owner.state.decisions) == [event.data for event in recorded]
    assert owner.state == await owner.state_at()


async def test_the_owner_sees_contributions_with_its_next_write(place):
    """After a write of the owner, its state holds all that was recorded before it."""
    owner = await (await place.connect()).agent("airline/mia")
    other = await place.connect()
    await owner.emit("decision.made", 1)
    await other.emit("airline/mia", "decision.made", 2)
    assert list(owner.state.decisions) == [1]
    await owner.emit("decision.made", 3)
    assert list(owner.state.decisions) == [1, 2, 3]


async def test_a_contribution_makes_an_agent_and_opens_none(store):
    """Contributing to an agent that is not there makes it; whoever opened one keeps it."""
    await store.emit("airline/new", "note", 1)
    owner = await store.agent("airline/new")
    await store.emit("airline/new", "note", 2)
    await owner.emit("note", 3)
    assert [event.data async for event in owner.events()] == [1, 2, 3]


OTHER = """
import asyncio, json, sys
import perdure

async def main():
    async with perdure.connect(sys.argv[1]) as store:
        agent = await store.agent("airline/mia")
        event = await agent.emit("note", "other process")
        print(json.dumps([agent.epoch, event.sequence]))

asyncio.run(main())
"""


async def test_another_process_fences_this_one(place):
    """An opening by another process counts as one here: the later opener is the writer."""
    agent = await (await place.connect()).agent("airline/mia")
    await agent.emit("note", "this process")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OTHER, place.url, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    epoch, sequence = json.loads(output)
    assert epoch > agent.epoch
    assert sequence == 2
    with pytest.raises(perdure.WriterFenced):
        await agent.emit("note", "lost")
    recorded = [event.data async for event in agent.events()]
    assert recorded == ["this process", "other process"]
