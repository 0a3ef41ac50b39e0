"""How long who asks a gateway asks again, and who is told of it.

Invariants:
- A gateway that doesn't answer is given the time that it takes to start; one that answers, but says
  that an engine behind it is away, the time that an engine takes to be started again.
- Whoever waits for long is told for what, once; what is given up says how long it was tried.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from perdure.errors import PerdureError, Unreachable

SILENT_SECONDS: Final = 30.0
"""How long a gateway that doesn't answer is asked again: it starts in less."""

AWAY_SECONDS: Final = 120.0
"""How long one is asked again that answers, and waits for an engine itself: a node of Cassandra
that is started again on a busy machine takes a minute."""

TOLD_SECONDS: Final = 5.0
"""After so long without success a line of the log says what is waited for."""

PAUSE_SECONDS_MAX: Final = 2.0

T = TypeVar("T")

_log = logging.getLogger("perdure.gateway")


class Silent(Unreachable):
    """The gateway itself did not answer."""


class Patience:
    """Asks one gateway again, for all requests to it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._told = False

    async def ask(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` gives; it is called again while it raises errors that are retriable.

        Raises:
            PerdureError: what it raised, as soon as a retry doesn't help, or at last.
        """
        asking = _Asking(asyncio.get_running_loop().time)
        again = AsyncRetrying(
            retry=retry_if_exception(_may_help),
            stop=asking.is_enough,
            wait=wait_random_exponential(multiplier=0.05, max=PAUSE_SECONDS_MAX),
            before_sleep=lambda _: self._tell(asking),
            reraise=True,
        )

        async def attempt() -> T:
            return await once()

        try:
            given: T = await again(attempt)
        except PerdureError as error:
            if asking.error is not error or asking.seconds < 1:
                raise
            raise type(error)(
                f"{error.message}; it was asked again for {asking.seconds:.0f} s", hint=error.hint
            ) from error
        if self._told and asking.error is not None:  # Others may need nothing that is away.
            self._told = False
            _log.warning("%s answers again", self._url)
        return given

    def _tell(self, asking: "_Asking") -> None:
        if asking.seconds >= TOLD_SECONDS and not self._told:
            self._told = True
            _log.warning(
                "waiting for %s, for up to %.0f s: %s", self._url, asking.limit, asking.error
            )


class _Asking:
    """One question: since when it isn't answered, and for how long it is asked again."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = self._answered = now()
        self.error: BaseException | None = None

    @property
    def seconds(self) -> float:
        """For how long it was asked."""
        return self._now() - self._since

    @property
    def limit(self) -> float:
        """For how long it is asked, as it looks now."""
        return SILENT_SECONDS if isinstance(self.error, Silent) else AWAY_SECONDS

    def is_enough(self, state: RetryCallState) -> bool:
        """Whether to give up after a failure, for tenacity."""
        self.error = state.outcome.exception() if state.outcome is not None else None
        if not isinstance(self.error, Silent):
            self._answered = self._now()
            return self.seconds >= AWAY_SECONDS
        return self.seconds >= AWAY_SECONDS or self._now() - self._answered >= SILENT_SECONDS


def _may_help(error: BaseException) -> bool:
    return isinstance(error, PerdureError) and error.retriable
