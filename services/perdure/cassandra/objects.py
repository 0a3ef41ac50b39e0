"""The manifest of objects: which digests are in checkpoint storage, and which uploads failed.

Objects are named by what they hold, and no event tells what is stored where: the manifest is of the
cluster, the same for all generations of its tables.
"""

from datetime import UTC
from typing import Final

from perdure.cassandra.schema import control_keyspace
from perdure.cassandra.session import Session, Statement
from perdure.checkpointer.storage import Known, StoredObject
from perdure.settings import Cluster

REFUSED_SECONDS: Final = 7 * 24 * 3600
"""How long it is known why an upload failed: whoever waits for it asks at once."""

_FIND: Final = "SELECT size, stored, uploader, created, refused FROM {}.objects WHERE digest = ?"
_ADD: Final = (
    "INSERT INTO {}.objects (digest, size, stored, uploader, created) VALUES (?, ?, ?, ?, ?)"
)
_REFUSE: Final = (
    f"UPDATE {{}}.objects USING TTL {REFUSED_SECONDS} SET refused[?] = ? WHERE digest = ?"
)


class CassandraManifest:
    """`checkpointer.storage.Manifest` of a cluster. Raises Unreachable where it can't serve now."""

    def __init__(self, session: Session, cluster: Cluster) -> None:
        self._session = session
        self._keyspace = control_keyspace(cluster)
        self._prepared: dict[str, Statement] = {}

    async def find(self, digest: str) -> Known:
        """What is known of a digest; an empty `Known` of one that is not."""
        rows = await self._session.execute(await self._statement(_FIND), (digest,))
        for size, stored, uploader, created, reasons in rows:
            refused = dict(reasons or {})
            if stored is None:
                return Known(None, refused)
            at = created.replace(tzinfo=UTC)
            return Known(StoredObject(digest, size, stored, at, uploader or ""), refused)
        return Known(None, {})

    async def add(self, stored: StoredObject) -> None:
        """Note an object that is in storage; durable when it returns."""
        values = (stored.digest, stored.size, stored.stored, stored.uploader, stored.created)
        await self._session.execute(await self._statement(_ADD), values)

    async def refuse(self, digest: str, upload: str, reason: str) -> None:
        """Tell whoever waits for an upload that it is not going to be stored, and why."""
        await self._session.execute(await self._statement(_REFUSE), (upload, reason, digest))

    async def _statement(self, cql: str) -> Statement:
        if cql not in self._prepared:
            self._prepared[cql] = await self._session.prepare(cql.format(self._keyspace))
        return self._prepared[cql]
