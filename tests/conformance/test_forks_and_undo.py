"""Going another way from a past point, in a fork or by an undo, as one cut through everything."""

import asyncio
import datetime as dt

import pytest
from tests.conformance import reference

import perdure

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


async def decided(agent):
    """Every state's decisions, sequence by sequence."""
    last = await agent.sequence()
    return [list((await agent.state_at(at)).decisions) for at in range(last + 1)]


@pytest.fixture
async def mia(store):
    """An agent with six decisions, 1 to 6, each as its sequence."""
    agent = await store.agent("airline/mia")
    for number in range(1, 7):
        await agent.emit("decision.made", number)
    return agent


async def test_a_fork_shares_history_and_goes_its_own_way(mia):
    """A fork has its parent's states up to the fork; after it, neither sees the other."""
    twin = await mia.fork(at=4, name="airline/twin")
    assert twin.state.sequence == 5
    assert list(twin.state.decisions) == [1, 2, 3, 4]
    await twin.emit("decision.made", "twin")
    await mia.emit("decision.made", 7)
    assert list(twin.state.decisions) == [1, 2, 3, 4, "twin"]
    assert list(mia.state.decisions) == [1, 2, 3, 4, 5, 6, 7]
    recorded = [event async for event in twin.events()]
    assert [event.sequence for event in recorded] == [1, 2, 3, 4, 5, 6]
    assert [event.subject for event in recorded] == ["airline/mia"] * 4 + ["airline/twin"] * 2
    assert recorded[4].type == "agent.forked"
    assert recorded[4].data == {"parent": "airline/mia", "at": 4}
    for at in range(1, 5):
        assert await twin.state_at(at) == await mia.state_at(at)


@pytest.mark.parametrize("at", [0, 1, 6, None])
async def test_a_fork_at_any_point(mia, at):
    """A fork may be made before the first event, at the head, and anywhere between."""
    point = 6 if at is None else at
    twin = await mia.fork(at=at, name="airline/twin")
    assert list(twin.state.decisions) == list(range(1, point + 1))
    assert (await twin.emit("decision.made", "twin")).sequence == point + 2
    assert (await twin.verify()).sound


