"""numpy arrays, scalars and dtypes. Imported only where one is met: numpy takes long to import.

Invariants:
- A dtype that holds references to objects is never saved and never made.
- An array is allocated only after its bytes are at hand: items times item size is their number.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from perdure.checkpointer.graph.checks import exactly, integers, only
from perdure.checkpointer.graph.layout import BufferReader, BufferWriter, Tag
from perdure.checkpointer.graph.leaves import Plan, Values, is_inline
from perdure.errors import Corrupt, NotCheckpointable

KINDS: Final = frozenset("biufcmMSUV")
"""numpy's letters for kinds of dtypes whose items are nothing but their bytes."""
DTYPE_DEPTH_MAX: Final = 32
"""Levels of structured dtypes: numpy compares and prints them recursively."""

DType = np.dtype[np.generic]
Array = np.ndarray[tuple[int, ...], DType]


def is_numpy(value: object) -> bool:
    """Whether this module can tell what to do with a value.

    >>> is_numpy(np.float32(1)), is_numpy(1.0)
    (True, False)
    """
    return isinstance(value, np.ndarray | np.generic | np.dtype)


def plan(value: object, buffers: BufferWriter) -> Plan:
    """Take apart an array, scalar or dtype. Raises NotCheckpointable."""
    if isinstance(value, np.dtype):
        return _plan_dtype(value)
    if isinstance(value, np.str_):
        return [Tag.SCALAR_TEXT], [str.__str__(value)]
    if isinstance(value, np.bytes_):
        return [Tag.SCALAR_BYTES], [bytes(value)]
    if isinstance(value, np.generic):
        _check_dtype(value.dtype)
        buffers.add(value.tobytes())
        return [Tag.SCALAR], [value.dtype]
    if type(value) is not np.ndarray:
        raise NotCheckpointable(
            f"it is a {type(value).__module__}.{type(value).__qualname__}, "
            "a subclass of numpy.ndarray",
            hint="save numpy.asarray(value)",
        )
    return _plan_array(value, buffers)


def _plan_array(array: Array, buffers: BufferWriter) -> Plan:
    _check_dtype(array.dtype)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    rows = array.T if order == "F" else _contiguous(array)
    size = array.size * array.dtype.itemsize
    # Through bytes where there are none: a view of nothing as bytes is refused by numpy.
    data = rows.reshape(-1).view(np.uint8).data if size else b""
    buffers.add(data)
    return [Tag.ARRAY, order, array.flags.writeable, *array.shape], [array.dtype]


def _contiguous(array: Array) -> Array:
    if array.dtype.names is None or array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    # numpy copies fields and leaves the padding between them to chance.
    rows: Array = np.zeros(array.shape, array.dtype)
    rows[...] = array
    return rows


def _plan_dtype(dtype: DType) -> Plan:
    _check_dtype(dtype)
    if dtype.subdtype is not None:
        base, lengths = dtype.subdtype
        return [Tag.DTYPE_SUB, *lengths], [base]
    if dtype.names is None or dtype.fields is None:
        return [Tag.DTYPE, dtype.str], []
    fields = [dtype.fields[name] for name in dtype.names]
    titles: list[object] = [field[2] if len(field) > 2 else None for field in fields]
    head: list[object] = [Tag.DTYPE_STRUCT, dtype.itemsize, dtype.isalignedstruct, len(fields)]
    offsets = [field[1] for field in fields]
    formats = [field[0] for field in fields]
    return head, [*dtype.names, *titles, *offsets, *formats]


def _check_dtype(dtype: DType, depth: int = 0) -> None:
    """Raises NotCheckpointable for a dtype that its parts don't describe completely."""
    if dtype.hasobject:
        raise NotCheckpointable(
            f"it has dtype {dtype}, whose items are Python objects",
            hint="save value.tolist(), or give the array a dtype of numbers or texts",
        )
    if depth > DTYPE_DEPTH_MAX:
        raise NotCheckpointable(
            f"its dtype is nested deeper than {DTYPE_DEPTH_MAX} levels",
            hint="flatten the structure",
        )
    if dtype.subdtype is not None:
        _check_dtype(dtype.subdtype[0], depth + 1)
    elif dtype.names is not None and dtype.fields is not None:
        for name in dtype.names:
            field = dtype.fields[name]
            if not is_inline(name) or not all(map(is_inline, field[2:])):
                raise NotCheckpointable(
                    f"its dtype has a field name that is too long or no valid text: {name[:40]!r}",
                    hint="rename the field",
                )
            _check_dtype(field[0], depth + 1)
    elif dtype.kind not in KINDS or np.dtype(dtype.str) != dtype or not dtype.itemsize:
        raise NotCheckpointable(
            f"its dtype {dtype} can't be told by numpy's own name for it",
            hint="convert it with astype to a dtype of numpy",
        )


