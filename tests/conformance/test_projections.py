"""Projections of users: plain functions over events, never answered from a stale checkpoint."""

import dataclasses

import msgspec
import pytest
from tests.conformance.places import backend

import perdure
from perdure.model.projection import Projections
from perdure.ports import SavedState


async def spent_by(place, projections):
    """An agent that paid 1, 2 and 3, over a connection with these projections."""
    store = await place.connect(projections=projections)
    agent = await store.agent("airline/mia")
    if agent.state.sequence == 0:
        for price in (1, 2, 3):
            await agent.emit("paid", {"price": price})
    return store, agent


async def test_a_projection_folds_events(place):
    """A registered function is folded over the events, at every point in the past too."""
    projections = Projections()

    @projections.projection("spent", initial=lambda: 0)
    def spent(state, event):
        return state + event.data["price"] if event.type == "paid" else state

    _, agent = await spent_by(place, projections)
    assert [await agent.project("spent", at) for at in range(4)] == [0, 1, 3, 6]
    assert await agent.project("spent") == 6
    await agent.revert(to=1)
    assert await agent.project("spent") == 1
    twin = await agent.fork(at=2, name="airline/twin")
    assert await twin.project("spent") == 3


async def test_the_state_given_may_be_changed_in_place(place):
    """A function that changes the state it is given gets a fresh one each time."""
    projections = Projections()

    @projections.projection("prices", initial=list)
    def prices(state, event):
        state.append(event.data["price"])
        return state

    _, agent = await spent_by(place, projections)
    for _ in range(3):
        assert await agent.project("prices") == [1, 2, 3]


def v1(projections):
    """The first code of a projection."""

    @projections.projection("spent", version=1, initial=lambda: 0)
    def spent(state, event):
        return state + event.data["price"]


def v2(projections):
    """The same function in a new version."""

    @projections.projection("spent", version=2, initial=lambda: 0)
    def spent(state, event):
        return state + event.data["price"]


def other_code(projections):
    """The same version with other code."""

    @projections.projection("spent", version=1, initial=lambda: 0)
    def spent(state, event):
        return state + event.data["price"] * 1


def other_constant(projections):
    """The same version where only a constant differs."""

    @projections.projection("spent", version=1, initial=lambda: 0)
    def spent(state, event):
        return state + event.data["price"] + 0


def other_initial(projections):
    """The same version where only the initial state differs."""

    @projections.projection("spent", version=1, initial=lambda: 0 + 0.0)
    def spent(state, event):
        return state + event.data["price"]


async def saved(store, projections, state):
    """Have the store hold a checkpoint of the projection's state, at sequence 3."""
    projection = projections.get("spent")
    await backend(store).states.save(
        SavedState("airline/mia", 3, "spent", projection.key, projection.encode(state))
    )


async def test_a_checkpoint_of_the_same_code_is_used(place):
    """A saved state is what the fold starts from: a marked one is seen in the answer."""
    projections = Projections()
    v1(projections)
    store, agent = await spent_by(place, projections)
    await saved(store, projections, 1006)
    await agent.emit("paid", {"price": 4})
    assert await agent.project("spent") == 1010
    assert await agent.project("spent", 2) == 3


@pytest.mark.parametrize("changed", [v2, other_code, other_constant, other_initial])
async def test_a_changed_projection_never_reads_a_stale_checkpoint(place, changed):
    """Another version, or other code under the same version, is folded from the events."""
    projections = Projections()
    v1(projections)
    store, _ = await spent_by(place, projections)
    await saved(store, projections, 1006)
    await store.close()
    later = Projections()
    changed(later)
    _, agent = await spent_by(place, later)
    assert await agent.project("spent") == 6


async def test_a_saved_state_of_another_type_is_folded_again(place):
    """Where the type of the state was changed, what can't be read in it costs time and no more."""
    projections = Projections()

    @projections.projection("spent", initial=lambda: 0, state_type=int)
    def spent(state, event):
        return state + event.data["price"]

    store, agent = await spent_by(place, projections)
    key = projections.get("spent").key
    state = SavedState("airline/mia", 3, "spent", key, b'{"total":99}')
    await backend(store).states.save(state)
    assert await agent.project("spent") == 6
    assert (await agent.verify()).sound


async def test_a_failing_function_names_the_event(place):
    """What a function raises comes out as an error that names projection and event."""
    projections = Projections()

    @projections.projection("broken")
    def broken(state, event):
        return state | {event.data["key"]: 1}

    _, agent = await spent_by(place, projections)
    with pytest.raises(perdure.ProjectionFailed, match=r"broken.*airline/mia@1.*paid") as caught:
        await agent.project("broken")
    assert isinstance(caught.value.__cause__, KeyError)
    assert await agent.project("broken", 0) == {}
    assert (await agent.emit("paid", {"price": 4})).sequence == 4


@dataclasses.dataclass
class Account:
    """A state of a user's own type."""

    prices: list[int] = dataclasses.field(default_factory=list)
    names: dict[str, int] = dataclasses.field(default_factory=dict)


class Total(msgspec.Struct):
    """A state of a user's own msgspec type."""

    total: int = 0


@pytest.mark.parametrize("kind", [Account, Total])
async def test_a_state_of_a_type_of_ones_own(place, kind):
    """With state_type a state is of the user's class, also when it comes from a checkpoint."""
    projections = Projections()

    @projections.projection("spent", initial=kind, state_type=kind)
    def spent(state, event):
        if kind is Account:
            return Account([*state.prices, event.data["price"]], state.names)
        return Total(state.total + event.data["price"])

    store, agent = await spent_by(place, projections)
    expected = await agent.project("spent")
    assert isinstance(expected, kind)
    await saved(store, projections, expected)
    again = await agent.project("spent")
    assert isinstance(again, kind)
    assert again == expected


async def test_an_unknown_projection(store):
    """Asking for a projection that nobody registered names it and those that are known."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.NotFound, match="spent") as caught:
        await agent.project("spent")
    assert "state" in caught.value.hint


async def test_the_built_in_name_is_taken():
    """A projection of a user can't stand in for the built-in one."""
    with pytest.raises(perdure.InvalidInput):
        Projections().projection("state")
