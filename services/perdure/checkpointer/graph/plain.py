"""Values that MessagePack can hold as they are: JSON-like data without shared containers.

Most checkpoints are such data, and going around the graph makes them ten times faster. The check
goes level by level, so that its loops over elements run inside the interpreter.
"""

from itertools import chain
from typing import Final

LEVELS_MAX: Final = 64
"""Deeper data goes the way of graphs: msgspec recurses, and must never come near the limit."""
LONG_TEXT: Final = 256
"""Characters from which on a string that is in the value twice is stored once, as a graph."""

_ATOMS: Final = frozenset({type(None), bool, int, float, str})
_CONTAINERS: Final = frozenset({list, dict})
_PLAIN: Final = _ATOMS | _CONTAINERS
_KEYS: Final = frozenset({str})


def is_plain(value: object) -> bool:
    """Whether decoding MessagePack would give back the same value, types and identities included.

    Integers beyond 64 bits and lone surrogates are not looked for: encoding them raises.

    >>> is_plain({"a": [1, 2.5, None]}), is_plain((1, 2)), is_plain([[]] * 2)
    (True, False, False)
    """
    level: list[object] = [value]
    seen: set[int] = set()
    count = 0
    for _ in range(LEVELS_MAX):
        kinds = set(map(type, level))
        if not kinds <= _PLAIN:
            return False
        once = _seen_once(level) if kinds & _CONTAINERS or str in kinds else []
        seen.update(once)
        count += len(once)
        if len(seen) != count:
            return False
        if not kinds & _CONTAINERS:
            return True
        dicts = [item for item in level if type(item) is dict]
        if not set(map(type, chain.from_iterable(dicts))) <= _KEYS:
            return False
        level = [
            *chain.from_iterable(item for item in level if type(item) is list),
            *chain.from_iterable(map(dict.values, dicts)),
        ]
    return False


def _seen_once(level: list[object]) -> list[int]:
    """Identities of what must not be there twice: containers and long strings."""
    return [
        id(item)
        for item in level
        if type(item) in _CONTAINERS or (type(item) is str and len(item) > LONG_TEXT)
    ]