def _make_dtype(values: Values, _: BufferReader) -> object:
    name = only(str, values)
    dtype: DType = np.dtype(name)
    # dtype strings can also spell structures and objects: only what would be written is read.
    if dtype.hasobject or dtype.kind not in KINDS or dtype.str != name or not dtype.itemsize:
        raise Corrupt("a dtype is not one that a checkpoint holds")
    return dtype


def _make_dtype_struct(values: Values, _: BufferReader) -> object:
    itemsize, aligned, count, *rest = values
    number = exactly(int, count)
    if number < 0 or len(rest) != 4 * number:
        raise Corrupt("a structured dtype has parts missing")
    names = [exactly(str, name) for name in rest[:number]]
    titles = rest[number : 2 * number]
    parts = [_dtype(item) for item in rest[3 * number :]]
    if max(map(_depth, parts), default=0) >= DTYPE_DEPTH_MAX:
        raise Corrupt("a dtype is nested too deep")
    description = {
        "names": names,
        "formats": parts,
        "offsets": integers(rest[2 * number : 3 * number]),
        "itemsize": exactly(int, itemsize),
    }
    if any(title is not None for title in titles):
        description["titles"] = [None if t is None else exactly(str, t) for t in titles]
    return np.dtype(description, align=exactly(bool, aligned))  # type: ignore[call-overload]


def _make_dtype_sub(values: Values, _: BufferReader) -> object:
    *lengths, base = values
    inner = _dtype(base)
    if _depth(inner) >= DTYPE_DEPTH_MAX:
        raise Corrupt("a dtype is nested too deep")
    return np.dtype((inner, tuple(integers(lengths))))


def _make_array(values: Values, buffers: BufferReader) -> object:
    order, writable, *rest = values
    *axes, last = rest
    dtype = _dtype(last)
    shape = tuple(integers(axes))
    if order not in ("C", "F") or min(shape, default=0) < 0 or dtype.subdtype is not None:
        raise Corrupt("an array's description is not one")
    data = buffers.take(math.prod(shape) * dtype.itemsize)
    if dtype.itemsize == 0 and dtype.names is None:
        raise Corrupt("an array has items without bytes")
    # Memory of its own: writable, aligned, and not holding on to the whole checkpoint.
    array: Array = np.empty(shape, dtype, order="C" if order == "C" else "F")
    if data:
        rows = array.T if order == "F" else array
        # As bytes, padding between fields included: the same array is the same checkpoint again.
        rows.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    array.flags.writeable = exactly(bool, writable)
    return array


def _make_scalar(values: Values, buffers: BufferReader) -> object:
    if len(values) != 1:
        raise Corrupt("a scalar has no dtype")
    dtype = _dtype(values[0])
    if dtype.subdtype is not None or not dtype.itemsize:
        raise Corrupt("a scalar's dtype is none")
    return np.ndarray((1,), dtype, buffer=bytes(buffers.take(dtype.itemsize))).copy()[0]


def _make_scalar_text(values: Values, _: BufferReader) -> object:
    return np.str_(only(str, values))


def _make_scalar_bytes(values: Values, _: BufferReader) -> object:
    return np.bytes_(only(bytes, values))


def _dtype(value: object) -> DType:
    if not isinstance(value, np.dtype):
        raise Corrupt("there is something else where a dtype belongs")
    return value


def _depth(dtype: DType) -> int:
    if dtype.subdtype is not None:
        return 1 + _depth(dtype.subdtype[0])
    if dtype.fields is None:
        return 0
    return 1 + max((_depth(field[0]) for field in dtype.fields.values()), default=0)


MAKES: Final[dict[int, Callable[[Values, BufferReader], object]]] = {
    Tag.DTYPE: _make_dtype,
    Tag.DTYPE_STRUCT: _make_dtype_struct,
    Tag.DTYPE_SUB: _make_dtype_sub,
    Tag.ARRAY: _make_array,
    Tag.SCALAR: _make_scalar,
    Tag.SCALAR_TEXT: _make_scalar_text,
    Tag.SCALAR_BYTES: _make_scalar_bytes,
}
"""How to put a value together; raises Corrupt, ValueError, TypeError or OverflowError."""
