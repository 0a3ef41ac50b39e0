"""Healing views: the conversation as a provider takes it, whatever a crash has left of it."""

import pytest

CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "book", "arguments": "{}"}}
    ],
}


async def test_a_call_without_answer_is_answered_as_interrupted(place):
    """After a crash between call and answer, the view is valid and the log is as it was."""
    agent = await (await place.connect()).agent("airline/mia")
    await agent.emit("message.added", {"role": "user", "content": "book it"})
    await agent.emit("message.added", CALL)
    again = await (await place.connect()).agent("airline/mia")
    await again.emit("message.added", {"role": "user", "content": "are you there?"})
    view = again.messages(for_provider="openai")
    assert [message["role"] for message in view] == ["user", "assistant", "tool", "user"]
    assert view[2]["tool_call_id"] == "c1"
    assert len(view.repairs) == 1
    assert [message["role"] for message in again.state.messages] == ["user", "assistant", "user"]


async def test_an_answer_without_call_is_set_aside(store):
    """An answer that belongs to no call is not in the view, and the view says so."""
    agent = await store.agent("airline/mia")
    await agent.emit("message.added", {"role": "user", "content": "hi"})
    await agent.emit("message.added", {"role": "tool", "tool_call_id": "c9", "content": "done"})
    view = agent.messages(for_provider="openai")
    assert all(message["role"] != "tool" for message in view)
    assert view.repairs


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_whole_conversation_needs_no_repair(store, provider):
    """A conversation that nothing happened to is shown without repairs."""
    agent = await store.agent("airline/mia")
    for message in (
        {"role": "user", "content": "book it"},
        CALL,
        {"role": "tool", "tool_call_id": "c1", "content": "booked"},
        {"role": "assistant", "content": "Done."},
    ):
        await agent.emit("message.added", message)
    view = agent.messages(for_provider=provider)
    assert view.repairs == ()
    if provider == "openai":
        assert list(view) == list(agent.state.messages)
    past = await agent.conversation(provider, 2)
    assert len(past.repairs) == 1
