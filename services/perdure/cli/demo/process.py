"""The agent process, as seen by whoever starts it, listens to it and kills it."""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from perdure.cli.demo.journal import Acknowledged, Opened

KILLS_FROM: Final = 0.05
KILLS_TO: Final = 0.9
"""Between which shares of the work the kills fall: at the very end, a kill may come too late."""

_line_decoder = msgspec.json.Decoder(Acknowledged | Opened)


def moments(total: int, kills: int, chance: random.Random) -> list[int]:
    """After how many acknowledged events to kill, in order.

    >>> len(moments(100, 3, random.Random(1)))
    3
    """
    possible = range(max(1, int(total * KILLS_FROM)), max(2, int(total * KILLS_TO)))
    return sorted(chance.sample(possible, min(kills, len(possible))))


@contextlib.asynccontextmanager
async def agent_process(
    store: str | os.PathLike[str], journal: Path, runs: int, number: int, *, thinking: float = 0.0
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent as a process of its own, which never outlives this block.

    It thinks for `thinking` seconds before each message.
    """
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "perdure.cli.demo.worker",
        os.fspath(store),
        os.fspath(journal),
        str(runs),
        str(number),
        str(thinking),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for this process: it ends the other one itself, as hard as at any other time.
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()


async def said(worker: asyncio.subprocess.Process) -> AsyncIterator[Acknowledged | Opened]:
    """What the process says on its standard output, line by line, until it ends."""
    if worker.stdout is None:
        return
    async for line in worker.stdout:
        if line.endswith(b"\n"):
            yield _line_decoder.decode(line)
