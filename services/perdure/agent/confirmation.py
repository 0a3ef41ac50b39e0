"""What became of events that were acknowledged before they were recorded.

Invariants:
- One question is under way at a time, about the newest of them: the log keeps their order, so that
  what is known of it covers all before.
- A refusal is told once it is known, and nothing more is asked then.
"""

import asyncio
from collections.abc import Awaitable, Callable

from perdure.errors import Refused
from perdure.ports import EventTable


class Confirmation:
    """Asks, in the background, for the newest event that was sent and is not recorded yet."""

    def __init__(
        self,
        events: EventTable,
        agent: str,
        *,
        recorded: Callable[[], Awaitable[None]],
        refused: Callable[[Refused], None],
    ) -> None:
        self._events = events
        self._agent = agent
        self._recorded = recorded
        self._refused = refused
        self._newest: str | None = None
        self._asking: asyncio.Task[None] | None = None

    def sent(self, position: str) -> None:
        """Note that an event was acknowledged at this position."""
        self._newest = position
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)

    async def wait(self) -> None:
        """Wait until all that was sent is recorded or refused.

        Raises:
            Unavailable: the store can't say it now.
        """
        if self._newest is None:
            return
        if self._asking is None:
            self.sent(self._newest)
        if self._asking is not None:
            await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        while (position := self._newest) is not None:
            try:
                await self._events.caught_up(self._agent, position)
            except Refused as error:
                self._newest = None
                self._refused(error)
                return
            if position == self._newest:
                await self._recorded()
            if position == self._newest:
                self._newest = None

    def _asked(self, task: "asyncio.Task[None]") -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # Asked again with the next event, or by who waits, who is told.
