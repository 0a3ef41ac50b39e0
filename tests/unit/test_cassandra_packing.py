"""Batches of packed rows: on the wire they are what the driver makes of the same rows."""

import pytest
from cassandra import ConsistencyLevel
from cassandra.protocol import BatchMessage, ProtocolHandler
from cassandra.query import UNSET_VALUE, BatchType

from perdure.cassandra.packing import Protocol, Rows

STATEMENT = bytes(range(16))
VALUES = [(b"default", b"", b"\x00" * 8), (b"x" * 70_000, None, b"1")]


def _message(rows, keyspace):
    return BatchMessage(
        BatchType.UNLOGGED, rows, ConsistencyLevel.LOCAL_QUORUM, None, None, keyspace
    )


@pytest.mark.parametrize("keyspace", [None, "perdure_g1"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_packed_rows_are_on_the_wire_what_the_driver_makes_of_them(keyspace, count):
    """Frame for frame the same bytes, with values that are left as they are, too."""
    packed = Rows()
    for values in VALUES[:count]:
        packed.add(STATEMENT, *values)
    plain = [
        (True, STATEMENT, tuple(UNSET_VALUE if value is None else value for value in values))
        for values in VALUES[:count]
    ]
    arguments = (7, 5)
    options = {"compressor": None, "allow_beta_protocol_version": False}
    ours, theirs = _message(packed, keyspace), _message(plain, keyspace)
    expected = ProtocolHandler.encode_message(theirs, *arguments, **options)
    assert Protocol.encode_message(ours, *arguments, **options) == expected
    # The driver sends a message again where a node didn't answer.
    assert Protocol.encode_message(ours, *arguments, **options) == expected
    assert Protocol.encode_message(theirs, *arguments, **options) == expected
