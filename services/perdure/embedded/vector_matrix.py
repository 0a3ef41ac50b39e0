"""Vectors of the store's file in main memory, for exact search.

Invariants:
- The file is the truth. Rows of `vectors` are only ever added, with ids that go up and are never
  given twice; so a copy is brought up to date by reading what has a larger id than its last,
  whichever process wrote it.
- All copies together take at most `bytes_max`; vectors beyond that are read from the file at each
  search, `BLOCK_ROWS` at a time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perdure.embedded.database import Transactions
from perdure.errors import Corrupt

CACHE_BYTES_MAX: Final = 256 * 2**20
"""The most bytes of vectors in main memory: 100,000 of 384 dimensions take 154 MB."""

BLOCK_ROWS: Final = 4_096
"""Rows that are read and multiplied at once (6 MB at 384 dimensions)."""

INLINE_ROWS_MAX: Final = 8_192
"""Up to so many rows are multiplied on the event loop's thread: 1 ms, less than a hop's cost."""

_FIRST_ROWS: Final = 64

Scored = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Places of memories and the cosine of each."""

_View = tuple[NDArray[np.int64], NDArray[np.float32]]


class _Block:
    """Up to `BLOCK_ROWS` vectors; what is filled never changes, so readers need no lock."""

    def __init__(self, dimensions: int, capacity: int) -> None:
        self.places: NDArray[np.int64] = np.empty(capacity, np.int64)
        self.vectors: NDArray[np.float32] = np.empty((capacity, dimensions), np.float32)
        self.used = 0


