"""From objects to bytes: a walk along all references that keeps its own stack.

The nodes are written children first. Where objects lead back to themselves there is no such order:
the walk finds these circles as it goes (Tarjan's strongly connected components), and what couldn't
be filled within one is filled when all of it has been written, keys last, since hashing them may
look at the rest.
"""

import sys
import types
from collections.abc import Iterable
from typing import Final

import msgspec

from perdure.checkpointer.graph import layout, leaves, paths
from perdure.checkpointer.graph.checks import exactly
from perdure.checkpointer.graph.classes import CLASS_VERSION, Classes, Entry, Kind, key_of, kind_of
from perdure.checkpointer.graph.layout import Tag
from perdure.checkpointer.graph.plain import LONG_TEXT, is_plain
from perdure.errors import NotCheckpointable

HASH_DEPTH_MAX: Final = 32
"""Levels of tuples within a key or a set's element. Python hashes tuples recursively and unchecked:
deep ones could end the process that reads them."""

_FILLED: Final = frozenset({Tag.LIST, Tag.DICT, Tag.SET, Tag.OBJECT})
_HASHED: Final = frozenset({Tag.DICT, Tag.SET, Tag.FROZENSET})
_TUPLES: Final = frozenset({Tag.TUPLE, Tag.NAMEDTUPLE})
_NODE_START: Final[dict[object, int]] = {Tag.OBJECT: 2, Tag.NAMEDTUPLE: 2}
"""How many elements of a node come before its content, where it isn't the tag alone."""

Reference = list[int]
"""A reference as it is written: an array of one integer, -1 until the node's number is known."""


def encode(value: object, classes: Classes) -> bytes:
    """A value as bytes, in the format that the package describes.

    Raises NotCheckpointable, naming the path inside the value to what can't be kept.

    >>> from perdure.checkpointer.graph import decode
    >>> loop = [1]
    >>> loop.append(loop)
    >>> again = decode(encode(loop, Classes()), Classes())
    >>> again[1] is again
    True
    """
    if is_plain(value):
        try:
            return layout.join(layout.PLAIN, msgspec.msgpack.encode(value), [])
        except (OverflowError, UnicodeEncodeError):
            pass  # an integer beyond 64 bits, a lone surrogate: graphs hold them
    return _Writer(classes).write(value)


class _Frame:
    """An object on the way from the root to where the walk is."""

    __slots__ = (
        "blocked",
        "children",
        "cursor",
        "low",
        "node",
        "number",
        "tag",
        "value",
    )

    def __init__(
        self, value: object, head: list[object], children: list[object], number: int
    ) -> None:
        self.value = value
        self.node = head
        self.tag = head[0]
        self.children = children
        self.cursor = 0
        self.number = number
        self.low = number  # lowest number of an unfinished object that this one leads back to
        self.blocked = False  # holds an object that can't exist before this one does


