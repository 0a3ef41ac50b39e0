"""Messages that perdure writes itself: on the wire they are what the driver makes of the same."""

import pytest
from cassandra import ConsistencyLevel
from cassandra.protocol import BatchMessage, ExecuteMessage, ProtocolHandler
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


@pytest.mark.parametrize("state", [None, b"where the next page starts"])
def test_a_statement_with_known_columns_asks_for_an_answer_without_them(state):
    """The same bytes as the driver's, but for the flag that says so (0x02 of section 4.1.4)."""

    def sent(protocol, *, known):
        message = ExecuteMessage(
            STATEMENT,
            [b"default", None],
            ConsistencyLevel.LOCAL_QUORUM,
            fetch_size=100,
            paging_state=state,
            skip_meta=known,
            result_metadata_id=STATEMENT,
        )
        options = {"compressor": None, "allow_beta_protocol_version": False}
        return bytes(protocol.encode_message(message, 7, 5, **options))

    theirs, ours = sent(ProtocolHandler, known=True), sent(Protocol, known=True)
    differing = [at for at, pair in enumerate(zip(theirs, ours, strict=True)) if len({*pair}) > 1]
    # After the header of 9 bytes, two ids with their lengths, and two bytes for the consistency.
    assert differing == [9 + 2 * 18 + 2 + 3]
    assert ours[differing[0]] == theirs[differing[0]] | 0x02
    assert sent(Protocol, known=False) == sent(ProtocolHandler, known=False)
