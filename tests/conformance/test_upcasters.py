"""Old data loads: each event is read in the newest version that is known, or an error says why."""

import contextlib

import pytest

import perdure
from perdure.model.upcast import Upcasters


def lifting(*steps):
    """Upcasters of order.placed that add a field v2, v3 … for each step (from, to)."""
    upcasters = Upcasters()
    for start, end in steps:

        def add(data, end=end):
            data[f"v{end}"] = data["n"] * end
            return data

        add.__qualname__ = f"add_{start}_{end}"
        upcasters.upcaster("order.placed", start, end)(add)
    return upcasters


async def read(place, upcasters, **options):
    """The data of all events, over a connection with these upcasters."""
    store = await place.connect(upcasters=upcasters)
    return [event.data async for event in store.view("shop/ann").events(**options)]


async def test_a_chain_of_upcasters_lifts_old_events(place):
    """Data written before any upcaster was registered is read in the newest version."""
    store = await place.connect(upcasters=Upcasters())
    await store.emit("shop/ann", "order.placed", {"n": 1})
    await store.close()
    middle = await place.connect(upcasters=lifting((1, 2)))
    written = await middle.emit("shop/ann", "order.placed", {"n": 2, "v2": 4})
    assert written.version == 2
    await middle.close()
    newest = lifting((1, 2), (2, 3))
    assert await read(place, newest) == [{"n": 1, "v2": 2, "v3": 3}, {"n": 2, "v2": 4, "v3": 6}]
    assert await read(place, newest, lift=False) == [{"n": 1}, {"n": 2, "v2": 4}]
    assert await read(place, lifting((1, 3), (2, 3))) == [
        {"n": 1, "v3": 3},
        {"n": 2, "v2": 4, "v3": 6},
    ]


async def test_reading_changes_nothing_that_is_stored(place):
    """Lifting is for the reader: the stored event, its version and the chain stay as written."""
    store = await place.connect(upcasters=Upcasters())
    written = await store.emit("shop/ann", "order.placed", {"n": 1})
    await store.close()
    store = await place.connect(upcasters=lifting((1, 2)))
    view = store.view("shop/ann")
    [lifted] = [event async for event in view.events()]
    assert (lifted.version, lifted.data) == (2, {"n": 1, "v2": 2})
    assert [event async for event in view.events(lift=False)] == [written]
    assert (await view.verify()).sound


async def test_a_missing_upcaster_names_type_and_versions(place):
    """Where no way leads to the newest version, the error names type, versions and event."""
    store = await place.connect(upcasters=Upcasters())
    await store.emit("shop/ann", "order.placed", {"n": 1})
    await store.close()
    with pytest.raises(perdure.MissingUpcaster, match=r"order\.placed") as caught:
        await read(place, lifting((2, 3)))
    assert "version 1" in caught.value.message
    assert "to 3" in caught.value.message
    assert "shop/ann@1" in caught.value.message
    assert "upcaster" in caught.value.hint
    assert await read(place, Upcasters()) == [{"n": 1}]


async def test_an_event_of_newer_code_says_so(place):
    """An event in a version that this code doesn't know yet is an error that says to update."""
    store = await place.connect(upcasters=lifting((1, 2), (2, 3)))
    await store.emit("shop/ann", "order.placed", {"n": 1})
    await store.close()
    with pytest.raises(perdure.MissingUpcaster, match="version 3") as caught:
        await read(place, lifting((1, 2)))
    assert "newer" in caught.value.hint


async def test_other_events_of_the_agent_can_still_be_read(place):
    """An event that can't be lifted is in nobody's way who doesn't ask for it."""
    store = await place.connect(upcasters=Upcasters())
    await store.emit("shop/ann", "note", 1)
    await store.emit("shop/ann", "order.placed", {"n": 1})
    await store.close()
    assert await read(place, lifting((2, 3)), last=1) == [1]


async def test_a_failing_upcaster_names_the_event(place):
    """What an upcaster raises comes out as an error that names it and the event."""
    store = await place.connect(upcasters=Upcasters())
    await store.emit("shop/ann", "order.placed", {"other": 1})
    await store.close()
    with pytest.raises(perdure.ProjectionFailed, match=r"add_1_2.*shop/ann@1.*order.placed"):
        await read(place, lifting((1, 2)))


async def test_states_are_folded_from_lifted_events(place):
    """A built-in type that got an upcaster is in the state as lifted, live and rebuilt."""
    store = await place.connect(upcasters=Upcasters())
    await store.emit("shop/ann", "decision.made", {"n": 1})
    await store.close()
    upcasters = Upcasters()

    @upcasters.upcaster("decision.made", 1, 2)
    def with_why(data):
        return {**data, "why": "unknown"}

    agent = await (await place.connect(upcasters=upcasters)).agent("shop/ann")
    await agent.emit("decision.made", {"n": 2, "why": "known"})
    await agent.emit("decision.made", {"n": 3}, version=1)
    expected = [
        {"n": 1, "why": "unknown"},
        {"n": 2, "why": "known"},
        {"n": 3, "why": "unknown"},
    ]
    assert list(agent.state.decisions) == expected
    assert list((await agent.state_at()).decisions) == expected


