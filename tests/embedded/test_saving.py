"""What an agent saves of its state while it is written."""

import dataclasses

import perdure


class CountingStates:
    """A state table that counts what is saved in it."""

    def __init__(self, inner):
        self._inner = inner
        self.saves = []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def save(self, saved):
        """Save a state, and note how large it was."""
        self.saves.append(len(saved.data))
        await self._inner.save(saved)


async def test_saving_is_never_quadratic(tmp_path):
    """With a state that grows with every event, all saves together are a few times its size."""
    opened = await perdure.connect(tmp_path)
    states = CountingStates(opened._session.backend.states)
    backend = dataclasses.replace(opened._session.backend, states=states)
    async with perdure.Store(dataclasses.replace(opened._session, backend=backend)) as store:
        agent = await store.agent("airline/mia")
        for start in range(0, 6_000, 50):
            messages = [
                {"role": "user", "content": f"{i} " + "x" * 400} for i in range(start, start + 50)
            ]
            await agent.emit_many([("message.added", message) for message in messages])
    total = 6_000 * 440
    assert states.saves
    assert sum(states.saves) < 6 * total
