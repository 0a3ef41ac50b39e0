"""Object checkpoints: any object, as of any moment."""

import pytest

import perdure


async def test_an_object_is_restored(place):
    """What was saved is restored in another connection, equal and of the same types."""
    value = {"weights": [0.5, -0.0, 1e300], "tags": {"a", "b"}, "pair": (1, b"\x00\xff"), "n": None}
    agent = await (await place.connect()).agent("airline/mia")
    saved = await agent.checkpoint("policy", value)
    view = (await place.connect()).view("airline/mia")
    again = await view.restore("policy")
    assert again == value
    assert [type(item) for item in again.values()] == [type(item) for item in value.values()]
    assert await view.checkpoints() == {"policy": saved}
    assert agent.state.checkpoints["policy"] == saved
    assert saved.sequence == 1


async def test_shared_and_circular_references_survive(store):
    """An object that holds itself, or another one twice, is restored so."""
    shared = ["x"]
    value = {"a": shared, "b": shared}
    value["self"] = value
    agent = await store.agent("airline/mia")
    await agent.checkpoint("policy", value)
    again = await agent.restore("policy")
    assert again["self"] is again
    assert again["a"] is again["b"]
    assert again["a"] == ["x"]


async def test_older_ones_stay(store):
    """Restore as of a sequence gives the object that was the newest of its name then."""
    agent = await store.agent("airline/mia")
    for version in (1, 2, 3):
        await agent.checkpoint("policy", {"version": version})
    await agent.checkpoint("other", "x")
    assert [await agent.restore("policy", seq=at) for at in (1, 2, 3, 4)] == [
        {"version": version} for version in (1, 2, 3, 3)
    ]
    assert sorted(await agent.checkpoints(3)) == ["policy"]
    assert sorted(await agent.checkpoints()) == ["other", "policy"]
    with pytest.raises(perdure.NotFound):
        await agent.restore("other", seq=3)


async def test_the_same_object_is_kept_once(store):
    """Saving an equal object again, under any name and by any agent, stores nothing new."""
    value = {"weights": list(range(5000))}
    mia, bob = await store.agent("airline/mia"), await store.agent("airline/bob")
    saved = [
        await mia.checkpoint("policy", value),
        await mia.checkpoint("policy", dict(value)),
        await bob.checkpoint("copy", value),
    ]
    assert len({each.digest for each in saved}) == 1
    assert saved[0].stored < saved[0].size
    assert await bob.restore("copy") == value


async def test_a_missing_checkpoint_names_those_there_are(store):
    """Asking for a name that is not there lists the names that are."""
    agent = await store.agent("airline/mia")
    await agent.checkpoint("policy", 1)
    with pytest.raises(perdure.NotFound, match="weights") as caught:
        await agent.restore("weights")
    assert "policy" in caught.value.hint


async def test_an_object_that_cannot_be_saved_records_nothing(store):
    """An object that a checkpoint can't hold is refused with its path, and leaves no event."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.NotCheckpointable, match="handler"):
        await agent.checkpoint("policy", {"handler": lambda: None})
    assert await agent.sequence() == 0


@pytest.mark.parametrize("name", ["", "a\nb", None, "x" * 513], ids=ascii)
async def test_wrong_names_are_refused(store, name):
    """A checkpoint name that is no short printable text is refused."""
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.InvalidName):
        await agent.checkpoint(name, 1)
    with pytest.raises(perdure.InvalidName):
        await agent.restore(name)


async def test_what_was_restored_is_the_callers_own(store):
    """Changing a restored object, or the one that was saved, changes no checkpoint."""
    agent = await store.agent("airline/mia")
    value = {"a": [1]}
    await agent.checkpoint("policy", value)
    value["a"].append(2)
    (await agent.restore("policy"))["a"].append(3)
    assert await agent.restore("policy") == {"a": [1]}
