"""Checks of values whose type is not known: cheap where they hold, Corrupt where they don't."""

from typing import TypeVar

from perdure.errors import Corrupt

T = TypeVar("T")


def exactly(kind: type[T], value: object) -> T:
    """The value, if its type is exactly `kind` (so `True` is no `int`). Raises Corrupt.

    >>> exactly(int, 7)
    7
    """
    if type(value) is not kind:
        raise Corrupt(f"there is a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def only(kind: type[T], values: list[object]) -> T:
    """The single element of `values`, if it is exactly a `kind`. Raises Corrupt.

    >>> only(str, ["a"])
    'a'
    """
    if len(values) != 1:
        raise Corrupt(f"there are {len(values)} values where one belongs")
    return exactly(kind, values[0])


def integers(values: list[object], count: int | None = None) -> list[int]:
    """The values, if they are `count` integers (any number by default). Raises Corrupt.

    >>> integers([1, 2], 2)
    [1, 2]
    """
    if count is not None and len(values) != count:
        raise Corrupt(f"there are {len(values)} values where {count} belong")
    return [exactly(int, value) for value in values]
