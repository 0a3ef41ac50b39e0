"""Object graphs as bytes: what goes in comes out, or is refused; lies are noticed."""

import asyncio
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import math
import pathlib
import random
import socket
import struct
import subprocess
import sys
import threading
import uuid
import zoneinfo
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from perdure.checkpointer.graph import Classes, decode, encode
from perdure.checkpointer.graph.layout import GRAPH, Tag, join
from perdure.errors import Corrupt, NotCheckpointable, PerdureError, UnsupportedFormat

CLASSES = Classes()


@CLASSES.register
@dataclasses.dataclass
class Node:
    """Mutable, with a dictionary."""

    name: object = None
    items: object = None


@CLASSES.register
@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """Frozen, hashed by its fields, in slots."""

    left: object
    right: object = None


@CLASSES.register
@dataclasses.dataclass(eq=False)
class Person:
    """Hashed by identity, as members of a network are."""

    name: str
    friends: object = None


@CLASSES.register
@dataclasses.dataclass
class Named:
    """Hashed by its name, while its other fields may lead anywhere."""

    name: str
    friends: object = None

    def __hash__(self):
        return hash(self.name)


@CLASSES.register
@dataclasses.dataclass
class Loud:
    """Would tell if any of its code ran."""

    secret: str = "x"  # noqa: S105 - says nothing
    ran = 0

    def __post_init__(self):
        type(self).ran += 1
        self.cache = {"of": self.secret}

    @property
    def shown(self):
        """A property that an attribute of the same name hides behind."""
        return self.secret

    @shown.setter
    def shown(self, _):
        type(self).ran += 1

    def __setstate__(self, _):
        type(self).ran += 1

    def __reduce__(self):
        type(self).ran += 1
        return (str, ())


@CLASSES.register
class Point(NamedTuple):
    """A named tuple of anything."""

    x: object
    y: object = None


@CLASSES.register
class Colour(enum.StrEnum):
    """An enum whose members are texts."""

    RED = "red"
    BLUE = "blue"


@CLASSES.register
class Right(enum.Flag):
    """An enum whose members combine."""

    READ = 1
    WRITE = 2
    SHARE = 4


@dataclasses.dataclass
class Stranger:
    """A dataclass that nobody registered."""

    name: str = "?"


def again(value):
    """The value, saved and restored."""
    return decode(encode(value, CLASSES), CLASSES)


def alike(expected, actual):  # noqa: C901, PLR0911, PLR0912 - a branch for each kind
    """Whether two graphs are the same: types, values, order, and which names lead to one object."""
    pairs: dict[int, int] = {}
    back: dict[int, int] = {}
    todo = [(expected, actual)]
    while todo:
        one, two = todo.pop()
        if type(one) is not type(two):
            return False
        if isinstance(one, list | dict | set | bytearray | Node | Key | Person | np.ndarray):
            if id(one) in pairs or id(two) in back:
                if pairs.get(id(one)) != id(two) or back.get(id(two)) != id(one):
                    return False
                continue
            pairs[id(one)], back[id(two)] = id(two), id(one)
        if isinstance(one, float):
            if struct.pack("<d", one) != struct.pack("<d", two) and not (
                math.isnan(one) and math.isnan(two)
            ):
                return False
        elif isinstance(one, complex):
            todo += [(one.real, two.real), (one.imag, two.imag)]
        elif isinstance(one, list | tuple):
            if len(one) != len(two):
                return False
            todo += zip(one, two, strict=True)
        elif isinstance(one, dict):
            if len(one) != len(two):
                return False
            todo += zip(one.keys(), two.keys(), strict=True)
            todo += zip(one.values(), two.values(), strict=True)
        elif isinstance(one, set | frozenset):
            # Elements made here are told apart by their text.
            if len(one) != len(two):
                return False
            todo += zip(sorted(one, key=repr), sorted(two, key=repr), strict=True)
        elif dataclasses.is_dataclass(one):
            for field in dataclasses.fields(one):
                todo.append((getattr(one, field.name), getattr(two, field.name)))
        elif isinstance(one, np.ndarray):
            if one.dtype != two.dtype or one.shape != two.shape or one.tobytes() != two.tobytes():
                return False
        elif isinstance(one, dt.datetime | dt.time):
            if (one.replace(tzinfo=None), one.fold, str(one.tzinfo)) != (
                two.replace(tzinfo=None),
                two.fold,
                str(two.tzinfo),
            ):
                return False
        elif isinstance(one, decimal.Decimal):
            if one.as_tuple() != two.as_tuple():
                return False
        elif one != two:
            return False
    return True


