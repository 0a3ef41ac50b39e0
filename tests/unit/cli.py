"""What tests of the command line share: running it, and a store with something of everything."""

import asyncio
import os
import subprocess
import sys
from typing import NamedTuple

import msgspec

import perdure
from perdure.cli.main import main


class Ran(NamedTuple):
    """What a command left: its exit status, and what it printed where."""

    status: int
    out: str
    err: str

    def json_lines(self):
        """What was printed, each line a value."""
        return [msgspec.json.decode(line) for line in self.out.splitlines()]

    def json(self):
        """The one value that was printed."""
        (value,) = self.json_lines()
        return value


def runner(capsys, store):
    """Runs commands on a store, in this process."""

    def run(*args, store=store):
        option = () if store is None else ("--store", str(store))
        status = main([*args, *option])
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return run


def process(*args, **options):
    """Starts `perdure` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "perdure", *args],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def finished(*args, **options):
    """Runs `perdure` as a process of its own, to its end."""
    ran = subprocess.run(
        [sys.executable, "-m", "perdure", *args], capture_output=True, check=False, **options
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def environment(**changes):
    """The variables of this process, with changes."""
    return {**os.environ, **changes}


def filled(folder):
    """Makes a store with one agent that has something of everything; gives it back as state."""

    async def fill():
        async with perdure.connect(folder) as store, await store.agent("airline/mia") as mia:
            await mia.emit("message.added", {"role": "user", "content": "a seat, please"})
            await mia.emit("tool.called", {"id": "c1", "name": "book", "arguments": {}})
            await mia.emit("tool.executed", {"id": "c1", "name": "book", "result": "12A"})
            await mia.emit("decision.made", {"choice": "refund"})
            await mia.records.put("profile", {"tier": "gold"})
            await mia.remember(
                "prefers aisle seats", source="chat", context={"task": "t-7"}, weight=3
            )
            await mia.remember("is called Mia", source="form")
            await mia.checkpoint("policy", list(range(1000)))
            return mia.state

    return asyncio.run(fill())
