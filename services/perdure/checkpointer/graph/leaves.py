"""Built-in values without a life of their own: numbers, texts, bytes, times, paths.

Each type is here twice, side by side: taken apart into a node, and put together again. Types are
matched exactly: an instance of a subclass may hold more than its base does.
"""

import datetime as dt
import decimal
import pathlib
import re
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Final, TypeAlias

from perdure.checkpointer.graph.checks import exactly, integers, only
from perdure.checkpointer.graph.layout import BufferReader, BufferWriter, Tag
from perdure.checkpointer.graph.plain import LONG_TEXT
from perdure.errors import Corrupt, NotCheckpointable, UnsupportedFormat

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1

Head: TypeAlias = list[object]
"""The start of a node: its tag, and values that stand for themselves."""
Plan: TypeAlias = tuple[Head, list[object]]
"""A node's start, and the objects that the rest of it stands for."""
Values: TypeAlias = list[object]
"""A node after its tag, references resolved."""

_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+){0,3}")
_DECIMAL: Final = decimal.Context(traps=[decimal.InvalidOperation])
_PATHS: Final[dict[str, type[pathlib.PurePath]]] = {
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
    type(pathlib.Path()).__name__: type(pathlib.Path()),  # the one that this system can make
}
_PATH_NAMES: Final = ("PosixPath", "WindowsPath")


def is_inline(value: object) -> bool:
    """Whether a value stands for itself inside a node.

    >>> is_inline(7), is_inline("a"), is_inline(1 << 70), is_inline(b"a")
    (True, True, False, False)
    """
    kind = type(value)
    if kind is str:
        return len(value) <= LONG_TEXT and (value.isascii() or _is_utf8(value))  # type: ignore[arg-type, attr-defined]
    if kind is int:
        return INT_MIN <= value <= INT_MAX  # type: ignore[operator]
    return value is None or kind is float or kind is bool


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plan_int(value: object, _: BufferWriter) -> Plan:
    return [Tag.INT, format(exactly(int, value), "x")], []


def _plan_str(value: object, buffers: BufferWriter) -> Plan:
    text = exactly(str, value)
    if text.isascii() or _is_utf8(text):
        return [Tag.TEXT, text], []
    return [Tag.TEXT_RAW, buffers.add(text.encode("utf-8", "surrogatepass"))], []


def _plan_complex(value: object, _: BufferWriter) -> Plan:
    number = exactly(complex, value)
    return [Tag.COMPLEX, number.real, number.imag], []


def _plan_bytes(value: object, buffers: BufferWriter) -> Plan:
    return [Tag.BYTES, buffers.add(exactly(bytes, value))], []


def _plan_bytearray(value: object, buffers: BufferWriter) -> Plan:
    return [Tag.BYTEARRAY, buffers.add(bytes(exactly(bytearray, value)))], []


def _plan_date(value: object, _: BufferWriter) -> Plan:
    day = exactly(dt.date, value)
    return [Tag.DATE, day.year, day.month, day.day], []


def _clock(value: dt.time | dt.datetime) -> list[object]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold]


def _plan_time(value: object, _: BufferWriter) -> Plan:
    time = exactly(dt.time, value)
    return [Tag.TIME, *_clock(time)], [time.tzinfo]


def _plan_datetime(value: object, _: BufferWriter) -> Plan:
    moment = exactly(dt.datetime, value)
    return [Tag.DATETIME, moment.year, moment.month, moment.day, *_clock(moment)], [moment.tzinfo]


def _plan_timedelta(value: object, _: BufferWriter) -> Plan:
    delta = exactly(dt.timedelta, value)
    return [Tag.TIMEDELTA, delta.days, delta.seconds, delta.microseconds], []


def _plan_timezone(value: object, _: BufferWriter) -> Plan:
    zone = exactly(dt.timezone, value)
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    # A zone without a name of its own makes one up; it is stored only if it says more.
    given = None if name == dt.timezone(offset).tzname(None) else name
    return [Tag.TIMEZONE, offset.days, offset.seconds, offset.microseconds], [given]


def _plan_zone(value: object, _: BufferWriter) -> Plan:
    key = exactly(zoneinfo.ZoneInfo, value).key
    if not _ZONE_KEY.fullmatch(key or ""):  # None where it was made from a file
        raise NotCheckpointable(
            f"it is a time zone without an IANA key ({key!r})",
            hint="make it with zoneinfo.ZoneInfo(key)",
        )
    return [Tag.ZONE, key], []


def _plan_decimal(value: object, _: BufferWriter) -> Plan:
    return [Tag.DECIMAL], [str(value)]


def _plan_uuid(value: object, _: BufferWriter) -> Plan:
    return [Tag.UUID, exactly(uuid.UUID, value).hex], []


def _plan_path(value: object, _: BufferWriter) -> Plan:
    # Python 3.13 calls the class that Path() makes PosixPath, as all before it.
    return [Tag.PATH, type(value).__name__], [str(value)]


def _plan_range(value: object, _: BufferWriter) -> Plan:
    steps = exactly(range, value)
    return [Tag.RANGE], [steps.start, steps.stop, steps.step]


