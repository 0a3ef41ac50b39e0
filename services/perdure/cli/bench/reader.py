"""A process that reads an agent from its first event to its last, to be watched while it does.

    python -m perdure.cli.bench.reader events|fold|base FOLDER AGENT

`events` iterates over the events, `fold` folds them from event 1, `base` opens the store, reads
nothing and prints what memory it has then, in bytes.
"""

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

from perdure.agent.connect import connect
from perdure.embedded.folder import open_folder
from perdure.model.projection import DEFAULT
from perdure.model.upcast import default_upcasters
from perdure.projector.restore import refold

KIB: Final = 1024


async def read(mode: str, folder: Path, agent: str) -> int:
    """Read as `mode` says; how many events were read, or for `base` the resident bytes."""
    if mode == "fold":
        backend = open_folder(folder, version_of=default_upcasters.current, create=False)
        lineage = await backend.events.lineage(agent)
        state = await refold(
            backend.events,
            default_upcasters,
            projection=DEFAULT,
            lineage=lineage,
            at=lineage[0].sequence,
        )
        await backend.close()
        return state.sequence
    async with connect(folder) as store:
        if mode == "base":
            return resident(os.getpid())
        count = 0
        async for _ in store.view(agent).events():
            count += 1
        return count


def resident(process: int) -> int:
    """The resident memory of a process in bytes; 0 where it has ended.

    >>> resident(os.getpid()) > 1_000_000
    True
    """
    try:
        # The second number: pages that are resident (proc(5), /proc/[pid]/statm).
        statm = Path(f"/proc/{process}/statm").read_bytes()
        return int(statm.split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        if Path("/proc/self/statm").exists():
            return 0
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(process)],  # noqa: S607 - where ps is differs by system
        capture_output=True,
        check=False,
    )
    return int(shown.stdout or 0) * KIB


if __name__ == "__main__":
    print(asyncio.run(read(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