async def test_a_fork_at_a_time(mia):
    """A fork may be made at a time, as state_at would find it."""
    await mia.emit("decision.made", 7, time=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
    twin = await mia.fork(time="2099-01-01T00:00Z", name="airline/twin")
    assert list(twin.state.decisions) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(perdure.InvalidData):
        await mia.fork(at=1, time=NOON, name="airline/other")


async def test_a_fork_of_a_fork(mia):
    """Forks of forks at points of their own part, of their parent's, and at the seam."""
    twin = await mia.fork(at=3, name="airline/twin")
    await twin.emit("decision.made", "a")
    await twin.emit("decision.made", "b")
    for at, expected in [
        (6, [1, 2, 3, "a", "b"]),
        (5, [1, 2, 3, "a"]),
        (4, [1, 2, 3]),
        (3, [1, 2, 3]),
        (2, [1, 2]),
        (0, []),
    ]:
        child = await twin.fork(at=at, name=f"airline/child-{at}")
        assert list(child.state.decisions) == expected
        await child.emit("decision.made", "c")
        assert list((await child.state_at()).decisions) == [*expected, "c"]
        assert [event.sequence async for event in child.events()] == list(range(1, at + 3))
        assert (await child.verify()).sound


async def test_a_fork_needs_a_free_name(mia, store):
    """A name that is taken, opened or only contributed to, is refused, and stays as it was."""
    await store.emit("airline/other", "note", 1)
    for name in ("airline/mia", "airline/other"):
        with pytest.raises(perdure.AgentExists, match=name):
            await mia.fork(at=1, name=name)
    with pytest.raises(perdure.InvalidName):
        await mia.fork(at=1, name="twin")
    assert await store.view("airline/other").sequence() == 1


async def test_a_fork_needs_a_point_that_is_there(mia, store):
    """A fork at a sequence after the head, or of nobody, makes nothing."""
    with pytest.raises(perdure.NotFound):
        await mia.fork(at=7, name="airline/twin")
    with pytest.raises(perdure.NotFound):
        await store.fork("airline/nobody", name="airline/twin")
    assert [summary.agent async for summary in store.agents()] == ["airline/mia"]


async def test_a_name_that_was_only_tried_is_free(mia, store):
    """A refused contribution makes no agent: its name can be forked to at once."""
    answers = await asyncio.gather(
        store.emit("airline/twin", "note", expected_sequence=9),
        mia.emit("decision.made", 7),
        return_exceptions=True,
    )
    assert isinstance(answers[0], perdure.SequenceConflict)
    twin = await mia.fork(at=3, name="airline/twin")
    await twin.emit("decision.made", "twin")
    assert list(twin.state.decisions) == [1, 2, 3, "twin"]
    assert (await twin.verify()).sound


async def test_a_fork_and_a_contribution_of_one_name_at_once(mia, store):
    """Of a fork and a contribution that make the same agent at once, one order holds."""
    contributed, forked = await asyncio.gather(
        store.emit("airline/twin", "decision.made", "contributed"),
        mia.fork(at=2, name="airline/twin"),
        return_exceptions=True,
    )
    assert isinstance(contributed, perdure.Event)
    expected = ["contributed"]
    if not isinstance(forked, perdure.AgentExists):
        assert isinstance(forked, perdure.Agent)
        expected = [1, 2, "contributed"]
    state = await store.view("airline/twin").state_at()
    assert list(state.decisions) == expected


async def test_of_two_forks_to_one_name_one_wins(place):
    """The same name forked to from two connections at once is made once."""
    stores = [await place.connect(), await place.connect()]
    await stores[0].emit("airline/mia", "decision.made", 1)
    answers = await asyncio.gather(
        *[store.fork("airline/mia", 1, name="airline/twin") for store in stores for _ in range(3)],
        return_exceptions=True,
    )
    assert sum(isinstance(answer, perdure.Agent) for answer in answers) == 1
    assert sum(isinstance(answer, perdure.AgentExists) for answer in answers) == 5


async def test_forking_does_not_disturb_the_parent(mia, store):
    """Forking an agent that somebody has open fences nobody and records nothing in it."""
    await store.fork("airline/mia", 3, name="airline/twin")
    assert (await mia.emit("decision.made", 7)).sequence == 7


async def test_a_fork_keeps_what_its_parent_takes_back(mia):
    """When the parent undoes the part that a fork shares, the fork still has it."""
    twin = await mia.fork(at=5, name="airline/twin")
    await mia.revert(to=1)
    await mia.emit("decision.made", "other")
    assert list(mia.state.decisions) == [1, "other"]
    assert list((await twin.state_at()).decisions) == [1, 2, 3, 4, 5]
    await twin.emit("decision.made", "twin")
    assert list(twin.state.decisions) == [1, 2, 3, 4, 5, "twin"]


async def test_a_fork_of_an_undone_past(mia):
    """A fork at a point that was undone later has the state that was there then."""
    await mia.revert(to=2)
    await mia.emit("decision.made", "other")
    undone = await mia.fork(at=6, name="airline/undone")
    assert list(undone.state.decisions) == [1, 2, 3, 4, 5, 6]
    kept = await mia.fork(at=8, name="airline/kept")
    assert list(kept.state.decisions) == [1, 2, "other"]


async def test_undo_goes_back_and_on(mia):
    """After an undo the state is the one at its target; what comes next follows on that."""
    answer = await mia.revert(to=2)
    assert answer.event.sequence == 7
    assert answer.event.type == "agent.reverted"
    assert list(mia.state.decisions) == [1, 2]
    assert mia.state.sequence == 7
    await mia.emit("decision.made", 8)
    assert list(mia.state.decisions) == [1, 2, 8]
    assert [event.sequence async for event in mia.events()] == list(range(1, 9))
    assert list((await mia.state_at(6)).decisions) == [1, 2, 3, 4, 5, 6]


async def test_an_undo_can_be_undone(mia):
    """Going back to the sequence before an undo gives back what it took, again and again."""
    await mia.revert(to=2)
    await mia.revert(to=6)
    assert list(mia.state.decisions) == [1, 2, 3, 4, 5, 6]
    await mia.revert(to=7)
    assert list(mia.state.decisions) == [1, 2]
    await mia.emit("decision.made", "x")
    await mia.revert(to=0)
    assert list(mia.state.decisions) == []
    await mia.revert(to=10)
    assert list(mia.state.decisions) == [1, 2, "x"]
    expected = reference.states("airline/mia", [event async for event in mia.events()])
    assert await decided(mia) == [state["decisions"] for state in expected]


async def test_undo_into_the_parents_part_of_a_fork(mia):
    """A fork may go back to before it was forked: the parent's past is its own past."""
    twin = await mia.fork(at=4, name="airline/twin")
    await twin.emit("decision.made", "a")
    await twin.revert(to=2)
    await twin.emit("decision.made", "b")
    assert list(twin.state.decisions) == [1, 2, "b"]
    await twin.revert(to=0)
    assert list(twin.state.decisions) == []
    await twin.revert(to=6)
    assert list(twin.state.decisions) == [1, 2, 3, 4, "a"]
    child = await twin.fork(at=8, name="airline/child")
    assert list(child.state.decisions) == [1, 2, "b"]
    assert list(mia.state.decisions) == [1, 2, 3, 4, 5, 6]


async def test_undo_needs_a_point_that_is_there(mia):
    """Going back to the future or to no sequence is refused, and records nothing."""
    for wrong, error in [
        (7, perdure.NotFound),
        (-1, perdure.InvalidData),
        ("2", perdure.InvalidData),
    ]:
        with pytest.raises(error):
            await mia.revert(to=wrong)
    assert await mia.sequence() == 6


async def test_undo_and_fork_are_not_for_emitting(mia):
    """The events that undo and fork record can't be emitted by hand, which would be half a deed."""
    for kind in ("agent.reverted", "agent.forked", "checkpoint.saved"):
        with pytest.raises(perdure.InvalidData, match=kind):
            await mia.emit(kind, {"to": 0, "parent": "airline/mia", "at": 0})
    assert await mia.sequence() == 6


async def test_undo_lists_the_outside_effects_it_cannot_take_back(store):
    """Revert gives the undone tool calls and answers, each once, and none that stays."""
    agent = await store.agent("airline/mia")
    await agent.emit("tool.called", {"id": "0", "name": "kept"})
    await agent.emit("decision.made", 2)
    await agent.emit("tool.called", {"id": "1", "name": "book"})
    await agent.emit("tool.executed", {"id": "1", "name": "book", "result": "ok"})
    assert [event.sequence for event in (await agent.revert(to=2)).effects] == [3, 4]
    await agent.emit("tool.called", {"id": "2", "name": "pay"})
    assert [event.sequence for event in (await agent.revert(to=2)).effects] == [6]
    assert [event.sequence for event in (await agent.revert(to=6)).effects] == []


async def test_effects_that_happen_while_undoing_are_listed(store):
    """A tool call that is recorded between asking for an undo and the undo itself is undone too."""
    agent = await store.agent("airline/mia")
    await agent.emit("decision.made", 1)
    called, reverted = await asyncio.gather(
        agent.emit("tool.called", {"id": "1", "name": "book"}), agent.revert(to=1)
    )
    assert called.sequence < reverted.event.sequence
    assert list(agent.state.tools.calls) == []
    assert reverted.effects == [called]


async def test_writes_during_an_undo_are_in_the_state(store):
    """Emits that wait together with an undo end up in a state that equals the folded one."""
    agent = await store.agent("airline/mia")
    for number in range(1, 6):
        await agent.emit("decision.made", number)
    await asyncio.gather(
        *[agent.emit("decision.made", f"a{i}") for i in range(5)],
        agent.revert(to=2),
        *[agent.emit("decision.made", f"b{i}") for i in range(5)],
    )
    assert agent.state == await agent.state_at()
    expected = reference.states("airline/mia", [event async for event in agent.events()])
    assert reference.plain(agent.state) == expected[-1]


async def one_cut(agent):
    """What an agent has of everything: decisions, records, memories and objects."""
    hits = await agent.recall("fact", k=50)
    return (
        list(agent.state.decisions),
        dict(agent.state.records),
        sorted(hit.text for hit in hits),
        {name: await agent.restore(name) for name in await agent.checkpoints()},
    )


BEFORE = ([1], {"profile": "old"}, ["fact one", "fact two"], {"policy": {"v": 1}})
AFTER = ([1, 2], {"profile": "new", "more": 1}, ["fact one", "fact three"], {"policy": {"v": 2}})


@pytest.fixture
async def busy(store):
    """An agent that did everything before and after sequence `cut`."""
    agent = await store.agent("airline/busy")
    await agent.emit("decision.made", 1)
    await agent.records.put("profile", "old")
    await agent.remember("fact one")
    two = await agent.remember("fact two")
    await agent.checkpoint("policy", {"v": 1})
    cut = agent.state.sequence
    await agent.emit("decision.made", 2)
    await agent.records.put("profile", "new")
    await agent.records.put("more", 1)
    await agent.remember("fact three")
    await agent.forget(two)
    await agent.checkpoint("policy", {"v": 2})
    return agent, cut


async def test_an_undo_is_one_cut(busy):
    """An undo covers state, records, memory and object checkpoints alike; so does its undo."""
    agent, cut = busy
    last = agent.state.sequence
    assert await one_cut(agent) == AFTER
    await agent.revert(to=cut)
    assert await one_cut(agent) == BEFORE
    await agent.revert(to=last)
    assert await one_cut(agent) == AFTER
    await agent.revert(to=0)
    assert await one_cut(agent) == ([], {}, [], {})


async def test_a_fork_is_one_cut(busy):
    """A fork has state, records, memory and objects of its point, and shares no later one."""
    agent, cut = busy
    twin = await agent.fork(at=cut, name="airline/twin")
    assert await one_cut(twin) == BEFORE
    await twin.remember("fact of the twin")
    await twin.checkpoint("policy", {"v": "twin"})
    await twin.records.delete("profile")
    assert await one_cut(agent) == AFTER
    assert await one_cut(twin) == (
        [1], {}, ["fact of the twin", "fact one", "fact two"], {"policy": {"v": "twin"}},
    )  # fmt: skip
    await agent.revert(to=1)
    assert (await one_cut(twin))[2] == ["fact of the twin", "fact one", "fact two"]


async def test_as_of_a_past_sequence_is_one_cut(busy):
    """State, records, memory and objects asked as of one sequence show the same moment."""
    agent, cut = busy
    state = await agent.state_at(cut)
    hits = await agent.recall("fact", k=50, seq=cut)
    assert (
        list(state.decisions),
        dict(state.records),
        sorted(hit.text for hit in hits),
        {"policy": await agent.restore("policy", seq=cut)},
    ) == BEFORE


async def test_a_fork_before_the_first_event_leaves_its_parent_as_it_is(store):
    """What the parent writes after it was forked at its beginning is read, by everybody."""
    parent = await store.agent("airline/mia")
    twin = await parent.fork(at=0, name="airline/twin")
    written = await parent.emit("decision.made", 1)
    assert [event.id async for event in store.view("airline/mia").events()] == [written.id]
    assert (await twin.state_at()).decisions == []