PLANS: Final[dict[type[object], Callable[[object, BufferWriter], Plan]]] = {
    int: _plan_int,
    str: _plan_str,
    complex: _plan_complex,
    bytes: _plan_bytes,
    bytearray: _plan_bytearray,
    dt.date: _plan_date,
    dt.time: _plan_time,
    dt.datetime: _plan_datetime,
    dt.timedelta: _plan_timedelta,
    dt.timezone: _plan_timezone,
    zoneinfo.ZoneInfo: _plan_zone,
    decimal.Decimal: _plan_decimal,
    uuid.UUID: _plan_uuid,
    **dict.fromkeys(_PATHS.values(), _plan_path),
    range: _plan_range,
}
"""How to take apart a value of exactly this type."""


def _make_int(values: Values, _: BufferReader) -> object:
    return int(only(str, values), 16)


def _make_text(values: Values, _: BufferReader) -> object:
    return only(str, values)


def _make_text_raw(values: Values, buffers: BufferReader) -> object:
    return str(buffers.take(only(int, values)), "utf-8", "surrogatepass")


def _make_complex(values: Values, _: BufferReader) -> object:
    real, imaginary = values
    return complex(exactly(float, real), exactly(float, imaginary))


def _make_bytes(values: Values, buffers: BufferReader) -> object:
    return bytes(buffers.take(only(int, values)))


def _make_bytearray(values: Values, buffers: BufferReader) -> object:
    return bytearray(buffers.take(only(int, values)))


def _make_date(values: Values, _: BufferReader) -> object:
    year, month, day = integers(values, 3)
    return dt.date(year, month, day)


def _make_time(values: Values, _: BufferReader) -> object:
    *clock, zone = values
    hour, minute, second, microsecond, fold = integers(clock, 5)
    return dt.time(hour, minute, second, microsecond, _zone(zone), fold=fold)


def _make_datetime(values: Values, _: BufferReader) -> object:
    *numbers, zone = values
    year, month, day, hour, minute, second, microsecond, fold = integers(numbers, 8)
    return dt.datetime(year, month, day, hour, minute, second, microsecond, _zone(zone), fold=fold)


def _make_timedelta(values: Values, _: BufferReader) -> object:
    days, seconds, microseconds = integers(values, 3)
    return dt.timedelta(days, seconds, microseconds)


def _make_timezone(values: Values, _: BufferReader) -> object:
    *numbers, name = values
    days, seconds, microseconds = integers(numbers, 3)
    offset = dt.timedelta(days, seconds, microseconds)
    return dt.timezone(offset) if name is None else dt.timezone(offset, exactly(str, name))


def _make_zone(values: Values, _: BufferReader) -> object:
    key = only(str, values)
    # zoneinfo looks for files and data packages by this name: it gets no dots to climb with.
    if not _ZONE_KEY.fullmatch(key):
        raise Corrupt("a time zone's key is not one")
    try:
        return zoneinfo.ZoneInfo(key)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise UnsupportedFormat(
            f"the checkpoint holds a time in zone {key!r}, which is not known here",
            hint="pip install tzdata",
        ) from error


def _make_decimal(values: Values, _: BufferReader) -> object:
    return decimal.Decimal(only(str, values), _DECIMAL)


def _make_uuid(values: Values, _: BufferReader) -> object:
    return uuid.UUID(hex=only(str, values))


def _make_path(values: Values, _: BufferReader) -> object:
    name, text = values
    path = _PATHS.get(exactly(str, name))
    if path is None:
        if name in _PATH_NAMES:
            raise UnsupportedFormat(
                f"the checkpoint holds a {name}, which this system can't make",
                hint="save pathlib.PurePath objects to move between systems",
            )
        raise Corrupt("a path is of no known kind")
    return path(exactly(str, text))


def _make_range(values: Values, _: BufferReader) -> object:
    start, stop, step = integers(values, 3)
    return range(start, stop, step)


def _zone(value: object) -> dt.tzinfo | None:
    if value is None or type(value) in (dt.timezone, zoneinfo.ZoneInfo):
        return value  # type: ignore[return-value]
    raise Corrupt("a time has something as its zone that is none")


MAKES: Final[dict[int, Callable[[Values, BufferReader], object]]] = {
    Tag.INT: _make_int,
    Tag.TEXT: _make_text,
    Tag.TEXT_RAW: _make_text_raw,
    Tag.COMPLEX: _make_complex,
    Tag.BYTES: _make_bytes,
    Tag.BYTEARRAY: _make_bytearray,
    Tag.DATE: _make_date,
    Tag.TIME: _make_time,
    Tag.DATETIME: _make_datetime,
    Tag.TIMEDELTA: _make_timedelta,
    Tag.TIMEZONE: _make_timezone,
    Tag.ZONE: _make_zone,
    Tag.DECIMAL: _make_decimal,
    Tag.UUID: _make_uuid,
    Tag.PATH: _make_path,
    Tag.RANGE: _make_range,
}
"""How to put a value together; raises Corrupt, ValueError, TypeError or OverflowError."""