class _Matrix:
    """The vectors of one agent's stream and one embedder, as far as they fit."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.last_id = 0
        self.bytes = 0

    def views(self) -> list[_View]:
        return [(block.places[: block.used], block.vectors[: block.used]) for block in self.blocks]


class VectorMatrices:
    """Exact cosines of a query with all vectors of an agent's stream. Use from one event loop."""

    def __init__(self, database: Transactions, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._database = database
        self._bytes_max = bytes_max
        self._matrices: OrderedDict[tuple[int, int], _Matrix] = OrderedDict()
        self._bytes = 0
        self._lock = asyncio.Lock()

    def clear(self) -> None:
        """Drop all copies; they are read again when they are needed."""
        self._matrices.clear()
        self._bytes = 0

    @property
    def size(self) -> int:
        """How many bytes of main memory the copies take."""
        return self._bytes

    async def cosines(self, agent: int, embedder: int, query: NDArray[np.float32]) -> Scored:
        """Places and cosines of all memories of the stream that have vectors of the embedder.

        A memory of several vectors gets the largest of its cosines.

        Raises:
            Corrupt: a stored vector is not what was written.
        """
        async with self._lock:
            views, beyond = await self._current(agent, embedder, query)
        if sum(len(places) for places, _ in views) > INLINE_ROWS_MAX:
            scored = await asyncio.to_thread(_multiply, views, query)
        else:
            scored = _multiply(views, query)
        return _best_of_parts([*scored, *beyond])

    async def _current(
        self, agent: int, embedder: int, query: NDArray[np.float32]
    ) -> tuple[list[_View], list[Scored]]:
        """The copy, brought up to date, and what of the query's answer has no room in it."""
        matrix = self._matrices.setdefault((agent, embedder), _Matrix())
        self._matrices.move_to_end((agent, embedder))
        beyond: list[Scored] = []
        last_id = matrix.last_id
        while rows := self._read(agent, embedder, last_id):
            places, vectors = _arrays(rows, len(query))
            last_id = rows[-1][0]
            # After the first rows without room none is kept: a copy has no holes.
            if beyond or not self._keep(matrix, places, vectors, last_id):
                beyond.append((places, vectors @ query))
            if len(rows) < BLOCK_ROWS:
                break
            await asyncio.sleep(0)  # a large agent must not hold up the loop for seconds
        return matrix.views(), beyond

    def _read(self, agent: int, embedder: int, after: int) -> list[tuple[int, int, object]]:
        # A statement of its own for each block: one left open would hold the reader connection,
        # which others share, at an old state of the file.
        with self._database.reading() as connection:
            return connection.execute(
                "SELECT id, place, vector FROM vectors WHERE agent = ? AND embedder = ? AND id > ?"
                " ORDER BY id LIMIT ?",
                (agent, embedder, after, BLOCK_ROWS),
            ).fetchall()

    def _keep(
        self,
        matrix: _Matrix,
        places: NDArray[np.int64],
        vectors: NDArray[np.float32],
        last_id: int,
    ) -> bool:
        """Add rows to the copy; False where there is no room, even with other copies dropped."""
        row_bytes = 8 + vectors.shape[1] * 4
        done = 0
        while done < len(places):
            block = matrix.blocks[-1] if matrix.blocks else None
            if block is None or block.used == len(block.places):
                block = self._grown(matrix, block, vectors.shape[1], row_bytes)
                if block is None:
                    break
            count = min(len(block.places) - block.used, len(places) - done)
            block.places[block.used : block.used + count] = places[done : done + count]
            block.vectors[block.used : block.used + count] = vectors[done : done + count]
            block.used += count
            done += count
        if done == len(places):
            matrix.last_id = last_id
            return True
        _drop_last(matrix, done)
        return False

    def _grown(
        self, matrix: _Matrix, block: _Block | None, dimensions: int, row_bytes: int
    ) -> _Block | None:
        """A block with room: a larger copy of the last one, or another one."""
        if block is not None and len(block.places) < BLOCK_ROWS:
            used, capacity = block.used, min(2 * len(block.places), BLOCK_ROWS)
        else:
            used, capacity = 0, BLOCK_ROWS if matrix.blocks else _FIRST_ROWS
        added = (capacity - used) * row_bytes
        if not self._make_room(matrix, added):
            return None
        larger = _Block(dimensions, capacity)
        if block is not None and used:
            larger.places[:used] = block.places[:used]
            larger.vectors[:used] = block.vectors[:used]
            larger.used = used
            matrix.blocks[-1] = larger
        else:
            matrix.blocks.append(larger)
        matrix.bytes += added
        self._bytes += added
        return larger

    def _make_room(self, matrix: _Matrix, added: int) -> bool:
        if matrix.bytes + added > self._bytes_max:
            return False
        while self._bytes + added > self._bytes_max:
            key = next(key for key, other in self._matrices.items() if other is not matrix)
            self._bytes -= self._matrices.pop(key).bytes
        return True


def _drop_last(matrix: _Matrix, count: int) -> None:
    """Take back the last rows that were added, so that a copy ends where a reading ended."""
    for block in reversed(matrix.blocks):
        taken = min(block.used, count)
        block.used -= taken
        count -= taken


def _arrays(rows: Sequence[tuple[int, int, object]], dimensions: int) -> _View:
    places = np.fromiter((row[1] for row in rows), np.int64, len(rows))
    whole = [row[2] for row in rows if isinstance(row[2], bytes) and len(row[2]) == 4 * dimensions]
    if len(whole) == len(rows):
        flat = np.frombuffer(b"".join(whole), "<f4")
        vectors = flat.reshape(len(rows), dimensions).astype(np.float32, copy=False)
        # They were written with unit length, or as zeros: what is otherwise was damaged since.
        lengths = np.einsum("ij,ij->i", vectors, vectors)
        if (np.isclose(lengths, 1, atol=1e-3) | (lengths == 0)).all():
            return places, vectors
    raise Corrupt(
        f"a vector of the memory index, of id {rows[0][0]} to {rows[-1][0]}, is damaged",
        hint="drop_vectors() of the memory index has them made again from the texts",
    )


def _multiply(views: Sequence[_View], query: NDArray[np.float32]) -> list[Scored]:
    return [(places, vectors @ query) for places, vectors in views]


def _best_of_parts(scored: Sequence[Scored]) -> Scored:
    """One cosine a memory: the largest of its parts, which lie side by side."""
    if not scored:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    places = np.concatenate([each for each, _ in scored])
    cosines = np.concatenate([each for _, each in scored])
    firsts = np.flatnonzero(np.diff(places, prepend=-1))
    if len(firsts) == len(places):
        return places, cosines
    return places[firsts], np.maximum.reduceat(cosines, firsts)
