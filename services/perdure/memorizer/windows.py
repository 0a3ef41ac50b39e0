"""Long texts in pieces that an embedder sees whole.

Invariants:
- Every piece is a part of the text, in its order; of a text of at most `WINDOWS_MAX` pieces,
  nothing that isn't blank is left out.
- There are at most `WINDOWS_MAX` pieces, and at least one.
"""

import re
from collections.abc import Iterator
from typing import Final

WINDOW_COST: Final = 300
"""How much goes into a window: about four sentences of English. MiniLM sees three times as much,
but then a window drowns what one of its sentences says: the cosine to a question about it is 0.12
instead of 0.28. An ASCII letter costs 1; what tokenizers cut finer costs more."""

OVERLAP_COST: Final = 60
"""How much of a window the next one begins with, so that no sentence stands in halves only."""

WINDOWS_MAX: Final = 64
"""The most windows of one text (some six pages): a bound on time and space. Of a longer text, this
many are taken evenly over its length; full text search still sees all of it."""

_PIECE = re.compile(r"\S{1,100}\s*")


def windows(text: str) -> list[str]:
    """The pieces of a text that are to be embedded, each on its own.

    >>> windows("prefers aisle seats")
    ['prefers aisle seats']
    >>> [len(window) for window in windows("prefers aisle seats, " * 30)]
    [293, 299, 146]
    """
    text = text.strip()
    if len(text) * _DEAREST <= WINDOW_COST:
        return [text]
    found = list(_spans(text))
    if len(found) > WINDOWS_MAX:
        step = (len(found) - 1) / (WINDOWS_MAX - 1)
        found = [found[round(index * step)] for index in range(WINDOWS_MAX)]
    return [text[first:last].strip() for first, last in found] or [text]


_DEAREST: Final = 4


def _cost(piece: str) -> int:
    """About how many word pieces it makes, in fifths (an English word piece is 4 to 5 letters).

    >>> _cost("aisle "), _cost("4WQ150 "), _cost("座席")
    (6, 15, 8)
    """
    letters = sum(character.isascii() and not character.isdigit() for character in piece)
    digits = sum(character.isascii() and character.isdigit() for character in piece)
    return letters + 3 * digits + _DEAREST * (len(piece) - letters - digits)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    first = cost = 0
    recent: list[tuple[int, int]] = []  # start and cost of the pieces in the window
    for match in _PIECE.finditer(text):
        piece = _cost(match.group())
        if recent and cost + piece > WINDOW_COST:
            yield first, match.start()
            overlap: list[tuple[int, int]] = []
            cost = 0
            while cost + recent[-1][1] <= OVERLAP_COST:
                overlap.append(recent.pop())
                cost += overlap[-1][1]
            recent = overlap[::-1]
            first = recent[0][0] if recent else match.start()
        recent.append((match.start(), piece))
        cost += piece
    if recent:
        yield first, len(text)
