"""Records whose headers have names that are no text, and the records around them."""

import gzip
import struct

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c_py

from perdure.kafka import lenient

PARTITION = TopicPartition("t", 0)
LENGTH_AT, CRC_AT, ATTRIBUTES_AT, RECORDS_AT = 8, 17, 21, 61
GZIP = 1


def batch(first, names, *, compressed=False, producer=-1):
    """A batch of one record for each name of a header, as a producer would send it."""
    builder = DefaultRecordBatchBuilder(2, 0, producer >= 0, producer, 0, 0, 1 << 20)
    for index, name in enumerate(names):
        stands_in = "#" * len(name) if isinstance(name, bytes) else name
        builder.append(index, 1000 + index, b"key", f"value {index}".encode(), [(stands_in, b"1")])
    data = bytearray(builder.build())
    for name in names:
        if isinstance(name, bytes):
            at = data.index(b"#" * len(name))
            data[at : at + len(name)] = name
    if compressed:
        data[RECORDS_AT:] = gzip.compress(data[RECORDS_AT:])
        data[ATTRIBUTES_AT + 1] |= GZIP
        struct.pack_into(">i", data, LENGTH_AT, len(data) - LENGTH_AT - 4)
    struct.pack_into(">q", data, 0, first)
    struct.pack_into(">I", data, CRC_AT, calc_crc32c_py(bytes(data[ATTRIBUTES_AT:])))
    return bytes(data)


def read(data, *, start=0, aborted=None, isolation=fetcher.READ_COMMITTED):
    """Offset, value and names of headers of each record, and where the next fetch starts."""
    records = fetcher.PartitionRecords(
        PARTITION, fetcher.MemoryRecords(data), aborted, start, None, None, True, isolation
    )
    found = [(each.offset, each.value, [name for name, _ in each.headers]) for each in records]
    return found, records.next_fetch_offset


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    for name in ("MemoryRecords", "PartitionRecords"):
        monkeypatch.setattr(fetcher, name, getattr(fetcher, name))
    lenient.install()


@pytest.mark.parametrize("compressed", [False, True])
def test_each_record_comes_once_in_its_order(compressed):
    """Before, at and after a name that is no text, in its batch and in others."""
    middle = batch(2, ["c", b"\xff\xfe", "é", b"\x80"], compressed=compressed)
    found, following = read(batch(0, ["a", "b"]) + middle + batch(6, ["d"]))
    assert [(offset, names) for offset, _, names in found] == [
        (0, ["a"]), (1, ["b"]), (2, ["c"]), (3, [r"\xff\xfe"]), (4, ["é"]), (5, [r"\x80"]),
        (6, ["d"]),
    ]  # fmt: skip
    assert [value for _, value, _ in found[2:6]] == [f"value {at}".encode() for at in range(4)]
    assert following == 7
    assert [offset for offset, _, _ in read(middle, start=4)[0]] == [4, 5]


def test_what_is_taken_back_stays_so():
    """Aborted transactions are left out before and after such a name."""
    data = (
        batch(0, ["a"], producer=7)
        + batch(1, [b"\xff"], producer=8)
        + batch(2, ["b"], producer=7)
        + batch(3, ["c"])
    )
    found, _ = read(data, aborted=[(7, 0)])
    assert [(offset, names) for offset, _, names in found] == [(1, [r"\xff"]), (3, ["c"])]


def test_without_it_aiokafka_stands_still(monkeypatch):
    """The reason for all this; when it is gone, so may this be."""
    monkeypatch.setattr(fetcher, "MemoryRecords", MemoryRecords)
    monkeypatch.setattr(fetcher, "PartitionRecords", lenient._PartitionRecords.__base__)
    with pytest.raises(UnicodeDecodeError):
        read(batch(0, [b"\xff"]))
