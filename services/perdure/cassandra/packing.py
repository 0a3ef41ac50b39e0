"""Messages to Cassandra in the form of the native protocol, where the driver's own cost too much.

It writes a batch value by value: twenty of them for each event. Rows of one partition have most of
their values in common, and are put together here with a few calls each.

It has the server tell with each answer to a prepared statement which columns it has, and reads
that. It is known since the statement was prepared; the server tells by itself where that changed.

Invariants:
- What is sent is, byte for byte, what the driver would send, but for the flag that spares columns.
"""

import io
from collections.abc import Iterator
from typing import Final

from cassandra.protocol import (  # type: ignore[import-untyped]
    BatchMessage,
    ExecuteMessage,
    ProtocolHandler,
)

from perdure.cassandra.cells import int32


class Rows:
    """The rows of a batch: how many, and the bytes of all of them in pieces."""

    __slots__ = ("count", "pieces")

    def __init__(self) -> None:
        self.count = 0
        self.pieces: list[bytes] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[object]:
        """Nothing that could be written one by one."""
        return iter(())

    def add(self, statement_id: bytes, *values: bytes | None) -> None:
        """Add a row: its values in the form of their types, None to leave a column as it is."""
        self.count += 1
        self.pieces += (row_of(statement_id, len(values)), packed(*values))


class Protocol(ProtocolHandler):  # type: ignore[misc] # it has no types
    """The driver's way to the wire, with packed batches and answers without columns."""

    @classmethod
    def encode_message(cls, msg: object, *arguments: object, **options: object) -> object:
        if isinstance(msg, BatchMessage) and isinstance(msg.queries, Rows):
            msg = _PackedMessage(msg)
        elif isinstance(msg, ExecuteMessage) and msg.skip_meta:
            msg = _BareMessage(msg)
        return super().encode_message(msg, *arguments, **options)


class _PackedMessage(BatchMessage):  # type: ignore[misc] # it has no types
    """A batch as the driver made it, of packed rows."""

    def __init__(self, made: BatchMessage) -> None:
        self.__dict__.update(made.__dict__)

    def send_body(self, body: io.BytesIO, protocol_version: int) -> None:
        around = io.BytesIO()
        rows: Rows = self.__dict__["queries"]
        self.queries: object = ()
        super().send_body(around, protocol_version)
        # A byte for the kind of batch, two for the number of rows, the rows, and what follows them
        # (section 4.1.7 of version 5).
        bare = around.getvalue()
        body.write(bare[:1] + len(rows).to_bytes(2, "big"))
        body.write(b"".join(rows.pieces))
        body.write(bare[3:])


class _BareMessage(ExecuteMessage):  # type: ignore[misc] # it has no types
    """A prepared statement as the driver made it, to be answered without columns."""

    def __init__(self, made: ExecuteMessage) -> None:
        self.__dict__.update(made.__dict__)

    def _write_query_params(self, body: io.BytesIO, protocol_version: int) -> None:
        parameters = io.BytesIO()
        super()._write_query_params(parameters, protocol_version)
        written = bytearray(parameters.getvalue())
        # Two bytes for the consistency, four for flags (section 4.1.4 of version 5).
        written[5] |= _SKIP_COLUMNS
        body.write(written)


_SKIP_COLUMNS: Final = 0x02


def packed(*values: bytes | None) -> bytes:
    """Values, each after its length; None leaves its column as it is (section 3 of version 5).

    >>> packed(b"ab", None).hex(" ")
    '00 00 00 02 61 62 ff ff ff fe'
    """
    parts = []
    for value in values:
        if value is None:
            parts.append(_UNSET)
        else:
            parts += (int32(len(value)), value)
    return b"".join(parts)


def row_of(statement_id: bytes, count: int) -> bytes:
    """How a row begins: that it is of a prepared statement, which, and its number of values."""
    return b"\x01" + len(statement_id).to_bytes(2, "big") + statement_id + count.to_bytes(2, "big")


_UNSET: Final = int32(-2)
