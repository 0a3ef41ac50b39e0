"""Where something is inside a value, as a person would write it: `value["layers"][3].bias`."""

from collections.abc import Sequence
from typing import Final

STEPS_SHOWN: Final = 8
"""Of a longer path, so many steps from its start and from its end are shown."""
_KEY_CHARACTERS: Final = 40
_SPOKEN: Final = frozenset({str, int, float, bool, bytes, type(None)})
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "range": ("start", "stop", "step"),
    "datetime": ("tzinfo",),
    "time": ("tzinfo",),
    "ndarray": ("dtype",),
}


def step(parent: object, children: Sequence[object], position: int, names: Sequence[str]) -> str:
    """The step from `parent` to its child at `position`; `names` are its attributes, if any.

    >>> step({"a": 1}, ["a", 1], 1, ()), step([5], [5], 0, ()), step(None, [1], 0, ("bias",))
    ('["a"]', '[0]', '.bias')
    """
    names = names or getattr(type(parent), "_fields", ()) or _FIELDS.get(type(parent).__name__, ())
    if position < len(names):
        return f".{names[position]}"
    if isinstance(parent, dict):
        if position % 2:
            return f"[{_spoken(children[position - 1])}]"
        return f".keys(){{{_spoken(children[position])}}}"
    if isinstance(parent, set | frozenset):
        return f"{{{_spoken(children[position])}}}"
    return f"[{position}]"


def join(steps: Sequence[str]) -> str:
    """The whole path from the value on; the middle of a very long one is left out.

    >>> join(['["layers"]', "[3]", ".bias"])
    'value["layers"][3].bias'
    """
    left_out = len(steps) - 2 * STEPS_SHOWN
    if left_out <= 0:
        return "value" + "".join(steps)
    start, end = "".join(steps[:STEPS_SHOWN]), "".join(steps[-STEPS_SHOWN:])
    return f"value{start}…({left_out} more)…{end}"


def _spoken(key: object) -> str:
    # Only built-in values are asked for their text: another's __repr__ may do anything.
    if type(key) not in _SPOKEN:
        return f"<{type(key).__name__}>"
    if type(key) is str and "'" not in key and '"' not in key:
        text = f'"{repr(key)[1:-1]}"'
    else:
        text = repr(key)
    return text if len(text) <= _KEY_CHARACTERS else text[: _KEY_CHARACTERS - 1] + "…"