ZONES = st.one_of(
    st.none(),
    st.just(dt.UTC),
    st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23))),
    st.sampled_from(["Europe/Berlin", "America/Argentina/Buenos_Aires"]).map(zoneinfo.ZoneInfo),
)
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 200), 1 << 200),
    st.floats(),
    st.text(st.characters(codec=None), max_size=20),
    st.text(max_size=600),
    st.binary(max_size=600),
    st.complex_numbers(),
    st.decimals(),
    st.uuids(),
    st.dates(),
    st.times(timezones=st.just(dt.UTC) | st.none()),
    st.datetimes(timezones=ZONES),
    st.timedeltas(),
    st.sampled_from([*Colour, *Right, Right.READ | Right.SHARE]),
    st.sampled_from(
        [pathlib.PurePosixPath("/a/ä"), pathlib.PureWindowsPath("C:\\x"), pathlib.Path()]
    ),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 1 << 70)),
)
SORTED_ATOMS = st.integers() | st.text(max_size=3) | st.booleans()
HASHABLE = st.recursive(
    SORTED_ATOMS,
    lambda inner: st.one_of(
        st.builds(tuple, st.lists(inner, max_size=3)),
        st.builds(Point, inner, inner),
        st.builds(Key, inner, inner),
        st.frozensets(SORTED_ATOMS, max_size=3),
    ),
    max_leaves=4,
)


@st.composite
def graphs(draw):
    """Objects whose content is drawn from among all of them: shared, circular, in any order."""
    makers = [list, dict, set, Node, bytearray, lambda: Person("p")]
    objects = [draw(st.sampled_from(makers))() for _ in range(draw(st.integers(1, 8)))]
    pool = list(objects)
    for _ in range(draw(st.integers(0, 6))):  # values without a life of their own, in between
        parts = st.sampled_from(pool) | ATOMS
        pool.append(
            draw(
                st.one_of(
                    st.builds(tuple, st.lists(parts, max_size=3)),
                    st.builds(Point, parts, parts),
                    st.builds(Key, parts, parts),
                    st.frozensets(SORTED_ATOMS, max_size=3),
                )
            )
        )
    parts = st.sampled_from(pool) | ATOMS
    for one in objects:
        if isinstance(one, list):
            one.extend(draw(st.lists(parts, max_size=4)))
        elif isinstance(one, dict):
            one.update(draw(st.dictionaries(HASHABLE, parts, max_size=4)))
        elif isinstance(one, set):
            one.update(draw(st.sets(SORTED_ATOMS, max_size=4)))
        elif isinstance(one, bytearray):
            one.extend(draw(st.binary(max_size=300)))
        elif isinstance(one, Node):
            one.name, one.items = draw(parts), draw(parts)
        else:
            one.friends = draw(parts)
    return draw(st.sampled_from(pool))


