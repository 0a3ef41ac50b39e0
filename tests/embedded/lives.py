"""What the forked processes do until they are killed; each reports what it tries and gets."""

import asyncio
import io
import os
import random
import resource
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.embedded.judge import token_of

import perdure
from perdure import NewEvent
from perdure.cli.main import main
from perdure.embedded import database

Report = Callable[..., None]


def work(
    report: Report,
    folder: str,
    agent: str,
    life: str,
    seed: int,
    again: list[str],
    die_at_step: int = 0,
) -> None:
    """Everything an agent does that writes, in random order, until somebody kills it."""
    if die_at_step:
        _die_at_step(die_at_step)
    asyncio.run(_work(report, folder, agent, life, random.Random(seed), again))


async def _work(  # noqa: C901, PLR0915 - a case for each kind of write, one after the other
    report: Report, folder: str, name: str, life: str, rng: random.Random, again: list[str]
) -> None:
    async with perdure.connect(folder) as store:
        agent = await store.agent(name)
        report("open", agent.epoch, agent.state.sequence)
        for token in again:
            report("try", "again", [token])
            event = await agent.emit("note", {"token": token}, id=token)
            report("ack", [[event.sequence, token]])
        count = 0

        def token() -> str:
            nonlocal count
            count += 1
            return f"{life}.{count}"

        async def one(new: str, **more: Any) -> None:
            event = await agent.emit("note", {"token": new, **more})
            report("ack", [[event.sequence, new]])

        while True:
            match rng.choice(_OPERATIONS):
                case "single":
                    new = token()
                    report("try", "alone", [new])
                    await one(new)
                case "named":
                    new = token()
                    report("try", "named", [new])
                    event = await agent.emit("note", {"token": new}, id=new)
                    report("ack", [[event.sequence, new]])
                case "large":
                    new = token()
                    report("try", "alone", [new])
                    await one(new, text=f"{rng.random()} " * rng.randrange(200, 1500))
                case "many":
                    news = [token() for _ in range(rng.randrange(2, 30))]
                    report("try", "together", news)
                    events = await agent.emit_many(
                        [NewEvent(type="note", data={"token": new}) for new in news]
                    )
                    report("ack", [[event.sequence, token_of(event)] for event in events])
                case "concurrent":
                    news = [token() for _ in range(rng.randrange(2, 16))]
                    report("try", "each", news)
                    await asyncio.gather(*[one(new) for new in news])
                case "record":
                    new = token()
                    report("try", "alone", [new])
                    event = await agent.records.put("only", new)
                    report("ack", [[event.sequence, new]])
                case "checkpoint":
                    new = token()
                    report("try", "alone", [new])
                    saved = await agent.checkpoint(new, {"token": new, "bytes": "x" * 5000})
                    report("ack", [[saved.sequence, new]])
                case "memory":
                    new = token()
                    report("try", "alone", [new])
                    memory = await agent.remember(new)
                    report("ack", [[memory.sequence, new]])
                case "revert" if agent.state.sequence > 1:
                    to = rng.randrange(max(1, agent.state.sequence - 40), agent.state.sequence)
                    report("try", "alone", [f"revert to {to}"])
                    reverted = await agent.revert(to)
                    report("ack", [[reverted.event.sequence, f"revert to {to}"]])


_OPERATIONS = [
    *["single"] * 6,
    *["named"] * 4,
    *["large"] * 2,
    *["many"] * 3,
    *["concurrent"] * 3,
    *["record"] * 2,
    "checkpoint",
    "memory",
    "revert",
]


def contribute(report: Report, folder: str, agent: str, life: str, count: int) -> None:
    """Contribute to an agent without opening it: `count` events, or until killed where it is 0."""

    async def main() -> None:
        async with perdure.connect(folder) as store:
            report("open")
            done = 0
            while done < count or not count:
                done += 1
                new = f"{life}.{done}"
                report("try", "alone", [new])
                event = await store.emit(agent, "note", {"token": new})
                report("ack", [[event.sequence, new]])
        report("closed")

    asyncio.run(main())


