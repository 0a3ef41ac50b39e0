"""What changed between two states, as readable paths."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from perdure.model import state
from perdure.model.event import JSON


class Difference(msgspec.Struct, frozen=True):
    """One difference: `path` such as `records.profile.tier`, what was there and what is.

    >>> str(Difference(path="plan", kind="changed", before=1, after=2))
    'plan: 1 → 2'
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    before: JSON = None
    after: JSON = None

    def __str__(self) -> str:
        before, after = _shown(self.before), _shown(self.after)
        if self.kind == "added":
            return f"{self.path}: + {after}"
        if self.kind == "removed":
            return f"{self.path}: - {before}"
        return f"{self.path}: {before} → {after}"


def diff(before: object, after: object) -> list[Difference]:
    """The differences between two states or other JSON-able values, in the order of the fields.

    Sequences are compared from their start: items after the common part are removed and added.

    >>> [str(change) for change in diff({"tier": "gold", "seats": [1]}, {"seats": [1, 2]})]
    ['tier: - "gold"', 'seats[1]: + 2']
    """
    return list(_walk("", _json(before), _json(after)))


def _json(value: object) -> JSON:
    built: JSON = msgspec.to_builtins(value, enc_hook=state.builtins)
    return built


def _walk(path: str, before: JSON, after: JSON) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{path}.{key}" if path else key
            if key not in after:
                yield Difference(inner, "removed", before=before[key])
            elif key not in before:
                yield Difference(inner, "added", after=after[key])
            else:
                yield from _walk(inner, before[key], after[key])
    elif isinstance(before, list) and isinstance(after, list):
        common = min(len(before), len(after))
        for index in range(common):
            yield from _walk(f"{path}[{index}]", before[index], after[index])
        for index in range(common, len(before)):
            yield Difference(f"{path}[{index}]", "removed", before=before[index])
        for index in range(common, len(after)):
            yield Difference(f"{path}[{index}]", "added", after=after[index])
    elif before != after or type(before) is not type(after):
        yield Difference(path or "value", "changed", before=before, after=after)


def _shown(value: JSON) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else f"{text[:117]}..."
