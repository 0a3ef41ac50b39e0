"""Waiting for processes that can't tell us: look again until a deadline."""

import time
from collections.abc import Callable

from perdure.errors import Unavailable

LOOK_EVERY_SECONDS = 0.1


def wait_until(
    condition: Callable[[], bool], *, within_seconds: float, what: str, hint: str = ""
) -> None:
    """Return as soon as `condition` holds.

    Raises `Unavailable` when it doesn't within the time: `what` names what was waited for.
    """
    deadline = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise Unavailable(f"{what}: not within {within_seconds:g} seconds", hint=hint)
        time.sleep(LOOK_EVERY_SECONDS)
