"""When a state is worth a checkpoint.

Saving a state costs in proportion to its size, folding in proportion to the events since the last
save. Saving once the events since then have reached a fixed share of the state's size keeps both
in proportion: however long the history, opening an agent folds at most that share, and all the
saving together costs a constant factor of the writing.
"""

from typing import Final

TAIL_BYTES_MIN: Final = 128 * 1024
"""Events that are folded in less than a millisecond are not worth a checkpoint."""

TAIL_SHARE: Final = 0.25
"""Bytes of events since the last checkpoint that are worth one, as a share of the state's."""


def due(tail_bytes: int, state_bytes: int) -> bool:
    """Whether to save now, given the bytes of events since the last save and of the saved state.

    >>> due(100_000, 0), due(200_000, 0), due(200_000, 10_000_000)
    (False, True, False)
    """
    return tail_bytes >= max(TAIL_BYTES_MIN, state_bytes * TAIL_SHARE)