async def test_a_new_upcaster_never_meets_a_stale_checkpoint(place, monkeypatch):
    """States that were saved before an upcaster was registered are folded again with it."""
    monkeypatch.setattr("perdure.checkpointer.policy.due", lambda tail, state, at_rest=False: True)
    store = await place.connect(upcasters=Upcasters())
    agent = await store.agent("shop/ann")
    for n in range(5):
        await agent.emit("decision.made", {"n": n})
    await agent.close()
    await store.close()
    upcasters = Upcasters()

    @upcasters.upcaster("decision.made", 1, 2)
    def with_why(data):
        return {**data, "why": "unknown"}

    store = await place.connect(upcasters=upcasters)
    agent = await store.agent("shop/ann")
    expected = [{"n": n, "why": "unknown"} for n in range(5)]
    assert list(agent.state.decisions) == expected
    assert [event.data async for event in agent.events()] == expected
    assert (await agent.verify()).sound


async def test_a_state_that_cannot_be_folded_says_so_every_time(place):
    """An event whose upcaster fails is never left out of the state silently, now or later."""
    upcasters = Upcasters()

    @upcasters.upcaster("order.placed", 1, 2)
    def broken(data):
        raise KeyError("price")

    agent = await (await place.connect(upcasters=upcasters)).agent("shop/ann")
    await agent.emit("decision.made", 1)
    with contextlib.suppress(perdure.ProjectionFailed):
        await agent.emit("order.placed", {"n": 1}, version=1)
    for _ in range(3):
        with contextlib.suppress(perdure.ProjectionFailed):
            await agent.emit("decision.made", 2)
        # Either the state of a time before the event, or an error.
        with contextlib.suppress(perdure.ProjectionFailed):
            assert agent.state.sequence == 1
    with pytest.raises(perdure.ProjectionFailed):
        await agent.state_at()


async def test_a_write_is_answered_whatever_becomes_of_the_state(place):
    """An error means that nothing was recorded: a state that can't be folded fails no write."""
    upcasters = Upcasters()
    mended = False

    @upcasters.upcaster("order.placed", 1, 2)
    def lifted(data):
        return data if mended else data["price"]

    store = await place.connect(upcasters=upcasters)
    agent = await store.agent("shop/ann")
    # Many at once fold the state; after another's write the agent catches up; an undo reloads.
    for _ in range(100):
        await agent.emit("order.placed", {}, version=1)
    await store.emit("shop/ann", "note")
    assert (await agent.emit("decision.made", 1)).sequence == 102
    for _ in range(2):
        with pytest.raises(perdure.ProjectionFailed):
            _ = agent.state
    assert (await agent.revert(to=0)).event.sequence == 103
    assert agent.state == await agent.state_at()
    assert (await agent.emit("order.placed", {}, version=1)).sequence == 104
    with pytest.raises(perdure.ProjectionFailed):
        _ = agent.state
    mended = True
    assert (await agent.emit("decision.made", 2)).sequence == 105
    assert list(agent.state.decisions) == [2]


async def test_emitting_a_version_that_this_code_cannot_read_is_refused(place):
    """A write that its own writer could not read back is refused before it is recorded."""
    agent = await (await place.connect()).agent("shop/ann")
    with pytest.raises(perdure.InvalidData, match=r"version 7 of message\.added"):
        await agent.emit("message.added", {"role": "user", "content": "hi"}, version=7)
    assert await agent.sequence() == 0
    await agent.emit("message.added", {"role": "user", "content": "hi"})
    assert len(agent.state.messages) == 1
    store = await place.connect(upcasters=lifting((2, 3)))
    for version in (1, 4):
        with pytest.raises(perdure.InvalidData, match=rf"version {version} of order\.placed"):
            await store.emit("shop/ann", "order.placed", {"n": 1}, version=version)
    assert (await store.emit("shop/ann", "order.placed", {"n": 1}, version=2)).version == 2


async def test_wrong_steps_are_refused():
    """A step that goes down, stays, or is there twice, can't be registered."""
    upcasters = lifting((1, 2))
    for start, end in [(2, 1), (2, 2), (0, 1), ("1", 2)]:
        with pytest.raises(perdure.InvalidData):
            upcasters.upcaster("order.placed", start, end)
    with pytest.raises(perdure.InvalidData, match="add_1_2"):

        @upcasters.upcaster("order.placed", 1, 3)
        def another(data):
            return data
