"""State checkpoints in the store's file.

Invariants:
- A saved state is never needed: it can be folded again, so a damaged one is passed over.
- Of one agent and projection, the number of saved states grows with the logarithm of the history:
  the newest two are kept, and of the older ones the oldest in each doubling of the distance.
- Saved states of other code (another key) are dropped when a new one is saved.
"""

import asyncio
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Final

import zstandard

from perdure.embedded import event_rows
from perdure.embedded.database import Database
from perdure.embedded.zstd import Zstd
from perdure.model.timeline import Span
from perdure.ports import Finding, SavedState

SCHEMA: Final = (
    """CREATE TABLE states (
        id INTEGER PRIMARY KEY,
        agent INTEGER NOT NULL,
        projection TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        key TEXT NOT NULL,           -- of the projection's code
        crc INTEGER NOT NULL,        -- CRC-32 of body
        body BLOB NOT NULL,          -- zstd of what the projection encoded
        UNIQUE (agent, projection, sequence)
    )""",
)

LEVEL: Final = 1
"""zstd level: a state checkpoint is written often and soon replaced."""
STATE_BYTES_MAX: Final = 1 << 30

_zstd = Zstd(level=LEVEL)


class SqliteStateTable:
    """`ports.StateTable` on the store's file."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids = event_rows.AgentIds()

    async def nearest(self, projection: str, key: str, spans: Sequence[Span]) -> SavedState | None:
        for span in reversed(spans):
            with self._database.reading() as connection:
                agent_id = self._ids.find(connection, span.agent)
                rows = connection.execute(
                    "SELECT sequence, crc, body FROM states WHERE agent = ? AND projection = ?"
                    " AND key = ? AND sequence BETWEEN ? AND ? ORDER BY sequence DESC",
                    (agent_id, projection, key, span.first, span.last),
                )
                for sequence, crc, body in rows:
                    data = _plain(body, crc)
                    if data is not None:
                        rows.close()
                        return SavedState(span.agent, sequence, projection, key, data)
        return None

    async def save(self, saved: SavedState) -> None:
        body = await asyncio.to_thread(_packed, saved.data)
        crc = zlib.crc32(body)

        def job(connection: sqlite3.Connection) -> None:
            agent = event_rows.agent_id(connection, saved.agent)
            connection.execute(
                "DELETE FROM states WHERE agent = ? AND projection = ? AND key <> ?",
                (agent, saved.projection, saved.key),
            )
            connection.execute(
                "INSERT OR REPLACE INTO states (agent, projection, sequence, key, crc, body)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (agent, saved.projection, saved.sequence, saved.key, crc, body),
            )
            rows = connection.execute(
                "SELECT sequence FROM states WHERE agent = ? AND projection = ? ORDER BY sequence",
                (agent, saved.projection),
            )
            connection.executemany(
                "DELETE FROM states WHERE agent = ? AND projection = ? AND sequence = ?",
                [(agent, saved.projection, at) for at in surplus([row[0] for row in rows])],
            )

        # Power loss costs a fold, no more: not worth waiting for the disk.
        await self._database.write(job, durable=False)

    async def check(self, agent: str) -> list[Finding]:
        findings = []
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT sequence, projection, crc, body FROM states WHERE agent = ?",
                (event_rows.agent_id(connection, agent),),
            )
            for sequence, projection, crc, body in rows:
                if _plain(body, crc) is None:
                    findings.append(
                        Finding(
                            f"{agent}@{sequence}",
                            f"the saved state of projection {projection} is damaged",
                            "nothing is lost: it is folded from the events when it is needed",
                        )
                    )
        return findings


def surplus(sequences: Sequence[int]) -> list[int]:
    """Which of the saved sequences (rising) to drop, so that a logarithmic number stays.

    >>> surplus([10, 20, 30, 40, 50, 60])
    [20, 40]
    """
    drop = []
    newest = sequences[-1] if sequences else 0
    seen = set()
    for sequence in sequences[:-2]:
        doubling = (newest - sequence).bit_length()
        if doubling in seen:
            drop.append(sequence)
        seen.add(doubling)
    return drop


def _packed(data: bytes) -> bytes:
    return _zstd.compressor.compress(data)


def _plain(body: bytes, crc: int) -> bytes | None:
    if zlib.crc32(body) != crc:
        return None
    try:
        if not 0 <= zstandard.frame_content_size(body) <= STATE_BYTES_MAX:
            return None
        return _zstd.decompressor.decompress(body)
    except zstandard.ZstdError:
        return None
