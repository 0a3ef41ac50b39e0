"""From bytes to objects: one pass over the nodes, in the order in which they were written.

Invariants:
- Whatever the bytes say, the outcome is a value or one of perdure's errors, in time and memory
  proportional to the bytes.
- A class is looked up in the caller's list and nowhere else.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from perdure.checkpointer.graph import layout, leaves
from perdure.checkpointer.graph.checks import exactly
from perdure.checkpointer.graph.classes import CLASS_VERSION, Classes, Entry, Kind
from perdure.checkpointer.graph.layout import Tag
from perdure.checkpointer.graph.writer import HASH_DEPTH_MAX
from perdure.errors import Corrupt, NotCheckpointable, PerdureError, UnsupportedFormat

T = TypeVar("T")

Row = list[layout.Value]

_INDEX: Final = msgspec.msgpack.Decoder(layout.Index)
_ARRAY_TAGS: Final = range(Tag.DTYPE, Tag.SCALAR_BYTES + 1)


def decode(data: bytes, classes: Classes) -> object:
    """The value that `encode` made these bytes of.

    Raises: Corrupt, UnsupportedFormat (a newer format, a class that changed since),
    NotCheckpointable (a class that is not registered).
    """
    kind, index, end = layout.split(data)
    try:
        if kind == layout.PLAIN:
            if end != len(data):
                raise Corrupt("there are bytes that belong to nothing")
            return _PLAIN.decode(index)
        parsed = _INDEX.decode(index)
        buffers = layout.BufferReader(memoryview(data), end, parsed.small)
        return _Reader(parsed, buffers, classes).read()
    except (PerdureError, MemoryError):
        raise
    # Constructors and the hashes of registered classes raise what they like on lying bytes.
    except Exception as error:
        raise Corrupt(
            f"the checkpoint's content doesn't make sense: {type(error).__name__}: {error}"
        ) from error


def _no_extension(code: int, _: memoryview) -> object:
    raise Corrupt(f"plain data holds an extension of type {code}")


_PLAIN: Final = msgspec.msgpack.Decoder(ext_hook=_no_extension)


@dataclass(frozen=True, slots=True)
class _Class:
    """A shape of the checkpoint and the class that it stands for here."""

    entry: Entry
    names: tuple[str, ...]
    direct: frozenset[str]
    """Attributes that the class guards with code of its own, which must not run: these go straight
    into the instance's dictionary, where they were found."""


class _Reader:
    def __init__(self, index: layout.Index, buffers: layout.BufferReader, classes: Classes) -> None:
        self._index = index
        self._buffers = buffers
        self._classes = [_resolve(shape, classes) for shape in index.shapes]
        self._objects: dict[int, object] = {}  # by node; what isn't there yet isn't in it
        self._unfilled: set[int] = set()
        self._tuple_depth: dict[int, int] = {}
        self._makes: dict[int, Callable[[leaves.Values, layout.BufferReader], object]] = (
            leaves.MAKES
        )

    def read(self) -> object:
        """Everything, in order; then the root."""
        nodes = self._index.nodes
        self._make_empty(nodes)
        for number, node in enumerate(nodes):
            tag = node[0]
            if tag == Tag.FILL:
                target = exactly(int, node[1])
                self._fill(target, exactly(int, nodes[target][0]), node[2:])
            elif number not in self._objects:
                self._objects[number] = self._make(number, exactly(int, tag), node)
            elif tag == Tag.OBJECT:
                if len(node) > 2 or not self._class(node).names:
                    self._fill(number, Tag.OBJECT, node[2:])
            elif len(node) > 1:
                self._fill(number, exactly(int, tag), node[1:])
        if self._unfilled:
            raise Corrupt("an object never got its attributes")
        self._buffers.finish()
        (root,) = self._values([self._index.root])
        return root

    def _make_empty(self, nodes: list[Row]) -> None:
        """What can exist before its content does, so that anything may refer to it."""
        objects = self._objects
        for number, node in enumerate(nodes):
            tag = exactly(int, node[0])
            if tag == Tag.LIST:
                objects[number] = []
            elif tag == Tag.DICT:
                objects[number] = {}
            elif tag == Tag.SET:
                objects[number] = set()
            elif tag == Tag.OBJECT:
                objects[number] = object.__new__(self._class(node, Kind.DATACLASS).entry.cls)
                self._unfilled.add(number)

    def _fill(self, number: int, tag: int, row: Row) -> None:
        values = self._values(row)
        target = self._objects[number]
        if tag == Tag.LIST and isinstance(target, list):
            target.extend(values)
        elif tag == Tag.DICT and isinstance(target, dict):
            self._check_hashed(row[::2])
            keys = values[::2]
            target.update(zip(keys, values[1::2], strict=True))
            _check_count(len(target), len(keys))
        elif tag == Tag.SET and isinstance(target, set):
            self._check_hashed(row)
            target.update(values)
            _check_count(len(target), len(values))
        elif tag == Tag.OBJECT:
            self._unfilled.remove(number)
            _set_attributes(target, self._class(self._index.nodes[number]), values)
        else:
            raise Corrupt("something is to be filled that holds nothing")

    def _make(self, number: int, tag: int, node: Row) -> object:
        """A value that is complete from the start."""
        make = self._makes.get(tag)
        if make is not None:
            return make(self._values(node[1:]), self._buffers)
        if tag in {Tag.TUPLE, Tag.NAMEDTUPLE}:
            return self._make_tuple(number, tag, node)
        if tag == Tag.FROZENSET:
            self._check_hashed(node[1:])
            elements = frozenset(self._values(node[1:]))
            _check_count(len(elements), len(node) - 1)
            return elements
        if tag == Tag.ENUM:
            return _member(self._class(node, Kind.ENUM), self._values(node[2:]))
        if tag in _ARRAY_TAGS and self._makes is leaves.MAKES:
            from perdure.checkpointer.graph import arrays

            self._makes = {**leaves.MAKES, **arrays.MAKES}
            return self._make(number, tag, node)
        raise Corrupt(f"there is a node of unknown kind {tag}")

    def _make_tuple(self, number: int, tag: int, node: Row) -> object:
        start = 1 if tag == Tag.TUPLE else 2
        row = node[start:]
        values = self._values(row)
        self._tuple_depth[number] = 1 + max(map(self._depth, row), default=0)
        if tag == Tag.TUPLE:
            return tuple(values)
        entry = self._class(node, Kind.NAMEDTUPLE).entry
        if len(values) != len(entry.fields):
            raise Corrupt(f"a {entry.key} has {len(values)} elements")
        return tuple.__new__(entry.cls, values)  # type: ignore[type-var]

    def _values(self, row: Row) -> list[object]:
        objects = self._objects
        # A reference to nothing, or to what isn't there yet, is a KeyError.
        return [objects[value[0]] if type(value) is tuple else value for value in row]

    def _class(self, node: Row, kind: Kind | None = None) -> _Class:
        number = exactly(int, node[1])
        if not 0 <= number < len(self._classes):
            raise Corrupt("a node refers to a class that is not listed")
        found = self._classes[number]
        if kind is not None and found.entry.kind is not kind:
            raise UnsupportedFormat(
                f"{found.entry.key} was a {kind.value} when it was saved, "
                f"and is a {found.entry.kind.value} now",
                hint="register the class as it was under its old name to read this checkpoint",
            )
        return found

    def _depth(self, value: layout.Value) -> int:
        return self._tuple_depth.get(value[0], 0) if type(value) is tuple else 0

    def _check_hashed(self, row: Row) -> None:
        if max(map(self._depth, row), default=0) > HASH_DEPTH_MAX:
            raise Corrupt("a key is nested too deep")


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise Corrupt(f"{expected} keys turned out to be {found} different ones")


