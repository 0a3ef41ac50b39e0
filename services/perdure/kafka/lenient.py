"""Records whose headers have names that are no text: read with the name's bytes escaped.

Kafka's brokers take any bytes as the name of a header. aiokafka raises on what is no UTF-8, each
time that it comes to such a record, so that one of them would hold up its partition for good. With
`install`, what it fetched is read again where that happens, by its own decoder in Python, and the
record arrives like any other: whoever takes it says what is wrong with it.

Invariants:
- What can be read without this is read as without it, at the same speed.
- Records come in their order, each once: those before the one that failed are not given again.
"""

from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

_MAGIC_OF_HEADERS = 2
"""The version of Kafka's batches from which on records have headers."""


def install() -> None:
    """Have all consumers of this process read such records."""
    fetcher.MemoryRecords = _Fetched
    fetcher.PartitionRecords = _PartitionRecords


class _Fetched:
    """What was fetched of a partition, as aiokafka reads it; `data` are its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._records = MemoryRecords(data)
        self.has_next = self._records.has_next
        self.next_batch = self._records.next_batch
        self.size_in_bytes = self._records.size_in_bytes


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc] # it has no types
    def __init__(
        self,
        partition: object,
        records: _Fetched,
        aborted: Sequence[tuple[int, int]] | None,
        *options: object,
    ) -> None:
        super().__init__(partition, records, aborted, *options)
        self._data = records.data
        self._aborted = aborted

    def __next__(self) -> object:
        try:
            return super().__next__()
        except UnicodeDecodeError:
            # From the start of what was fetched: only who reads all of it knows which transactions
            # were aborted.
            self._records = _Escaping(self._data)
            self._aborted_transactions = sorted(self._aborted or (), key=lambda each: each[1])
            self._aborted_producers: set[int] = set()
            self._records_iterator = self._from(self.next_fetch_offset)
            return super().__next__()

    def _from(self, offset: int) -> Iterator[Any]:
        for record in self._unpack_records():
            if record.offset >= offset:
                yield record


class _Escaping(_MemoryRecordsPy):  # type: ignore[misc] # it has no types
    def next_batch(self, *_: object) -> object:
        piece = self._next_slice
        batch = super().next_batch()
        return batch if batch.magic < _MAGIC_OF_HEADERS else _Batch(piece)


class _Batch(_DefaultRecordBatchPy):  # type: ignore[misc] # it has no types
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Bytes(self._buffer)


class _Bytes(bytearray):
    """Bytes of which each part that is decoded is escaped where it is no text."""

    def __getitem__(self, at: SupportsIndex | slice) -> Any:  # noqa: ANN401 - an int, or bytes
        found = super().__getitem__(at)
        return _Bytes(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)