class _Writer:
    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._buffers = layout.BufferWriter()
        self._nodes: list[list[object]] = []
        self._shapes: dict[tuple[type[object], tuple[str, ...]], int] = {}
        self._shape_rows: list[layout.Shape] = []
        self._references: dict[int, Reference] = {}
        self._kept: list[object] = []  # so that no identity is given to a second object meanwhile
        self._numbers = 0
        self._stack: list[_Frame] = []
        self._circle: list[int] = []  # identities whose circle is not known to be complete
        self._circle_numbers: dict[int, int] = {}
        self._waiting: list[tuple[int, bool, list[object]]] = []  # number, keys?, FILL node
        self._unfinished_values: set[int] = set()  # tuples and the like on the way
        self._hashable: set[int] = set()  # in a circle, but can be hashed already
        self._tuple_depth: dict[int, int] = {}

    def write(self, root: object) -> bytes:
        """Walk everything that `root` leads to, and put the pieces together."""
        if leaves.is_inline(root):
            first: object = root
        else:
            first = self._open(root)
            while self._stack:
                self._step()
        index = [first, self._shape_rows, self._nodes, self._buffers.small]
        return layout.join(layout.GRAPH, msgspec.msgpack.encode(index), self._buffers.large)

    def _open(self, value: object) -> Reference:
        """Begin an object: write it at once where it leads nowhere, else put it on the stack."""
        try:
            head, children = self._plan(value)
        except NotCheckpointable as error:
            raise NotCheckpointable(
                f"can't checkpoint {self._path()}: {error.message}", hint=error.hint
            ) from None
        reference: Reference = [-1]
        identity = id(value)
        self._references[identity] = reference
        self._kept.append(value)
        if not children:
            reference[0] = len(self._nodes)
            self._nodes.append(head)
            return reference
        self._numbers += 1
        self._stack.append(_Frame(value, head, children, self._numbers))
        self._circle.append(identity)
        self._circle_numbers[identity] = self._numbers
        if head[0] not in _FILLED:
            self._unfinished_values.add(identity)
        return reference

    def _step(self) -> None:
        """Go on with the object on top of the stack until it is done or leads to a new one."""
        frame = self._stack[-1]
        node, children = frame.node, frame.children
        for position in range(frame.cursor, len(children)):
            child = children[position]
            # Short ASCII texts, the most common, without a call; then all that stands for itself.
            if (
                type(child) is str and len(child) <= LONG_TEXT and child.isascii()
            ) or leaves.is_inline(child):
                node.append(child)
                continue
            identity = id(child)
            reference = self._references.get(identity)
            if reference is None:
                frame.cursor = position + 1
                node.append(self._open(child))
                if self._stack[-1] is not frame:
                    return
                continue
            node.append(reference)
            number = self._circle_numbers.get(identity)
            if number is not None:
                frame.low = min(frame.low, number)
                if identity in self._unfinished_values:
                    frame.blocked = True
        frame.cursor = len(children)
        self._close(frame)
        self._stack.pop()
        if self._stack:
            self._stack[-1].low = min(self._stack[-1].low, frame.low)

    def _close(self, frame: _Frame) -> None:
        """Write a node whose children have been seen, and complete its circle if it began one."""
        node, tag, identity = frame.node, frame.tag, id(frame.value)
        keys_ready = tag not in _HASHED or self._keys_ready(frame)
        if tag in _FILLED:
            if frame.blocked or not keys_ready:
                start = _NODE_START.get(tag, 1)
                fill = [Tag.FILL, self._references[identity][0], *node[start:]]
                self._waiting.append((frame.number, not keys_ready, fill))
                node = node[:start]
        else:
            if frame.blocked or not keys_ready:
                raise NotCheckpointable(
                    f"can't checkpoint {self._path(self._stack[:-1])}: this "
                    f"{type(frame.value).__name__} leads back to itself in a way that can't be "
                    "built again",
                    hint="put a list, dict or set in its place somewhere on the way",
                )
            self._unfinished_values.discard(identity)
            if tag in _TUPLES:
                self._note_tuple(frame, identity)
            elif frame.number != frame.low:
                self._hashable.add(identity)
        number = len(self._nodes)
        self._references[identity][0] = number
        if tag in _FILLED and node is not frame.node:
            self._waiting[-1][2][1] = number
        self._nodes.append(node)
        if frame.low == frame.number:
            self._complete(frame)

    def _complete(self, frame: _Frame) -> None:
        """A circle has been written: fill what waited for it, keys last."""
        while self._circle_numbers.pop(self._circle.pop()) != frame.number:
            pass
        if not self._waiting:
            return
        first = len(self._waiting)
        while first and self._waiting[first - 1][0] >= frame.number:
            first -= 1
        for keys in (False, True):
            self._nodes.extend(fill for _, late, fill in self._waiting[first:] if late is keys)
        del self._waiting[first:]

    def _keys_ready(self, frame: _Frame) -> bool:
        """Whether everything that will be hashed can be hashed when this node is read."""
        step = 2 if frame.tag == Tag.DICT else 1
        for position in range(0, len(frame.children), step):
            child = frame.children[position]
            identity = id(child)
            if self._tuple_depth.get(identity, 0) > HASH_DEPTH_MAX and not leaves.is_inline(child):
                raise NotCheckpointable(
                    f"can't checkpoint {self._path(self._stack[:-1])}: a key or element nests more "
                    f"than {HASH_DEPTH_MAX} tuples",
                    hint="use flat tuples as keys",
                )
            if not self._ready(child):
                return False
        return True

    def _ready(self, child: object) -> bool:
        identity = id(child)
        if identity not in self._circle_numbers or leaves.is_inline(child):
            return True
        entry = self._classes.of(type(child))
        if entry is not None and entry.kind is Kind.DATACLASS:
            return entry.hashed_by_identity
        return identity in self._hashable

    def _note_tuple(self, frame: _Frame, identity: int) -> None:
        depth = 1 + max(
            (self._tuple_depth.get(id(child), 0) for child in frame.children), default=0
        )
        self._tuple_depth[identity] = depth
        if frame.number != frame.low and all(map(self._ready, frame.children)):
            self._hashable.add(identity)

    def _plan(self, value: object) -> leaves.Plan:  # noqa: PLR0911 - one for each kind of value
        """The start of a value's node, and the objects that the rest of it stands for."""
        kind = type(value)
        if kind is dict:
            pairs = list(value.items())  # type: ignore[attr-defined]
            return [Tag.DICT], [part for pair in pairs for part in pair]
        if kind is list:
            return [Tag.LIST], value.copy()  # type: ignore[attr-defined]
        if kind is tuple:
            return [Tag.TUPLE], list(value)  # type: ignore[call-overload]
        entry = self._classes.of(kind)
        if entry is not None:
            return self._plan_registered(value, entry)
        plan = leaves.PLANS.get(kind)
        if plan is not None:
            return plan(value, self._buffers)
        if kind is set or kind is frozenset:
            return [Tag.SET if kind is set else Tag.FROZENSET], _steady(value)  # type: ignore[arg-type]
        if "numpy" in sys.modules:
            from perdure.checkpointer.graph import arrays

            if arrays.is_numpy(value):
                return arrays.plan(value, self._buffers)
        raise _refusal(value)

    def _plan_registered(self, value: object, entry: Entry) -> leaves.Plan:
        if entry.kind is Kind.ENUM:
            name = getattr(value, "name", None)
            if getattr(entry.cls, "__members__", {}).get(name) is value:
                return [Tag.ENUM, self._shape(entry, ())], [name]
            return [Tag.ENUM, self._shape(entry, ())], [None, getattr(value, "value", None)]
        if entry.kind is Kind.NAMEDTUPLE:
            if getattr(value, "__dict__", None):
                raise NotCheckpointable(
                    f"it is a {entry.key} with attributes besides its elements",
                    hint="make the class a dataclass",
                )
            return [Tag.NAMEDTUPLE, self._shape(entry, ())], list(value)  # type: ignore[call-overload]
        if entry.slots:
            attributes = {
                name: getattr(value, name) for name in sorted(entry.slots) if hasattr(value, name)
            }
            if entry.has_dict:
                attributes |= vars(value)
        else:
            attributes = vars(value)
        names = tuple(attributes)
        return [Tag.OBJECT, self._shape(entry, names)], list(attributes.values())

    def _shape(self, entry: Entry, names: tuple[str, ...]) -> int:
        known = self._shapes.get((entry.cls, names))
        if known is not None:
            return known
        self._shapes[entry.cls, names] = len(self._shape_rows)
        self._shape_rows.append(layout.Shape(entry.key, CLASS_VERSION, entry.fields, names))
        return len(self._shape_rows) - 1

    def _path(self, frames: list[_Frame] | None = None) -> str:
        steps: list[str] = []
        for frame in self._stack if frames is None else frames:
            names: tuple[str, ...] = ()
            if frame.tag == Tag.OBJECT:
                names = self._shape_rows[exactly(int, frame.node[1])].names
            steps.append(paths.step(frame.value, frame.children, frame.cursor - 1, names))
        return paths.join(steps)


