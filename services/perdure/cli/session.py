"""Opening a store for a command, with the user's own projections and upcasters."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

from perdure.agent import discovery
from perdure.agent.connect import connect
from perdure.agent.store import Store

T = TypeVar("T")


def run(work: Coroutine[object, object, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(work)


def load(modules: Sequence[str] | None) -> None:
    """Import the user's code: what packages offer, and what `--load` names, from here too.

    Raises:
        InvalidInput: something of it can't be imported.
    """
    discovery.load_entry_points()
    here = str(Path.cwd())
    if modules and here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: a console script doesn't
    discovery.load(modules or ())


@contextlib.asynccontextmanager
async def opened(
    store: str | None, modules: Sequence[str] | None = None, *, create: bool = False
) -> AsyncIterator[Store]:
    """The store that `--store` names, open while a command works with it.

    Raises:
        NotFound: there is none, and `create` is off.
    """
    load(modules)
    async with connect(store, create=create) as connected:
        yield connected