@given(graphs() | ATOMS | HASHABLE)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_graph_comes_back_as_it_was(value):
    """Types, values, order, and which names lead to the same object are kept, cycles included."""
    assert alike(value, again(value))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats()
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_data_comes_back_as_it_was(value):
    """JSON-like data is kept exactly, NaN, infinities and negative zero included."""
    assert alike(value, again(value))


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {"a": (1,)},
        {1: "int", "1": "text", None: 0, 2.5: 1, (1, (2,)): 3},
        {True: 1},
        [True, 1, 1.0],
        bytearray(b"abc"),
        b"",
        b"x" * 10_000,
        "\ud800 lone",
        {"\udfff": 1},
        -(1 << 63),
        -(1 << 63) - 1,
        (1 << 64),
        1 << 10_000,
        -0.0,
        math.inf,
        -math.inf,
        complex(-0.0, math.inf),
        frozenset({frozenset({1}), frozenset()}),
        decimal.Decimal("-0.00"),
        decimal.Decimal("sNaN123"),
        decimal.Decimal("1E+999999"),
        uuid.UUID(int=7),
        dt.timedelta.min,
        dt.datetime.max,  # noqa: DTZ901
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        dt.timezone(dt.timedelta(hours=2), "here"),
        dt.timezone(dt.timedelta(seconds=-1)),
        range(10, 0, -3),
        range(10**30, 10**31),
        pathlib.Path("a/\udcff"),
        Colour.RED,
        Right(0),
        Point(1, Point(2)),
        Key((1, 2), Key(None)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_each_kind_of_value(value):
    """Each kind of value that is promised is kept, with exactly its type."""
    assert alike(value, again(value))


def test_the_time_zone_utc_stays_the_one_and_only():
    """Code that compares a zone with `is` goes on working."""
    assert again(dt.datetime.now(dt.UTC)).tzinfo is dt.UTC


def test_order_of_a_dict_is_kept():
    """Keys come back in the order in which they were put in."""
    keys = [f"k{number}" for number in range(100)]
    random.Random(1).shuffle(keys)
    assert keys == list(again(dict.fromkeys(keys)))
    assert keys == list(again(dict.fromkeys(keys, (1,))))


def test_sets_of_texts_have_the_same_bytes_in_every_process():
    """The same set is stored once, whatever the order in which a process iterates over it."""
    code = (
        "from perdure.checkpointer.graph import *; import hashlib;"
        "print(hashlib.sha256(encode({str(i) for i in range(50)}, Classes())).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(digests) == 1


class TestSharing:
    """Two names for one object stay that; circles stay circles."""

    def test_a_list_that_holds_itself(self):
        """It holds itself afterwards too."""
        value = []
        value.append(value)
        result = again(value)
        assert result[0] is result

    def test_dicts_that_hold_each_other(self):
        """Each is found in the other again."""
        one, two = {}, {}
        one["two"], two["one"] = two, one
        result = again(one)
        assert result["two"]["one"] is result

    def test_a_tuple_in_a_list_in_the_tuple(self):
        """Values that can't be filled later are built when what they hold exists."""
        inner = []
        value = (inner, 1)
        inner.append(value)
        result = again(value)
        assert result[0][0] is result
        assert again(inner)[0][0][0][1] == 1

    def test_a_namedtuple_in_a_circle(self):
        """The same holds for named tuples."""
        node = Node()
        node.items = Point(node, [node])
        result = again(node)
        assert result.items.x is result
        assert result.items.y[0] is result

    def test_dataclasses_in_a_circle(self):
        """Frozen ones too: their fields are set from below."""
        items = []
        key = Key(items)
        items.append(key)
        result = again(key)
        assert result.left[0] is result

    def test_shared_plain_containers(self):
        """Nothing but JSON in it, and still one list, not two."""
        shared = [1]
        result = again({"a": shared, "b": [shared]})
        assert result["a"] is result["b"][0]

    def test_equal_containers_stay_two(self):
        """Changing one must not change the other."""
        result = again({"a": [], "b": []})
        assert result["a"] is not result["b"]

    def test_shared_arrays_and_bytes_are_stored_once(self):
        """A large part that is there a hundred times takes the place of one."""
        for part in (np.zeros(100_000, np.uint8), b"x" * 100_000, "y" * 100_000):
            assert len(encode([part] * 100, CLASSES)) < 110_000
            result = again([part] * 100)
            assert result[0] is result[99]

    def test_a_network_of_people_in_sets(self):
        """Objects hashed by identity can be in sets that lead back to them, frozen or not."""
        for kind in (set, frozenset):
            one, two = Person("one"), Person("two")
            one.friends, two.friends = kind({two}), kind({one, two})
            for start in (one, one.friends, [two.friends], {"k": (one,)}):
                result = again(start)
                assert type(result) is type(start)
            result = again(one)
            (other,) = result.friends
            assert result in other.friends
            assert other in other.friends

    @pytest.mark.parametrize("start", ["set", "dict", "one", "list"])
    def test_keys_hashed_by_a_field_in_a_circle(self, start):
        """A key is hashed only after the fields that its hash looks at are there."""
        one, two = Named("one"), Named("two")
        members = {one, two}
        table = {one: 1, two: members}
        one.friends, two.friends = [two, table], [one, members]
        result = again({"set": members, "dict": table, "one": one, "list": [one, members]}[start])
        if start == "set":
            assert all(member in result for member in result)
            assert {"one", "two"} == {member.name for member in result}
        if start == "dict":
            assert all(result[member] for member in result)
        if start == "one":
            assert result.friends[1][result] == 1

    def test_a_frozenset_around_a_closed_circle(self):
        """Elements may lead to each other, if only not to the frozenset."""
        one, two = Named("one"), Named("two")
        one.friends, two.friends = [two], [one]
        result = again((frozenset({one, two}), [one]))
        assert result[1][0] in result[0]

    def test_a_circle_that_cannot_be_built_again(self):
        """It is refused when saved, not found broken when restored."""
        one = Named("one")
        one.friends = frozenset({one})
        with pytest.raises(
            NotCheckpointable, match=r"value\.friends: this frozenset leads back"
        ) as e:
            encode(one, CLASSES)
        assert "list" in e.value.hint

    def test_a_key_of_very_many_tuples(self):
        """Python hashes tuples recursively without a limit: deep ones are no keys."""
        key = ()
        for _ in range(100):
            key = (key,)
        assert alike(key, again(key))
        with pytest.raises(NotCheckpointable, match="nests more than 32 tuples"):
            encode({key: 1}, CLASSES)


class TestDepth:
    """Depth is bounded by memory, not by the interpreter's stack."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda inner: [inner],
            lambda inner: {"k": inner},
            lambda inner: (inner,),
            lambda inner: Node(items=inner),
            Point,
            Key,
        ],
        ids=["list", "dict", "tuple", "dataclass", "namedtuple", "frozen"],
    )
    def test_a_hundred_thousand_levels(self, wrap):
        """Saving and restoring go down all levels without recursion."""
        value = "bottom"
        for _ in range(100_000):
            value = wrap(value)
        result, levels = again(value), 0
        while not isinstance(result, str):
            if isinstance(result, dict):
                result = result["k"]
            elif isinstance(result, Node):
                result = result.items
            elif isinstance(result, Key):
                result = result.left
            else:
                result = result[0]
            levels += 1
        assert levels == 100_000
        bad = len
        for _ in range(100_001):
            bad = wrap(bad)
        with pytest.raises(NotCheckpointable, match=r"value.*…\(99985 more\)…") as caught:
            encode(bad, CLASSES)
        assert len(str(caught.value)) < 600


class TestClasses:
    """Which classes are restored, and how."""

    def test_no_code_of_the_class_runs(self):
        """Neither on saving nor on restoring; what `__post_init__` had set is there anyhow."""
        value = Loud("s")
        vars(value)["shown"] = "behind the property"
        before = Loud.ran
        result = again(value)
        assert before == Loud.ran
        assert vars(result) == {"secret": "s", "cache": {"of": "s"}, "shown": "behind the property"}

    def test_unset_fields_stay_unset(self):
        """A field without a value is not invented."""
        value = Key(1)
        object.__delattr__(value, "right")
        assert not hasattr(again(value), "right")

    @pytest.mark.parametrize(
        "cls",
        [
            Stranger,
            enum.Enum("Odd", "A"),
            collections.namedtuple("T", "a"),  # noqa: PYI024
        ],
    )
    def test_an_unregistered_class_is_refused_when_saved(self, cls):
        """The message names the class and the decorator."""
        value = [0, cls.A if isinstance(cls, enum.EnumMeta) else cls(1)]
        with pytest.raises(NotCheckpointable, match=rf"value\[1\].*{cls.__name__}") as caught:
            encode(value, CLASSES)
        assert "@perdure.checkpointable" in caught.value.hint

    def test_an_unregistered_class_is_refused_when_restored(self):
        """The message names module, class, and how to register it."""
        with pytest.raises(NotCheckpointable, match=rf"'Key' of module '{__name__}'") as caught:
            decode(encode(Key(1), CLASSES), Classes())
        assert "@perdure.checkpointable" in caught.value.hint

    def test_a_subclass_is_a_class_of_its_own(self):
        """It may hold more than its base: it is registered itself, or refused."""

        class Sub(Node):
            pass

        with pytest.raises(NotCheckpointable, match="Sub is not registered"):
            encode(Sub(), CLASSES)

    def test_a_changed_class_is_told(self):
        """What was lost and what is new is named; nothing is guessed."""

        def version(*fields):
            classes = Classes()
            cls = dataclasses.make_dataclass("Doc", fields)
            cls.__module__ = "m"
            return cls, classes, classes.register(cls)

        old, old_classes, _ = version("a", "b")
        _, new_classes, _ = version("b", "c")
        with pytest.raises(UnsupportedFormat, match=r"m:Doc changed.*lost: a; fields new: c"):
            decode(encode(old(1, 2), old_classes), new_classes)
        same, same_classes, _ = version("b", "a")
        restored = decode(encode(old(1, 2), old_classes), same_classes)
        assert same(2, 1) == restored

    def test_a_member_that_is_gone(self):
        """A removed enum member is named."""
        old, new = Classes(), Classes()
        for classes, members in ((old, "A B"), (new, "A")):
            classes.register(enum.Enum("E", members, module="m"))
        member = old.named("m:E").cls.B
        with pytest.raises(UnsupportedFormat, match="m:E has no member 'B'"):
            decode(encode(member, old), new)

    def test_registering_again_replaces(self):
        """A notebook cell run again defines the class anew: instances of the old are refused."""
        classes = Classes()

        def define():
            @classes.register
            @dataclasses.dataclass
            class Cell:
                x: int = 1

            return Cell

        old, new = define(), define()
        assert type(decode(encode(new(), classes), classes)) is new
        with pytest.raises(NotCheckpointable, match="not registered"):
            encode(old(), classes)

    @pytest.mark.parametrize("cls", [int, dict, object, pathlib.Path, lambda: None, 7])
    def test_only_three_kinds_of_classes(self, cls):
        """Anything else is refused at registration."""
        with pytest.raises(NotCheckpointable, match="dataclass"):
            Classes().register(cls)

    def test_a_dataclass_with_hidden_content(self):
        """Content of a built-in base would be lost, so the class is refused."""

        @dataclasses.dataclass
        class Bag(dict):
            label: str = ""

        with pytest.raises(NotCheckpointable, match="derives from dict"):
            Classes().register(Bag)


def _generator():
    yield 1


class TestRefused:
    """What can't be kept is refused when saved: the path, what it is, and the way out."""

    @pytest.mark.parametrize(
        ("make", "what"),
        [
            (lambda: lambda: None, "a function"),
            (lambda: test_each_kind_of_value, "a function"),
            (lambda: len, "a function"),
            (lambda: [].append, "a function"),
            (lambda: Colour.RED.upper, "a function"),
            (lambda: functools.partial(len), "a function"),
            (lambda: math, "a module"),
            (_generator, "a running computation"),
            (threading.Lock, "a lock"),
            (threading.RLock, "a lock"),
            (asyncio.Lock, "a lock"),
            (lambda: int, "a class"),
            (object, "builtins.object"),
            (lambda: collections.OrderedDict(a=1), "a subclass of dict"),
            (lambda: collections.defaultdict(list), "a subclass of dict"),
            (lambda: np.array([None]), "dtype object"),
            (lambda: np.array([(None,)], [("a", "O")]), "items are Python objects"),
            (lambda: np.dtype("O"), "items are Python objects"),
            (lambda: np.matrix([[1]]), "a subclass of numpy.ndarray"),
            (lambda: np.ma.masked_array([1]), "a subclass of numpy.ndarray"),
            (lambda: np.array(["a"], np.dtypes.StringDType()), "dtype StringDType"),
            (lambda: np.random.default_rng(1), "numpy.random"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    def test_with_path_and_hint(self, make, what):
        """The message says where it is and what it is; the hint says what to do."""
        bad = make()
        for value, path in (
            ({"layers": [0, 1, 2, Node(items=bad)]}, r'value\["layers"\]\[3\]\.items'),
            (bad, "value: "),
            ((Point(1, {5: bad}),), r"value\[0\]\.y\[5\]"),
        ):
            with pytest.raises(NotCheckpointable, match=f"can't checkpoint {path}") as caught:
                encode(value, CLASSES)
            assert what in caught.value.message
            assert caught.value.hint

    def test_an_open_file_and_a_socket(self, tmp_path):
        """Both hold something of this process that another one can't have."""
        with (
            (tmp_path / "x").open("w") as file,
            pytest.raises(NotCheckpointable, match=r'value\["log"\]: it is an open file'),
        ):
            encode({"log": file}, CLASSES)
        with socket.socket() as connection, pytest.raises(NotCheckpointable, match="a socket"):
            encode({"c": connection}, CLASSES)

    def test_in_keys_and_sets(self):
        """Keys and elements have a path too."""
        with pytest.raises(NotCheckpointable, match=r"value\.keys\(\)\{<function>\}"):
            encode({_generator: 1}, CLASSES)
        with pytest.raises(NotCheckpointable, match=r"value\{<type>\}"):
            encode({int}, CLASSES)

    def test_a_foreign_time_zone(self):
        """A zone of another library is refused, not turned into an offset."""

        class Zone(dt.tzinfo):
            def utcoffset(self, _):
                return dt.timedelta(0)

        with pytest.raises(NotCheckpointable, match=r"value\.tzinfo"):
            encode(dt.datetime(2026, 1, 1, tzinfo=Zone()), CLASSES)


ARRAYS = [
    np.arange(24.0).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(12).reshape(3, 4)[::2, ::-1],
    np.array(7, np.int16),
    np.zeros((0, 5), np.float32),
    np.zeros((3, 0, 2), np.complex64, order="F"),
    np.array([True, False]),
    np.array(["a", "äö"]),
    np.array([b"a\0", b"bcd"]),
    np.array(["2026-01-01", "NaT"], "M8[ns]"),
    np.array([1, 2], "m8[25s]"),
    np.arange(5, dtype=">i4"),
    np.arange(1000, dtype=np.float16),
    np.array([np.nan, -0.0, np.inf]),
    np.array([(1, 2.5, b"x")], [("a", "i4"), ("b", ">f8"), ("c", "S3")]),
    np.zeros(3, np.dtype([("a", "u1"), ("b", "f8", (2, 3))], align=True)),
    np.zeros(2, {"names": ["b", "a"], "formats": ["u1", "u2"], "offsets": [6, 1], "itemsize": 9}),
    np.zeros(2, [(("long title", "s"), [("x", "f4"), ("y", [("z", "u1")])])]),
    np.zeros(3, "V5"),
    np.zeros(4, dtype=[]),
    np.arange(3, dtype=np.longdouble),
]


class TestNumpy:
    """Arrays, scalars and dtypes."""

    @pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}"[:40])
    def test_arrays(self, array):
        """Dtype, shape, content and memory order are kept; the copy is writable and its own."""
        result = again({"w": array})["w"]
        assert array.dtype == result.dtype
        assert array.dtype.isalignedstruct == result.dtype.isalignedstruct
        assert array.shape == result.shape
        assert array.tobytes() == result.tobytes()
        assert array.flags.c_contiguous <= result.flags.c_contiguous
        assert result.flags.f_contiguous or not array.flags.f_contiguous
        assert result.flags.writeable
        assert result.flags.aligned

    def test_a_read_only_array_stays_so(self):
        """What nobody may change stays protected."""
        array = np.arange(3)
        array.flags.writeable = False
        assert not again(array).flags.writeable

    @pytest.mark.parametrize(
        "scalar",
        [
            np.float32(1.5),
            np.float64("nan"),
            np.int8(-1),
            np.bool_(True),
            np.str_(""),
            np.str_("a\0"),
            np.bytes_(b"a\0"),
            np.datetime64("NaT", "s"),
            np.datetime64("2026-01-01T00:00", "m"),
            np.complex128(1j),
            np.zeros(1, [("a", "i4")])[0],
        ],
        ids=repr,
    )
    def test_scalars(self, scalar):
        """A scalar of numpy stays one, with its dtype."""
        result = again([scalar])[0]
        assert type(scalar) is type(result)
        assert scalar.tobytes() == result.tobytes()
        assert str(scalar) == str(result)
        assert scalar.dtype == result.dtype

    def test_buffers_are_aligned(self):
        """Each long buffer starts at a multiple of 64 bytes, ready to be mapped."""
        marks = [np.full(1000, mark, np.uint8) for mark in (0xA1, 0xA2, 0xA3)]
        data = encode([marks, b"\xa4" * 999], CLASSES)
        for mark in (0xA1, 0xA2, 0xA3, 0xA4):
            assert data.index(bytes([mark]) * 300) % 64 == 0

    def test_numpy_is_not_imported_for_plain_objects(self):
        """It takes long: who saves no arrays doesn't wait for it."""
        code = (
            "from perdure.checkpointer.graph import *; import sys;"
            "decode(encode([(1,), {2}], Classes()), Classes()); print('numpy' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        )
        assert done.stdout.strip() == "False"


EVERYTHING = {
    "list": [1, "two", 3.0, None, True],
    "tuple": (1, (2, Point(3, 4))),
    "set": {1, 2},
    "frozen": frozenset({(1, 2)}),
    "object": Node("n", Key(1, 2)),
    "enum": [Colour.RED, Right.READ | Right.WRITE],
    "numbers": [1 << 90, 1j, decimal.Decimal("1.5"), uuid.UUID(int=1), range(3)],
    "bytes": [b"small", b"large" * 100, bytearray(b"b" * 300), "\ud800"],
    "time": [
        dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Asia/Tokyo")),
        dt.time(1),
        dt.date.max,
    ],
    "zones": [dt.timezone(dt.timedelta(1, -1), "z"), dt.timedelta(1)],
    "path": pathlib.PurePosixPath("/x"),
    "arrays": ARRAYS,
    "scalar": [np.float32(1), np.str_("s"), np.bytes_(b"s")],
}
EVERYTHING["circle"] = (EVERYTHING, [EVERYTHING["list"]])
ENCODED = encode(EVERYTHING, CLASSES)
PLAIN = encode({"a": [1, 2.5, {"b": "c" * 50}], "d": None}, CLASSES)


def test_what_was_restored_has_the_same_bytes():
    """Saving a restored object again stores nothing new, padding inside of arrays included."""
    assert encode(decode(ENCODED, CLASSES), CLASSES) == ENCODED


def survives(data):
    """Decodes, and lets nothing but perdure's errors out."""
    try:
        return decode(data, CLASSES)
    except PerdureError as error:
        if not isinstance(error, Corrupt | UnsupportedFormat | NotCheckpointable):
            raise
        return error


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([(1 << 62), (1 << 64) - 1, -(1 << 63)]),
    st.floats(),
    st.sampled_from(
        ["C", "F", "O", "<f4", "|O", "f4,O", "ff", "-", "PosixPath", "S0", "<U4", "V0", "../x"]
    ),
    st.text(max_size=5),
    st.integers(0, 12).map(lambda number: [number]),
)
SHAPES = st.sampled_from(
    [
        [f"{__name__}:{name}", 1, fields, names]
        for name, fields in (
            ("Node", ["name", "items"]),
            ("Key", ["left", "right"]),
            ("Point", ["x", "y"]),
            ("Named", ["name", "friends"]),
            ("Colour", []),
            ("Right", []),
            ("Loud", ["secret"]),
        )
        for names in (fields, ["__class__"], ["__dict__", "shown"], [])
    ]
)
NODES = st.builds(
    lambda tag, rest: [tag, *rest],
    st.sampled_from([int(t) for t in Tag]),
    st.lists(VALUES, max_size=8),
)


class TestLies:
    """Bytes that don't say what was written: an error of perdure, and nothing else."""

    @given(st.binary(max_size=200))
    @example(b"")
    @example(ENCODED[:32])
    def test_random_bytes(self, data):
        """Noise is corrupt, with or without a good header before it."""
        with pytest.raises((Corrupt, UnsupportedFormat)):
            decode(data, CLASSES)
        survives(join(GRAPH, data, []))
        survives(join(0, data, []))

    @given(st.data())
    @settings(max_examples=300)
    def test_flipped_bytes(self, data):
        """Whatever a flipped byte makes of it, it is a value or an error of perdure."""
        damaged = bytearray(data.draw(st.sampled_from([ENCODED, PLAIN])))
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
        survives(bytes(damaged))

    def test_every_truncation(self):
        """A file that ends early is corrupt, wherever it ends; so is one with bytes added."""
        for data in (ENCODED, PLAIN):
            for end in range(len(data)):
                with pytest.raises(Corrupt):
                    decode(data[:end], CLASSES)
            with pytest.raises(Corrupt):
                decode(data + b"\0", CLASSES)

    @given(
        VALUES,
        st.lists(SHAPES, max_size=3),
        st.lists(NODES, max_size=12),
        st.lists(st.binary(max_size=16)),
    )
    @settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
    def test_well_formed_nonsense(self, root, shapes, nodes, small):
        """Dangling references, wrong types, unknown kinds, wrong counts: an error, or a value."""
        before = Loud.ran
        survives(join(GRAPH, msgspec.msgpack.encode([root, shapes, nodes, small]), []))
        assert before == Loud.ran

    @pytest.mark.parametrize(
        ("nodes", "small"),
        [
            ([[Tag.LIST, [1]]], []),
            ([[Tag.TUPLE, [0]]], []),
            ([[Tag.TUPLE, [1]], [Tag.TUPLE]], []),
            ([[99]], []),
            ([[9]], []),
            ([[]], []),
            ([["LIST"]], []),
            ([[True]], []),
            ([[Tag.LIST, [0, 0]]], []),
            ([[Tag.LIST, [-1]]], []),
            ([[Tag.DICT, 1]], []),
            ([[Tag.DICT, 1, 2, 1, 3]], []),
            ([[Tag.DICT, [0], 1]], []),
            ([[Tag.SET, 1, 1]], []),
            ([[Tag.FROZENSET, 1, True]], []),
            ([[Tag.OBJECT, 0]], []),
            ([[Tag.BYTES, 5]], [b"four"]),
            ([[Tag.BYTES, 1 << 60]], []),
            ([[Tag.BYTES, -1]], []),
            ([[Tag.BYTEARRAY, 1 << 40]], []),
            ([[Tag.LIST]], [b"nobody's"]),
            ([[Tag.DTYPE, "<f4"], [Tag.ARRAY, "C", True, 1 << 40, 1 << 40, [0]]], []),
            ([[Tag.DTYPE, "<f4"], [Tag.ARRAY, "C", True, 0, 1 << 62, 1 << 62, [0]]], [b""]),
            ([[Tag.DTYPE, "<f4"], [Tag.ARRAY, "C", True, -1, -1, [0]]], [b"1234"]),
            ([[Tag.DTYPE, "S0"], [Tag.ARRAY, "C", True, 1 << 40, [0]]], [b""]),
            ([[Tag.DTYPE, "|O"]], []),
            ([[Tag.DTYPE, "f4,O"]], []),
            ([[Tag.DTYPE, "|V9999999999"]], []),
            ([[Tag.DTYPE, "<f4"], [Tag.DTYPE_SUB, 1 << 62, 1 << 62, [0]]], []),
            ([[Tag.ZONE, "../../../etc/passwd"]], []),
            ([[Tag.ZONE, "os.path"]], []),
            ([[Tag.RANGE, 0, 1, 0]], []),
            ([[Tag.DECIMAL, "one"]], []),
            ([[Tag.DATE, 2026, 13, 1]], []),
            ([[Tag.DATETIME, 2026, 1, 1, 0, 0, 0, 0, 0, "UTC"]], []),
            ([[Tag.PATH, "Path", "x"]], []),
            ([[Tag.INT, 5]], []),
            ([[Tag.FILL, 0]], []),
            ([[Tag.FILL, 7, 1]], []),
        ],
    )
    def test_named_lies(self, nodes, small):
        """Each of these is corrupt, in no time and without memory for what is only claimed."""
        data = msgspec.msgpack.encode([[0], [], nodes, small])
        with pytest.raises(Corrupt):
            decode(join(GRAPH, data, []), CLASSES)

    def test_dtypes_nested_without_end(self):
        """Numpy would follow them to the end of the stack."""
        nodes = [[Tag.DTYPE, "<f4"]]
        nodes += ([Tag.DTYPE_STRUCT, 4, False, 1, "a", None, 0, [n]] for n in range(50_000))
        with pytest.raises(Corrupt, match="nested too deep"):
            decode(join(GRAPH, msgspec.msgpack.encode([[0], [], nodes, []]), []), CLASSES)

    def test_keys_nested_without_end(self):
        """Hashing them would end the process."""
        nodes = [[Tag.TUPLE, 1], *([Tag.TUPLE, [number]] for number in range(200_000))]
        nodes.append([Tag.SET, [200_000]])
        with pytest.raises(Corrupt, match="nested too deep"):
            decode(join(GRAPH, msgspec.msgpack.encode([[0], [], nodes, []]), []), CLASSES)

    def test_plain_data_nested_without_end(self):
        """Msgspec stops at a depth; that is corrupt, too, since nobody wrote it."""
        for index in (
            b"\x91" * 1_000_000,
            b"\xdd\xff\xff\xff\xff",
            (b"\xdd\0\x0f\0\0" * 900).ljust(1 << 20, b"\xc0"),
        ):
            with pytest.raises(Corrupt):
                decode(join(0, index, []), CLASSES)

    def test_a_buffer_serves_one_node(self):
        """Bytes can't be multiplied by referring to them many times."""
        nodes = [[Tag.BYTEARRAY, 1000], [Tag.BYTEARRAY, 1000], [Tag.LIST, [0], [1]]]
        data = join(GRAPH, msgspec.msgpack.encode([[2], [], nodes, []]), [bytes(1000)])
        with pytest.raises(Corrupt, match="beyond the end"):
            decode(data, CLASSES)

    def test_a_newer_format(self):
        """It is told apart from damage: the way out is another release."""
        newer = bytearray(ENCODED)
        newer[8] = 2
        with pytest.raises(UnsupportedFormat, match="version 2"):
            decode(bytes(newer), CLASSES)

    def test_an_enum_is_not_asked_for_values_it_does_not_have(self):
        """Only members by name, and combined flags, are made: `_missing_` of an enum never runs."""
        data = [[0], [[f"{__name__}:Colour", 1, [], []]], [[Tag.ENUM, 0, None, 5]], []]
        with pytest.raises(Corrupt, match="no combined members"):
            decode(join(GRAPH, msgspec.msgpack.encode(data), []), CLASSES)

    def test_a_hash_that_raises(self):
        """An error in the code of a registered class is corrupt data's doing, and told as such."""
        nodes = [[Tag.SET, [1]], [Tag.OBJECT, 0, [2], None], [Tag.LIST]]
        shape = [f"{__name__}:Named", 1, ["name", "friends"], ["name", "friends"]]
        data = join(GRAPH, msgspec.msgpack.encode([[0], [shape], nodes, []]), [])
        with pytest.raises(Corrupt, match=r"TypeError|AttributeError|KeyError"):
            decode(data, CLASSES)


class GoldenPoint(NamedTuple):
    """As it is in the stored bytes."""

    x: object
    y: object


GoldenPoint.__module__ = "golden"


def test_the_format_does_not_change():
    """Bytes of the first release are read by every later one, and written again the same."""
    classes = Classes()
    classes.register(GoldenPoint)
    stored = bytes.fromhex(GOLDEN)
    value = {"k": (1, b"x", GoldenPoint(2, None)), "s": {1, 2}, "a": np.arange(3, dtype="<i2")}
    assert stored == encode(value, classes)
    result = decode(stored, classes)
    assert list(value) == list(result)
    assert value["k"] == result["k"]
    assert value["s"] == result["s"]
    assert value["a"].tobytes() == result["a"].tobytes()


GOLDEN = (
    "895044470d0a1a0a01000100000000005b000000000000007b000000000000009491069194b2676f"
    "6c64656e3a476f6c64656e506f696e740192a178a1799097920e0194070002c09402019100910193"
    "040102921ea33c69329521a143c30391049703a16b9102a1739103a161910592c40178c406000001"
    "000200"
)
