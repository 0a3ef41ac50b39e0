"""Immutable containers whose updates are cheap, so that folding a long history is never quadratic.

Invariants:
- A `Series` or `Map` never changes once it is handed out.
- Appending to the newest `Series` of its line is O(1) and shares all that came before; appending to
  an older one copies (a fork, or a state that was kept and continued another way).
- A `Map` iterates in the order of its keys, so that equal maps have equal JSON.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

import immutables

T = TypeVar("T")
V = TypeVar("V")


class Series(Sequence[T]):
    """An immutable sequence with a cheap `append`; equals a list of the same items.

    >>> short = Series(["a"])
    >>> long = short.append("b")
    >>> short, long, long == ["a", "b"]
    (Series(['a']), Series(['a', 'b']), True)
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    @classmethod
    def adopt(cls, items: list[T]) -> "Series[T]":
        """A series of a list that nobody else will change: nothing is copied.

        >>> Series.adopt([1, 2])
        Series([1, 2])
        """
        series: Series[T] = cls.__new__(cls)
        series._items = items
        series._length = len(items)
        return series

    def append(self, item: T) -> "Series[T]":
        """A series with one more item at its end.

        >>> Series([1]).append(2)
        Series([1, 2])
        """
        items = self._items
        if len(items) != self._length:
            items = items[: self._length]
        items.append(item)
        longer: Series[T] = Series.__new__(Series)
        longer._items = items
        longer._length = self._length + 1
        return longer

    def extend(self, more: Iterable[T]) -> "Series[T]":
        """A series with more items at its end.

        >>> Series([1]).extend([2, 3])
        Series([1, 2, 3])
        """
        items = self._items
        if len(items) != self._length:
            items = items[: self._length]
        items += more
        return Series.adopt(items)

    def to_list(self) -> list[T]:
        """A list of the items, the caller's own.

        >>> Series([1]).to_list()
        [1]
        """
        return self._items[: self._length]

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._items[at] for at in range(*index.indices(self._length))]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} of a series of {self._length}")
        return self._items[index]

    def __iter__(self) -> Iterator[T]:
        items = self._items
        for index in range(self._length):
            yield items[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Series):
            return self._length == other._length and (
                self._items is other._items or self.to_list() == other.to_list()
            )
        return isinstance(other, list) and self.to_list() == other

    __hash__ = None  # type: ignore[assignment]  # its items are JSON values, most are unhashable

    def __repr__(self) -> str:
        return f"Series({self.to_list()!r})"


class Map(Mapping[str, V]):
    """An immutable mapping of texts with cheap updates; equals a dict of the same items.

    >>> one = Map({"b": 2})
    >>> two = one.set("a", 1)
    >>> one, two, two == {"a": 1, "b": 2}, two.without("b")
    (Map({'b': 2}), Map({'a': 1, 'b': 2}), True, Map({'a': 1}))
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: immutables.Map[str, V] = immutables.Map(items or {})

    def set(self, key: str, value: V) -> "Map[V]":
        """A map in which `key` has this value.

        >>> Map({"a": 1}).set("a", 2)
        Map({'a': 2})
        """
        return self._with(self._items.set(key, value))

    def updated(self, more: Mapping[str, V], without: Iterable[str] = ()) -> "Map[V]":
        """A map in which these keys have these values, and those of `without` have none.

        >>> Map({"a": 1, "b": 2}).updated({"b": 3, "c": 4}, without=["a", "z"])
        Map({'b': 3, 'c': 4})
        """
        items = self._items.mutate()
        items.update(more)
        for key in without:
            items.pop(key, None)
        return self._with(items.finish())

    def without(self, key: str) -> "Map[V]":
        """A map that lacks `key`, whether or not this one has it.

        >>> Map({"a": 1}).without("b")
        Map({'a': 1})
        """
        return self._with(self._items.delete(key)) if key in self._items else self

    def items(self) -> ItemsView[str, V]:
        """The pairs, in the order of their keys."""
        return self.to_dict().items()

    def to_dict(self) -> dict[str, V]:
        """A dict of the items in the order of their keys, the caller's own.

        >>> Map({"b": 2, "a": 1}).to_dict()
        {'a': 1, 'b': 2}
        """
        items = self._items
        return {key: items[key] for key in sorted(items)}

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Map):
            return bool(self._items == other._items)
        return isinstance(other, Mapping) and dict(self._items) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # its values are JSON values, most are unhashable

    def __repr__(self) -> str:
        return f"Map({dict(self.items())!r})"

    def _with(self, items: "immutables.Map[str, V]") -> "Map[V]":
        changed: Map[V] = Map.__new__(Map)
        changed._items = items
        return changed
