"""Several processes on one folder."""

import os
import signal
from pathlib import Path

import pytest
from tests.embedded.judge import Journal

import perdure
from perdure import StoreBusy, WriterFenced
from perdure.embedded.database import Database
from perdure.embedded.schema import MIGRATIONS

AGENT = "crew/one"
PROCESSES = 8


async def test_many_processes_contribute_to_one_agent(forks, tmp_path):
    """Eight processes write to one agent at once, and make one sequence with all they wrote."""
    children = [
        forks.start("contribute", folder=str(tmp_path), agent=AGENT, life=str(number), count=25)
        for number in range(PROCESSES)
    ]
    journal = Journal()
    for number, child in enumerate(children):
        journal.take(number, child.reports())
    async with perdure.connect(tmp_path) as store:
        view = store.view(AGENT)
        events = [event async for event in view.events()]
        assert (await view.verify()).sound
    journal.check(events)
    assert PROCESSES * 25 == len(events) == len(journal.acknowledged)


@pytest.mark.parametrize("attempt", range(8))
async def test_processes_that_make_one_store_at_once_all_get_it(forks, tmp_path, attempt):
    """Whoever comes first makes the store; the others wait for it, and none is turned away."""
    folder = str(tmp_path / str(attempt))
    children = [
        forks.start("contribute", folder=folder, agent=f"crew/{number}", life="a", count=1)
        for number in range(PROCESSES)
    ]
    for child in children:
        assert child.until("closed") == ["closed"]
    async with perdure.connect(folder) as store:
        assert len([agent async for agent in store.agents("crew/")]) == PROCESSES


async def test_an_opener_in_another_process_fences_this_one(forks, tmp_path):
    """The agent belongs to the process that opened it last, and again to this one if that dies."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        await agent.emit("note", {"token": "before"})
        child = forks.start(
            "work", folder=str(tmp_path), agent=AGENT, life="other", seed=1, again=[]
        )
        _, epoch, sequence = child.until("open")
        assert (agent.epoch + 1, 1) == (epoch, sequence)
        with pytest.raises(WriterFenced, match=AGENT):
            await agent.emit("note", {"token": "fenced"})
        child.until("ack")
        child.kill()
        agent = await store.agent(AGENT)
        assert epoch + 1 == agent.epoch
        last = agent.state.sequence
        assert last + 1 == (await agent.emit("note", {"token": "after"})).sequence
        tokens = [event.data async for event in agent.events(types=["note"])]
        assert {"token": "fenced"} not in tokens
        assert (await agent.verify()).sound


async def test_a_lock_that_is_held_too_long_is_told_and_can_be_retried(
    forks, tmp_path, monkeypatch
):
    """A write waits for another process's lock, then raises StoreBusy; later it goes through."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        await agent.emit("note", 1)
        database = _database_of(store)
        monkeypatch.setattr(database, "busy_seconds", 0.05)
        child = forks.start("hold", folder=str(tmp_path))
        child.until("held")
        with pytest.raises(StoreBusy) as caught:
            await agent.emit("note", 2, id="again")
        assert caught.value.retriable
        assert [event.data async for event in agent.events()] == [1]
        child.kill()
        assert (await agent.emit("note", 2, id="again")).sequence == 2


async def test_a_writer_waits_for_a_lock_without_holding_up_the_loop(forks, tmp_path):
    """A write waits in a thread for another process; if that is killed, its lock is free."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        await agent.emit("note", 1)
        child = forks.start("hold", folder=str(tmp_path))
        child.until("held")
        async with _waiting(agent) as write:
            await store.view(AGENT).state_at()
            assert not write.done()
            os.kill(child.pid, signal.SIGKILL)
            assert (await write).sequence == 2
        assert (await store.agent(AGENT)).epoch - agent.epoch == 1  # what it had begun is undone


async def test_opening_waits_for_no_longer_than_it_is_told(forks, tmp_path):
    """A file that is locked while it is opened for the first time raises StoreBusy in the end."""
    path = tmp_path / "perdure.db"
    database = Database(path, [])
    await database.close()
    child = forks.start("lock", path=str(path))
    child.until("held")
    with pytest.raises(StoreBusy):
        Database(path, MIGRATIONS, busy_seconds=0.05)
    child.kill()
    await Database(path, MIGRATIONS).close()


class _waiting:  # noqa: N801 - reads as what it is in `async with`
    """A write that is under way while the block runs."""

    def __init__(self, agent: perdure.Agent) -> None:
        self._agent = agent

    async def __aenter__(self):
        import asyncio

        self.task = asyncio.create_task(self._agent.emit("note", 2))
        for _ in range(3):
            await asyncio.sleep(0)
        return self.task

    async def __aexit__(self, *_error):
        await self.task


def _database_of(store: perdure.Store) -> Database:
    database = store._backend.events._database
    assert isinstance(database, Database)
    return database


def test_the_file_is_where_users_are_told(tmp_path):
    """One file holds the store; a lock or a leftover of SQLite beside it goes with the process."""
    with perdure.connect_sync(tmp_path) as store:
        store.emit(AGENT, "note", 1)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["perdure.db"]


async def test_a_head_does_not_grow_with_every_process_that_ever_wrote(tmp_path):
    """The counters of past writers are looked up, not carried along; and they still count."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("many/writers")
        first = [
            await agent.emit("note", n, writer=f"w{n}", writer_sequence=5) for n in range(1_000)
        ]
        log = store._backend.log
        assert len((await log.claim("many/writers")).writers) < 500
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("many/writers")
        assert len((await store._backend.log.claim("many/writers")).writers) < 500
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent("many/writers")
        assert await agent.emit("note", 3, writer="w3", writer_sequence=5) == first[3]
        with pytest.raises(perdure.SequenceConflict):
            await agent.emit("note", 3, writer="w3", writer_sequence=4)
        assert (await agent.emit("note", 4, writer="w4")).writer_sequence == 6
        assert await agent.sequence() == 1_001