def _resolve(shape: layout.Shape, classes: Classes) -> _Class:
    entry = classes.named(shape.key)
    if entry is None:
        module, _, name = shape.key.partition(":")
        raise NotCheckpointable(
            f"the checkpoint holds an object of class {name!r} of module {module!r}, "
            "which is not registered here",
            hint="import that module, with the class decorated with @perdure.checkpointable",
        )
    lost = sorted(set(shape.fields) - set(entry.fields))
    gained = sorted(set(entry.fields) - set(shape.fields))
    moved = entry.kind is Kind.NAMEDTUPLE and shape.fields != entry.fields
    if shape.version != CLASS_VERSION or lost or gained or moved:
        raise UnsupportedFormat(
            f"class {shape.key} changed since the checkpoint was saved: version {shape.version} "
            f"then, {CLASS_VERSION} now; fields lost: {', '.join(lost) or 'none'}; "
            f"fields new: {', '.join(gained) or 'none'}",
            hint="register the class as it was to read it, and save it in the new form",
        )
    if len(set(shape.names)) != len(shape.names):
        raise Corrupt(f"an object of class {shape.key} has an attribute twice")
    if not entry.has_dict and not entry.slots.issuperset(shape.names):
        raise Corrupt(f"an object of class {shape.key} has attributes that the class can't hold")
    direct = frozenset(
        name for name in shape.names if name not in entry.slots and _is_guarded(entry.cls, name)
    )
    return _Class(entry, shape.names, direct)


def _is_guarded(cls: type[object], name: str) -> bool:
    """Whether setting the attribute would run a descriptor (a property's setter, `__class__`)."""
    for base in cls.__mro__:
        if name in vars(base):
            return hasattr(type(vars(base)[name]), "__set__")
    return False


def _set_attributes(target: object, cls: _Class, values: list[object]) -> None:
    if len(values) != len(cls.names):
        raise Corrupt(f"an object of class {cls.entry.key} has {len(values)} attributes")
    put = object.__setattr__  # frozen dataclasses refuse their own
    if not cls.direct:
        for name, value in zip(cls.names, values, strict=True):
            put(target, name, value)
        return
    for name, value in zip(cls.names, values, strict=True):
        if name in cls.direct:
            vars(target)[name] = value
        else:
            put(target, name, value)


def _member(cls: _Class, values: list[object]) -> object:
    name, *rest = values
    members: dict[str, object] = getattr(cls.entry.cls, "__members__", {})
    if name is None and len(rest) == 1:
        # Members of a Flag combined; a plain enum would ask its own code about unknown values.
        if not issubclass(cls.entry.cls, enum.Flag):
            raise Corrupt(f"enum {cls.entry.key} has no combined members")
        return cls.entry.cls(exactly(int, rest[0]))
    if rest or type(name) is not str or name not in members:
        raise UnsupportedFormat(
            f"enum {cls.entry.key} has no member {name!r} any more",
            hint="add the member again, or an alias of that name",
        )
    return members[name]
