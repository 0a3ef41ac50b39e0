"""Opening a store for a command, with the user's own projections and upcasters."""

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

from perdure import settings
from perdure.agent import discovery
from perdure.agent.connect import connect
from perdure.agent.store import Store

T = TypeVar("T")


def run(work: Coroutine[object, object, T]) -> T:
    """Run a command's work to its end, or to Ctrl-C."""

    async def guarded() -> T | KeyboardInterrupt:
        try:
            return await work
        except KeyboardInterrupt as interrupt:
            return interrupt

    with _interruptible():
        result = asyncio.run(guarded())
    if isinstance(result, KeyboardInterrupt):
        raise result
    return result


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stops what runs at once, as in a program without asyncio.

    asyncio's own handler cancels the task at its next await, which doesn't come while a command
    reads from a pipe or waits for an answer.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


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


SETTINGS: Final = Path("perdure.toml")
"""Where a cluster's settings are looked for when nobody says."""


def settings_of(config: Path | None) -> settings.Cluster:
    """The settings of a cluster: of the file that `--config` names, else of one that is here.

    Raises:
        NotFound, InvalidInput: as `settings.load`.
    """
    return settings.load(config or (SETTINGS if SETTINGS.is_file() else None))