def close(report: Report, folder: str, agent: str, life: str, die_at_step: int) -> None:
    """Write a little and close: what is sealed and checkpointed then, is killed in its middle."""

    async def main() -> None:
        async with perdure.connect(folder) as store:
            opened = await store.agent(agent)
            report("open")
            for done in range(20):
                new = f"{life}.{done}"
                report("try", "alone", [new])
                event = await opened.emit("note", {"token": new})
                report("ack", [[event.sequence, new]])
            _arm(die_at_step)
            await opened.close()
        report("closed")

    _die_at_step(0)
    asyncio.run(main())


def measured(report: Report, folder: str, agent: str, seed: int) -> None:
    """Write one thing after the other, and report how long the write-ahead log was after each."""
    rng = random.Random(seed)
    wal = Path(folder) / "perdure.db-wal"

    async def main() -> None:
        async with perdure.connect(folder) as store:
            opened = await store.agent(agent)
            count = 0
            while True:
                news = [str(count + n) for n in range(rng.choice([1, 1, 1, 3, 20]))]
                count += len(news)
                text = "x" * rng.choice([0, 0, 100, 9000])
                await opened.emit_many(
                    [NewEvent(type="note", data={"token": new, "text": text}) for new in news]
                )
                report("ack", opened.state.sequence, wal.stat().st_size)

    asyncio.run(main())


def fill(report: Report, folder: str, agent: str, file_bytes_max: int) -> None:
    """Write until the operating system lets no file grow any more, then when it does again."""

    async def main() -> None:
        async with perdure.connect(folder) as store:
            opened = await store.agent(agent)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, resource.RLIM_INFINITY))
            count = 0
            try:
                while True:
                    await opened.emit("note", {"token": str(count), "text": os.urandom(999).hex()})
                    count += 1
            except perdure.Unavailable as error:
                report("refused", count, type(error).__name__, str(error))
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            event = await opened.emit("note", {"token": str(count)})
            report("after", event.sequence, (await opened.verify()).sound)

    asyncio.run(main())


def hold(report: Report, folder: str, seconds: float = 60.0) -> None:
    """Take the write lock of the store's file, half make a change, and stay so until killed."""
    connection = sqlite3.connect(Path(folder) / "perdure.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE agents SET epoch = epoch + 1000")
    report("held")
    signal.alarm(int(seconds))  # nobody is kept waiting for ever by a test that failed
    signal.pause()


_steps_left = 0


def _arm(steps: int) -> None:
    global _steps_left  # noqa: PLW0603 - one process, one countdown
    _steps_left = steps


def _die_at_step(steps: int) -> None:
    """SIGKILL this process at one of the steps of SQLite's virtual machine, counted from now."""
    _arm(steps)
    connect = database._connect

    def step() -> int:
        global _steps_left  # noqa: PLW0603
        _steps_left -= 1
        if _steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def connected(path: Path, busy_seconds: float, *, writable: bool = True) -> sqlite3.Connection:
        connection = connect(path, busy_seconds, writable=writable)
        connection.set_progress_handler(step, 1)
        return connection

    database._connect = connected


def lock(report: Report, path: str) -> None:
    """Take the write lock of a SQLite file before it is a store, and keep it until killed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("CREATE TABLE half (made)")
    report("held")
    signal.alarm(60)
    signal.pause()


def bring_in(report: Report, file: str, folder: str, die_at_step: int) -> None:
    """`perdure import`, killed somewhere in its middle, or not at all at step 0."""
    if die_at_step:
        _die_at_step(die_at_step)
    sys.stdout = sys.stderr = io.StringIO()
    report("done", main(["import", file, "--namespace", "runs", "--store", folder]))


def interrupted(report: Report, folder: str, agent: str, *, alone: bool) -> None:
    """A script that emits until somebody presses Ctrl-C, with and without `await`."""

    def script() -> None:
        with perdure.connect_sync(folder) as store:
            opened = store.agent(agent)
            report("open")
            while True:
                report("ack", opened.emit("note", {"n": 1}).sequence)

    async def program() -> None:
        async with perdure.connect(folder) as store:
            opened = await store.agent(agent)
            report("open")
            while True:
                events = await asyncio.gather(*[opened.emit("note", {"n": 1}) for _ in range(9)])
                report("ack", events[-1].sequence)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if alone:
            script()
        else:
            asyncio.run(program())
    except KeyboardInterrupt:
        report("interrupted", threading.active_count())
