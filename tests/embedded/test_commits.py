"""How writes share commits, and what a slow disk does to the event loop."""

import asyncio
import queue
import sqlite3
import threading

import pytest

import perdure
from perdure.embedded import database

AGENT = "commits/one"


@pytest.fixture
def statements(monkeypatch) -> list[str]:
    """Every statement that SQLite runs, in order, from now on."""
    seen: list[str] = []
    connect = database._connect

    def traced(*args, **options) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(database, "_connect", traced)
    return seen


async def test_concurrent_emits_share_a_commit(statements, tmp_path):
    """Emits that are under way at the same time take one commit, not one each."""
    async with perdure.connect(tmp_path) as store:
        agents = [await store.agent(f"commits/{n}") for n in range(4)]
        del statements[:]
        events = await asyncio.gather(
            *[agent.emit("note", n) for n in range(100) for agent in agents]
        )
        assert len(events) == 400
        assert 1 <= statements.count("COMMIT") <= 4


async def test_each_awaited_emit_is_a_commit_of_its_own(statements, tmp_path):
    """An emit's answer waits for a commit: ten awaited one after the other take ten."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        del statements[:]
        for n in range(10):
            await agent.emit("note", n)
            assert n + 1 == statements.count("COMMIT")


async def test_a_commit_is_synced(statements, tmp_path):
    """The writer's connection is in WAL mode with full synchronisation."""
    async with perdure.connect(tmp_path):
        made = "\n".join(statements)
    assert "PRAGMA synchronous = FULL" in made
    assert "PRAGMA journal_mode = WAL" in made


async def test_on_a_slow_disk_commits_leave_the_event_loop(tmp_path, monkeypatch):
    """When commits have become slow they run in a thread, and the loop turns meanwhile."""
    committing = threading.Event()
    go_on = threading.Event()
    threads: set[int] = set()

    class Slow(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement == "COMMIT" and slow:
                threads.add(threading.get_ident())
                committing.set()
                assert go_on.wait(30)
            return super().execute(statement, *values)

    slow = False
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **options: connect(*args, factory=Slow, **options)
    )
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        store._backend.events._database._commit_seconds = 1.0  # as many slow ones would make it
        slow = True
        writes = [asyncio.create_task(agent.emit("note", n)) for n in range(20)]
        assert await asyncio.to_thread(committing.wait, 30)
        # The commit hangs, and here the loop goes on: it reads, and takes more writes.
        assert await agent.sequence() == 0
        writes += [asyncio.create_task(agent.emit("note", n)) for n in range(20, 40)]
        await asyncio.sleep(0)
        assert not any(write.done() for write in writes)
        go_on.set()
        events = await asyncio.gather(*writes)
        assert list(range(1, 41)) == [event.sequence for event in events]
        assert list(range(40)) == [event.data for event in events]
        assert threading.get_ident() not in threads


async def test_a_write_while_a_slow_store_closes_is_answered(tmp_path, monkeypatch):
    """What is written before closing is recorded, what comes after is refused; nothing hangs."""
    begun: queue.Queue[None] = queue.Queue()
    go_on = threading.Semaphore(0)
    transact = database.Database._transact

    def slow(self, jobs, **options):
        begun.put(None)
        assert go_on.acquire(timeout=30)
        return transact(self, jobs, **options)

    store = await perdure.connect(tmp_path)
    await store.emit(AGENT, "note", 1)
    monkeypatch.setattr(database.Database, "_transact", slow)
    store._backend.events._database._commit_seconds = 1.0  # as many slow ones would make it
    early = asyncio.create_task(store.emit(AGENT, "note", 2))
    await asyncio.to_thread(begun.get)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    go_on.release()
    await asyncio.to_thread(begun.get)  # what closing waits for is under way
    late = asyncio.create_task(store.emit(AGENT, "note", 3))
    await asyncio.sleep(0)
    go_on.release()
    async with asyncio.timeout(30):
        assert (await early).sequence == 2
        await closing
        with pytest.raises(perdure.StoreClosed):
            await late
    monkeypatch.undo()
    async with perdure.connect(tmp_path) as again:
        assert [event.data async for event in again.view(AGENT).events()] == [1, 2]


async def test_a_write_that_fails_in_an_unknown_way_is_told_and_blocks_nobody(
    tmp_path, monkeypatch
):
    """Whatever a transaction raises reaches who waits for it, and the next write goes through."""
    async with perdure.connect(tmp_path) as store:
        agent = await store.agent(AGENT)
        first = await agent.emit("note", 1)
        with monkeypatch.context() as broken:
            broken.setattr(database.Database, "_run", _raise)
            with pytest.raises(ZeroDivisionError):
                await agent.emit("note", 2)
        second = await agent.emit("note", 2)
        assert (first.sequence, second.sequence) == (1, 2)
        assert agent.state == await agent.state_at()


def _raise(*_args: object) -> list[object]:
    raise ZeroDivisionError


async def test_whatever_holds_events_is_synced(statements, tmp_path):
    """Opening agents doesn't wait for the disk; a commit that records events always does."""
    async with perdure.connect(tmp_path) as store:
        del statements[:]
        agents = [await store.agent(f"commits/{n}") for n in range(4)]
        for agent in agents:
            await agent.emit("note", 1)
            await store.agent(agent.name + "-too")
        await asyncio.gather(
            *[agent.emit("note", 2) for agent in agents],
            *[store.agent(f"commits/new-{n}") for n in range(4)],
            store.emit("commits/shared", "note", 3),
        )
        seen = list(statements)
    syncing, recording, levels = True, False, set()
    for statement in seen:
        if statement.startswith("PRAGMA synchronous"):
            syncing = statement.endswith("FULL")
        recording |= statement.startswith("INSERT INTO segments")
        if statement == "COMMIT":
            levels.add((recording, syncing))
            recording = False
    assert levels == {(True, True), (False, False)}
