"""The stores that the suite runs on, each behind the same few calls.

Nothing else in the suite knows what a store is made of: a new one is a class here and a line in
`KINDS`. A *place* is data that outlives connections: connect to it, crash, connect again.
"""

import asyncio
import hashlib
import os
import tempfile
import uuid
from pathlib import Path

import numpy as np
from tests.stack.fixtures import STACK

import perdure
from perdure.model.projection import DEFAULT
from perdure.model.timeline import Span

AT_REST_SECONDS = 60
"""How long the services of a cluster may take to save the state of an agent at rest."""


class WordsEmbedder:
    """A small, fast and deterministic embedder: texts that share words have a small angle."""

    name = "words-64"
    dimensions = 64

    def embed(self, texts):
        """One row a text: how often words of each bucket occur in it, scaled to unit length."""
        rows = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                digest = hashlib.sha256(word.strip(".,?!").encode("utf-8", "replace")).digest()
                row[digest[0] % self.dimensions] += 1.0
            length = float(np.linalg.norm(row))
            if length:
                np.divide(row, length, out=row)
        return rows


class Place:
    """A store that nobody else uses, at a URL."""

    def __init__(self, url):
        self.url = url
        self._connected = []

    async def connect(self, **options):
        """Connect to the place, with the small embedder where none is given."""
        store = await perdure.connect(self.url, **{"embedder": WordsEmbedder(), **options})
        self._connected.append(store)
        return store

    async def close(self):
        """Close what tests left open: a store that was dropped in a crash is among it."""
        for store in self._connected:
            await store.close()
        self._connected.clear()

    async def at_rest(self, agent):
        """Wait until everything is done that is done when an agent is closed: by the agent here."""


class ClusterPlace(Place):
    """A store of a cluster, whose services do what is done when an agent is at rest."""

    async def at_rest(self, agent):
        """Wait until the newest state of an agent is saved."""
        store = await self.connect()
        last = await store.view(agent).sequence()
        async with asyncio.timeout(AT_REST_SECONDS):
            while True:
                saved = await backend(store).states.nearest(
                    DEFAULT.name, DEFAULT.key, [Span(agent, 1, last)]
                )
                if saved is not None and saved.sequence == last:
                    return
                await asyncio.sleep(0.1)


class EmbeddedStores:
    """Makes places of the embedded store: folders."""

    name = "embedded"
    marks = ()
    examples = 200

    def __init__(self, _fixture):
        self._root = tempfile.TemporaryDirectory(prefix="conformance-")
        self._made = 0

    def place(self):
        """A new, empty place."""
        self._made += 1
        return Place(str(Path(self._root.name) / f"store-{self._made}"))

    def close(self):
        """Remove all places."""
        self._root.cleanup()


class ClusterStores:
    """Makes places on a cluster: stores of their own, of engines and services that all share."""

    name = "cluster"
    marks = STACK
    examples = 15

    def __init__(self, fixture):
        self._services = fixture("shared_services")

    def place(self):
        """A new, empty place, where writes wait until they are recorded, as in a folder."""
        return ClusterPlace(self._services.url(f"s{uuid.uuid4().hex[:12]}", ack="recorded"))

    def close(self):
        """Nothing: a store goes with its cluster."""


KINDS = {kind.name: kind for kind in (EmbeddedStores, ClusterStores)}


def wanted():
    """The stores to run on: those that CONFORMANCE_STORES names (with commas), else all."""
    given = os.environ.get("CONFORMANCE_STORES", "")
    names = [name.strip() for name in given.split(",") if name.strip()] or list(KINDS)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(f"CONFORMANCE_STORES names {unknown}, there are {list(KINDS)}")
    return names


def backend(store):
    """The ports of a store, for what its public surface can't show."""
    return store._session.backend
