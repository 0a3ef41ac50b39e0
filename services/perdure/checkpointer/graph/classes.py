"""Which classes may be restored. Nothing outside this list is ever made from stored bytes."""

import dataclasses
import enum
import types
from typing import Final, TypeVar

from perdure.errors import NotCheckpointable

T = TypeVar("T")

CLASS_VERSION: Final = 1
"""Version of every registered class so far; stored, so that classes can be migrated later."""

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code


class Kind(enum.Enum):
    """How instances of a registered class are taken apart."""

    DATACLASS = "dataclass"
    NAMEDTUPLE = "named tuple"
    ENUM = "enum"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A registered class, and what reader and writer need to know of it.

    `fields` are its dataclass or named-tuple fields, in order. `slots` are the attributes it keeps
    outside of an instance's `__dict__`. `hashed_by_identity` tells that an instance can be a key
    before its attributes are there.
    """

    cls: type[object]
    key: str
    kind: Kind
    fields: tuple[str, ...]
    slots: frozenset[str]
    has_dict: bool
    hashed_by_identity: bool


class Classes:
    """An allow-list of classes, by "module:qualname".

    >>> from dataclasses import dataclass
    >>> classes = Classes()
    >>> @classes.register
    ... @dataclass
    ... class Policy:
    ...     tone: str
    >>> from perdure.checkpointer.graph import decode, encode
    >>> decode(encode(Policy("calm"), classes), classes)
    Policy(tone='calm')
    """

    def __init__(self) -> None:
        self._by_key: dict[str, Entry] = {}
        self._by_class: dict[type[object], Entry] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Allow a dataclass, named tuple or enum; gives the class back, so it is a decorator too.

        A class of the same name that was registered before is replaced: instances of the old one
        can't be saved any more.

        Raises NotCheckpointable for other classes.
        """
        entry = _entry(cls)
        before = self._by_key.get(entry.key)
        if before is not None:
            del self._by_class[before.cls]
        self._by_key[entry.key] = entry
        self._by_class[cls] = entry
        return cls

    def of(self, cls: type[object]) -> Entry | None:
        """The entry of exactly this class, None if it is not registered."""
        return self._by_class.get(cls)

    def named(self, key: str) -> Entry | None:
        """The entry of the class with this key, None if it is not registered."""
        return self._by_key.get(key)


def key_of(cls: type[object]) -> str:
    """The name under which a class is stored.

    >>> key_of(int)
    'builtins:int'
    """
    return f"{cls.__module__}:{cls.__qualname__}"


def kind_of(cls: type[object]) -> Kind | None:
    """What kind of registrable class this is, None if it is none.

    >>> kind_of(Kind), kind_of(int)
    (<Kind.ENUM: 'enum'>, None)
    """
    if issubclass(cls, enum.Enum):
        return Kind.ENUM
    if issubclass(cls, tuple):
        return Kind.NAMEDTUPLE if isinstance(getattr(cls, "_fields", None), tuple) else None
    return Kind.DATACLASS if dataclasses.is_dataclass(cls) else None


def _entry(cls: type[object]) -> Entry:
    given: object = cls  # decorators get all sorts of things
    kind = kind_of(cls) if isinstance(given, type) else None
    if kind is None:
        raise NotCheckpointable(
            f"can't register {cls!r}: it is no dataclass, named tuple or enum",
            hint="write @dataclass below @perdure.checkpointable",
        )
    fields: tuple[str, ...] = ()
    if kind is Kind.DATACLASS:
        # State of a built-in base (dict, Exception) is not among the attributes and would be lost.
        for base in cls.__mro__:
            if base is not object and not base.__flags__ & _HEAP_TYPE:
                raise NotCheckpointable(
                    f"can't register {key_of(cls)}: it derives from {base.__name__}, "
                    "whose content is not among its fields",
                    hint=f"hold the {base.__name__} in a field instead",
                )
        fields = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    elif kind is Kind.NAMEDTUPLE:
        fields = tuple(getattr(cls, "_fields", ()))
    return Entry(
        cls=cls,
        key=key_of(cls),
        kind=kind,
        fields=fields,
        slots=frozenset(
            name
            for base in cls.__mro__
            for name, member in vars(base).items()
            if isinstance(member, types.MemberDescriptorType)
        ),
        has_dict=any("__dict__" in vars(base) for base in cls.__mro__),
        hashed_by_identity=cls.__hash__ is object.__hash__,
    )


default_classes: Final = Classes()
"""The classes that `@perdure.checkpointable` allows."""

checkpointable: Final = default_classes.register
"""Decorator: instances of this dataclass, named tuple or enum may be saved and restored."""
