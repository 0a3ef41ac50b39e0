"""The manifest of objects: which digests are in checkpoint storage, and which uploads failed.

A line is the same in every generation of the tables: it is written to all of them, and read from
the first that has it.
"""

from datetime import UTC
from typing import Final

from perdure.cassandra.catalog import DROPPED, Catalog
from perdure.cassandra.session import Session, Statement
from perdure.checkpointer.storage import Known, StoredObject
from perdure.settings import Cluster

REFUSED_SECONDS: Final = 7 * 24 * 3600
"""How long it is known why an upload failed: whoever waits for it asks at once."""

_FIND: Final = "SELECT size, stored, uploader, created, refused FROM {}.objects WHERE digest = ?"
_ALL: Final = "SELECT digest, size, stored, uploader, created FROM {}.objects"
_PAGE: Final = 1000
_ADD: Final = (
    "INSERT INTO {}.objects (digest, size, stored, uploader, created) VALUES (?, ?, ?, ?, ?)"
)
_REFUSE: Final = (
    f"UPDATE {{}}.objects USING TTL {REFUSED_SECONDS} SET refused[?] = ? WHERE digest = ?"
)


class CassandraManifest:
    """`checkpointer.storage.Manifest` of a cluster. Raises Unreachable where it can't serve now."""

    def __init__(self, session: Session, catalog: Catalog, cluster: Cluster) -> None:
        self._session = session
        self._catalog = catalog
        self._cluster = cluster
        self._prepared: dict[str, Statement] = {}

    async def find(self, digest: str) -> Known:
        """What is known of a digest; an empty `Known` of one that is not."""
        refused: dict[str, str] = {}
        for keyspace in await self._keyspaces():
            rows = await self._session.execute(await self._statement(_FIND, keyspace), (digest,))
            for size, stored, uploader, created, reasons in rows:
                refused |= dict(reasons or {})
                if stored is not None:
                    at = created.replace(tzinfo=UTC)
                    return Known(StoredObject(digest, size, stored, at, uploader or ""), refused)
        return Known(None, refused)

    async def add(self, stored: StoredObject) -> None:
        """Note an object that is in storage; durable when it returns."""
        values = (stored.digest, stored.size, stored.stored, stored.uploader, stored.created)
        await self._write(_ADD, values)

    async def refuse(self, digest: str, upload: str, reason: str) -> None:
        """Tell whoever waits for an upload that it is not going to be stored, and why."""
        await self._write(_REFUSE, (upload, reason, digest))

    async def copy(self, source: int, target: int) -> int:
        """Note what is in storage in another generation, too; how many lines that are."""
        target_keyspace = self._cluster.keyspace(target)
        find = await self._statement(_ALL, self._cluster.keyspace(source))
        add = await self._statement(_ADD, target_keyspace)
        copied = 0
        async for page in self._session.pages(find, (), rows=_PAGE):
            lines = [row for row in page if row[2] is not None]
            await self._session.execute_many((add, line) for line in lines)
            copied += len(lines)
        return copied

    async def _write(self, cql: str, values: tuple[object, ...]) -> None:
        for keyspace in await self._keyspaces():
            await self._session.execute(await self._statement(cql, keyspace), values)

    async def _keyspaces(self) -> list[str]:
        generations = await self._catalog.generations()
        return [self._cluster.keyspace(g.number) for g in generations if g.state != DROPPED]

    async def _statement(self, cql: str, keyspace: str) -> Statement:
        text = cql.format(keyspace)
        if text not in self._prepared:
            self._prepared[text] = await self._session.prepare(text)
        return self._prepared[text]
