"""When a state is worth a checkpoint.

Saving a state costs in proportion to its size, folding in proportion to the events since the last
save. Saving once those have reached a fixed share of the state's size keeps both in proportion:
however long the history, all the saving together costs a constant factor of the writing, and
opening an agent folds at most that share.

While an agent is written the share is large, so that saving costs writers little. When it is opened
or closed nobody waits, and the share is small, so that the next opening is fast; after a crash, the
first one folds what the large share allows.
"""

from typing import Final

BUSY_BYTES_MIN: Final = 1024 * 1024
REST_BYTES_MIN: Final = 64 * 1024
"""Bytes of events that are not worth a checkpoint: they are folded in 4 ms, or 0.2 ms."""

BUSY_SHARE: Final = 2.0
REST_SHARE: Final = 0.05
"""Bytes of events since the last checkpoint that are worth one, as a share of the state's."""


def due(tail_bytes: int, state_bytes: int, *, at_rest: bool = False) -> bool:
    """Whether to save now, given the bytes of events since the last save and of the saved state.

    >>> due(100_000, 0), due(2_000_000, 0), due(100_000, 500_000, at_rest=True)
    (False, True, True)
    """
    if at_rest:
        return tail_bytes >= max(REST_BYTES_MIN, state_bytes * REST_SHARE)
    return tail_bytes >= max(BUSY_BYTES_MIN, state_bytes * BUSY_SHARE)
