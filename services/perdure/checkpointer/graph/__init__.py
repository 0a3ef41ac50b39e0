r"""Object graphs as bytes and back, without ever executing what is read.

Invariants:
- Decoding calls nothing that the bytes choose: only constructors of the built-in types below, and
  `object.__new__` of classes that the caller registered. `__init__`, `__post_init__`, `__reduce__`
  and `__setstate__` never run. (Filling a set or dict hashes its keys, as Python must; a
  combined flag is made by its own class.)
- What can't be kept exactly is refused when it is saved, with its path inside the object.
- Two names for one object stay two names for one object; cycles come back as cycles.
- Damaged or lying bytes raise Corrupt; nothing is allocated that the bytes at hand don't hold.
- Neither direction recurses: depth is bounded by memory alone.

What is not kept: the memory that numpy views share (each array is stored with its own elements),
numpy's dtype metadata, the identity of short strings and of numbers.

Format, version 1
=================
All integers of the header are little-endian::

    offset  size
         0     8  magic: 89 50 44 47 0D 0A 1A 0A ("\x89PDG\r\n\x1a\n")
         8     2  format version: 1
        10     1  kind: 0 plain, 1 graph
        11     5  zero
        16     8  length of the index, in bytes
        24     8  length of everything, header included
        32        index (MessagePack)
                  zeros up to the next multiple of 64, then the buffers

**Plain**: the index is the value: nil, booleans, integers, floats, strings, arrays (lists) and maps
with string keys (dicts). Used where nothing else is in the value and no container is in it twice.
There are no buffers.

**Graph**: the index is an array `[root, shapes, nodes, small]`.

A *value* is nil, a boolean, an integer, a float or a string, standing for itself, or an array of
one integer, a reference to the node with that number (from 0).

*Shapes* are `[key, version, fields, names]`: a class by its key ("module:qualname"), the version of
the class (1), its fields when it was saved, and the names of the attributes that its instances here
hold (dataclasses; a subset of the fields, and attributes set besides).

*Nodes* are arrays that start with a tag. They are read in order. A reference leads to an earlier
node, or to any LIST, DICT, SET or OBJECT: those exist, empty, before the first node is read. One
that couldn't be filled yet when its turn came is filled by a later FILL.

==  ============  ===============================================================================
 0  FILL          node number, then the content of that LIST, DICT, SET or OBJECT
 1  LIST          elements (values)
 2  TUPLE         elements
 3  DICT          key, value, key, value, … in order
 4  SET           elements
 5  FROZENSET     elements
 6  OBJECT        shape number, then the attributes (none where a FILL follows)
 7  NAMEDTUPLE    shape number, then the elements
 8  ENUM          shape number, name of the member; or nil and the value of a combined flag
10  INT           hexadecimal, for integers beyond 64 bits
11  TEXT          a string, for long ones
12  TEXT_RAW      buffer length; UTF-8 with lone surrogates encoded like any other code point
13  COMPLEX       real, imaginary
14  BYTES         buffer length
15  BYTEARRAY     buffer length
16  DATE          year, month, day
17  TIME          hour, minute, second, microsecond, fold, zone (a value)
18  DATETIME      year, month, day, hour, minute, second, microsecond, fold, zone
19  TIMEDELTA     days, seconds, microseconds
20  TIMEZONE      days, seconds, microseconds of the offset, name or nil
21  ZONE          key of the IANA zone
22  DECIMAL       its text
23  UUID          32 hexadecimal digits
24  PATH          "PurePosixPath", "PureWindowsPath", "PosixPath" or "WindowsPath", text
25  RANGE         start, stop, step
30  DTYPE         numpy's `dtype.str`, with byte order and unit ("<f4", "<M8[ns]")
31  DTYPE_STRUCT  bytes of an item, aligned, n, n names, n titles (or nil), n offsets, n dtypes
32  DTYPE_SUB     lengths of the axes, dtype
33  ARRAY         order ("C" or "F"), writable, lengths of the axes, dtype; buffer: all items
34  SCALAR        dtype; buffer: one item
35  SCALAR_TEXT   string, for `numpy.str_`
36  SCALAR_BYTES  bytes, for `numpy.bytes_`
==  ============  ===============================================================================

*Buffers* are taken by the nodes in the order of the nodes, each exactly once. One of up to 256
bytes is the next element of *small*; a longer one starts at the next multiple of 64 bytes from the
start of the header, so that it can be mapped into memory as it lies. Nothing follows the last one.
"""

from perdure.checkpointer.graph.classes import Classes, checkpointable, default_classes
from perdure.checkpointer.graph.reader import decode
from perdure.checkpointer.graph.writer import encode

__all__ = ["Classes", "checkpointable", "decode", "default_classes", "encode"]
