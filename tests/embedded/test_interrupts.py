"""Ctrl-C and cancelled tasks in the middle of writes: a clean end, a sound store."""

import asyncio
import os
import signal

import pytest
from tests.embedded.forks import seeded, spin

import perdure

AGENT = "interrupted/one"


@pytest.mark.parametrize("alone", [True, False], ids=["script", "asyncio"])
async def test_ctrl_c_ends_a_program_cleanly(forks, tmp_path, alone):
    """A program that is interrupted while it emits closes its store, with all that was answered."""
    rng = seeded("ctrl-c")
    for _ in range(6):
        child = forks.start("interrupted", folder=str(tmp_path), agent=AGENT, alone=alone)
        for _ in range(rng.randrange(1, 6)):
            answered = child.until("ack")[1]
        spin(rng.random() * 0.003)
        os.kill(child.pid, signal.SIGINT)
        rest = list(child.reports())
        assert rest[-1] == ["interrupted", 1]
        answered = max([answered, *(report[1] for report in rest if report[0] == "ack")])
        assert [path.name for path in tmp_path.iterdir()] == ["perdure.db"]
        async with perdure.connect(tmp_path) as store:
            view = store.view(AGENT)
            assert answered <= await view.sequence()
            assert (await view.verify()).sound


async def test_a_cancelled_emit_is_recorded_whole_or_not_at_all(tmp_path):
    """Cancelling a task in the middle of a write harms no other, nor the agent's state."""
    rng = seeded("cancel")
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        for life in range(40):
            tasks = [
                asyncio.create_task(agent.emit_many([("note", [life, n, part]) for part in "ab"]))
                for n in range(6)
            ]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            cancelled = set(rng.sample(range(6), 2))
            for n in cancelled:
                tasks[n].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for n, answer in enumerate(answers):
                if n not in cancelled:
                    assert not isinstance(answer, BaseException), answer
        last = await agent.emit("note", ["after", 0, "a"])
        events = [event async for event in agent.events()]
        assert list(range(1, last.sequence + 1)) == [event.sequence for event in events]
        data = [event.data for event in events[:-1]]
        assert data[1::2] == [[life, n, "b"] for life, n, _ in data[::2]]
        assert len(data) == len({str(one) for one in data})
        assert agent.state == await agent.state_at()
        assert agent.state.sequence == last.sequence
        assert (await agent.verify()).sound


async def test_a_store_closes_while_writes_are_under_way(tmp_path):
    """Every write that was begun before the store is closed is answered: recorded, or refused."""
    store = await perdure.connect(tmp_path)
    agent = await store.agent(AGENT)
    tasks = [asyncio.create_task(agent.emit("note", n)) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    recorded = [answer for answer in answers if isinstance(answer, perdure.Event)]
    refused = [answer for answer in answers if isinstance(answer, perdure.StoreClosed)]
    assert len(recorded) + len(refused) == 50
    async with perdure.connect(tmp_path) as store:
        events = [event async for event in store.view(AGENT).events()]
    assert recorded == events
    with pytest.raises(perdure.StoreClosed):
        await agent.emit("note")
