"""What became of events that were acknowledged before they were recorded.

Invariants:
- Of writes that the agent numbers itself the newest is asked for: the log keeps their order, so
  that what is known of it covers all before. A write that names its own id or writer may be refused
  by itself: each of these is asked for.
- A refusal is told once it is known; after that of a writer that was fenced nothing more is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from perdure.errors import PerdureError, Unavailable, WriterFenced
from perdure.ports import EventTable

APART_MAX: Final = 10_000
"""Writes that are asked for each by itself, which may wait before the next write waits for them."""


class Confirmation:
    """Asks, in the background, for what was sent and is not known to be recorded yet."""

    def __init__(
        self,
        events: EventTable,
        agent: str,
        *,
        recorded: Callable[[], Awaitable[None]],
        refused: Callable[[PerdureError], None],
    ) -> None:
        self._events = events
        self._agent = agent
        self._recorded = recorded
        self._refused = refused
        self._newest: str | None = None
        self._apart: dict[str, None] = {}
        self._asking: asyncio.Task[None] | None = None

    def sent(self, position: str, *, apart: bool = False) -> None:
        """Note that an event was acknowledged at this position; `apart`: ask for it by itself."""
        self._newest = position
        if apart:
            self._apart[position] = None
        self._ask_on()

    async def wait(self) -> None:
        """Wait until all that was sent is recorded or refused.

        Raises:
            Unavailable: the store can't say it now.
        """
        if self._newest is None:
            return
        self._ask_on()
        if self._asking is not None:
            await asyncio.shield(self._asking)

    async def room(self) -> None:
        """Wait while too many writes are asked for by themselves.

        Raises:
            Unavailable: the store can't say now what became of them.
        """
        if len(self._apart) >= APART_MAX:
            await self.wait()

    def _ask_on(self) -> None:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)

    async def _ask(self) -> None:
        while (newest := self._newest) is not None:
            if await self._is_fenced(list({**self._apart, newest: None})):
                self._newest = None
                self._apart.clear()
                return
            if newest == self._newest:
                await self._recorded()
            if newest == self._newest:
                self._newest = None

    async def _is_fenced(self, positions: list[str]) -> bool:
        """Tell of the writes at these positions that were refused; whether the writer is fenced."""
        answers = await asyncio.gather(
            *(self._events.caught_up(self._agent, position) for position in positions),
            return_exceptions=True,
        )
        unknown: BaseException | None = None
        for position, answer in zip(positions, answers, strict=True):
            if isinstance(answer, Unavailable) or not isinstance(answer, PerdureError | None):
                unknown = answer
                continue
            self._apart.pop(position, None)
            if answer is not None:
                self._refused(answer)
                if isinstance(answer, WriterFenced):
                    return True
        if unknown is not None:
            raise unknown
        return False

    def _asked(self, task: "asyncio.Task[None]") -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # Asked again with the next event, or by who waits, who is told.