def _steady(items: Iterable[object]) -> list[object]:
    """The elements of a set, in an order that is the same in every process where there is one.

    The same content then has the same bytes, and is stored once.
    """
    elements = list(items)
    kinds = set(map(type, elements))
    if kinds in ({str}, {int}, {bytes}):
        elements.sort()
    return elements


_HINTS: Final[tuple[tuple[tuple[str, ...], str, str], ...]] = (
    (
        (
            "builtins.function",
            "builtins.builtin_function_or_method",
            "builtins.method",
            "functools.partial",
        ),
        "a function",
        "keep its name and arguments, and look it up after restoring",
    ),
    (("builtins.module",), "a module", "keep its name, and import it after restoring"),
    (
        ("builtins.generator", "builtins.coroutine", "builtins.async_generator"),
        "a running computation",
        "keep what it gave so far, and where to go on",
    ),
    (
        (
            "_thread.lock",
            "_thread.RLock",
            "threading.Condition",
            "threading.Event",
            "asyncio.locks.Lock",
        ),
        "a lock",
        "leave it out, and make a new one after restoring",
    ),
    (("socket.socket", "ssl.SSLSocket"), "a socket", "keep its address, and connect anew"),
)


def _refusal(value: object) -> NotCheckpointable:
    """Why a value can't be kept, and what to do instead."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        return NotCheckpointable(
            f"it is a class ({key_of(value)})", hint="keep its name, and look it up after restoring"
        )
    for names, what, hint in _HINTS:
        if name in names or (what == "a function" and isinstance(value, types.MethodType)):
            return NotCheckpointable(f"it is {what} ({_called(value, name)})", hint=hint)
    if kind.__module__ in {"_io", "tempfile"}:
        return NotCheckpointable(
            f"it is an open file ({name})", hint="keep its path and position, and open it anew"
        )
    if kind_of(kind) is not None:
        return NotCheckpointable(
            f"its class {key_of(kind)} is not registered",
            hint=f"decorate class {kind.__name__} with @perdure.checkpointable",
        )
    for base in (dict, list, tuple, set, frozenset, str, bytes, int, float):
        if isinstance(value, base):
            return NotCheckpointable(
                f"it is a {name}, a subclass of {base.__name__}",
                hint=f"save {base.__name__}(value), or a registered dataclass that holds one",
            )
    return NotCheckpointable(
        f"it is a {name}",
        hint="make it a dataclass decorated with @perdure.checkpointable, or keep plain data",
    )


def _called(value: object, otherwise: str) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) else otherwise
