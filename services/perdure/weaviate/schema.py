"""The collections: one for each embedder of a generation, with a tenant for each namespace.

Invariants:
- Vectors of two embedders never lie in one collection.
- Names are functions of what they name, and two things never share one.
- A collection of a newer format is not touched.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from weaviate import exceptions

from perdure.errors import InvalidData, UnsupportedFormat
from perdure.weaviate.session import WRITE_SECONDS, Session, Table

FORMAT: Final = 1
"""Of what is in a collection. Raised when an older reader would misunderstand it."""

TENANT_CHARS_MAX: Final = 64
TENANTS_KNOWN_MAX: Final = 65_536
"""How many tenants are remembered to exist."""

_PLAIN = re.compile(r"[a-z0-9]+")
_TENANT = re.compile(r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*")
_NO_WORD = re.compile(r"[^A-Za-z0-9]+")


class About(msgspec.Struct, frozen=True):
    """What a collection says about itself, as JSON in its description.

    `dimensions` is the length of its vectors, 0 before the first.
    """

    embedder: str
    dimensions: int = 0
    format: int = FORMAT


def prefix(cluster: str, generation: int) -> str:
    """With what the names of a generation's collections start.

    >>> prefix("perdure", 1)
    'Perdure_perdure_g1_'
    """
    name = cluster
    if not _PLAIN.fullmatch(cluster):
        # Upper case, so that no plain name is equal.
        name = f"{_NO_WORD.sub('_', cluster)}_X{_digest(cluster)[:8]}"
    return f"Perdure_{name}_g{generation}_"


def collection_name(cluster: str, generation: int, embedder: str) -> str:
    """The name of a collection. Case doesn't count in it, and it holds letters, digits and `_`.

    >>> collection_name("perdure", 1, "all-MiniLM-L6-v2")
    'Perdure_perdure_g1_all_MiniLM_L6_v2_07db4e1f'
    """
    readable = _NO_WORD.sub("_", embedder)[:60]
    return f"{prefix(cluster, generation)}{readable}_{_digest(embedder)[:8]}"


def tenant_name(store: str, namespace: str) -> str:
    """The tenant of a namespace: readable where that is unambiguous, else a SHA-256.

    >>> tenant_name("default", "airline")
    'default__airline'
    >>> len(tenant_name("default", "a.b"))
    64
    """
    joined = f"{store}__{namespace}"
    if (
        _TENANT.fullmatch(store)
        and _TENANT.fullmatch(namespace)
        and len(joined) <= TENANT_CHARS_MAX
    ):
        return joined
    return _digest(f"{store}/{namespace}")


def definition(name: str, about: About) -> dict[str, Any]:
    """A collection as Weaviate's REST interface takes it; `schemas/weaviate.json` shows one."""
    return {
        "class": name,
        "description": msgspec.json.encode(about).decode(),
        "multiTenancyConfig": {
            "enabled": True,
            "autoTenantCreation": True,
            "autoTenantActivation": True,
        },
        "vectorConfig": {
            "default": {
                "vectorizer": {"none": {}},
                # Every vector that passes the filter is looked at: a search is exact, as the
                # embedded store's is, takes 8 ms for 10,000 memories of an agent and no memory.
                "vectorIndexType": "flat",
                # Vectors are of unit length, so this is the cosine; a zero vector is like nothing.
                "vectorIndexConfig": {"distance": "dot"},
            }
        },
        "invertedIndexConfig": {
            "bm25": {"k1": 1.2, "b": 0.75},  # as SQLite's full text search has them
            "stopwords": {"preset": "none"},
        },
        "properties": [
            _property("kind", "text", "memory, forgetting or mark", filter=True),
            _property("agent", "text", "namespace/name", filter=True),
            _property(
                "sequence",
                "int",
                "of the event; of a mark: up to which all memory events of the agent are in",
                filter=True,
                ranges=True,
            ),
            _property("event", "text", "id of the event, which is the memory's", filter=True),
            _property("forgets", "text", "of a forgetting: id of the memory"),
            _property("part", "int", "which window of the text the vector is of: 0, 1, 2 …"),
            _property("parts", "int", "in part 0: number of windows, 0 without a vector yet"),
            _property("time", "text", "of the event, ISO 8601 in UTC"),
            _property(
                "microseconds",
                "int",
                "the same since 1970, to filter; beyond 53 bits (the year 2255) rounded",
                ranges=True,
            ),
            _property("text", "text", "in part 0: the whole text"),
            _property("source", "text", "in part 0: who gave it"),
            _property("context", "text", "in part 0: a JSON object"),
            _property("metadata", "text", "in part 0: a JSON object"),
            _property(
                "until",
                "int",
                "first sequence at which the agent itself forgot it, 9007199254740991 if never",
                filter=True,
                ranges=True,
            ),
            _property("facts", "text[]", "source and fields as PATH=JSON, to filter", filter=True),
            {
                "name": "terms",
                "dataType": ["text"],
                "description": "in part 0: the stems of the text, to rank by words",
                "tokenization": "whitespace",
                "indexFilterable": False,
                "indexSearchable": True,
            },
        ],
    }


def _property(
    name: str, kind: str, description: str, *, filter: bool = False, ranges: bool = False
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "dataType": [kind],
        "description": description,
        "indexFilterable": filter,
    }
    if kind == "int":
        made["indexRangeFilters"] = ranges
    else:
        made |= {"tokenization": "field", "indexSearchable": False}
    return made


class Collection:
    """The collection of one embedder in one generation."""

    def __init__(self, session: Session, name: str, embedder: str) -> None:
        self.session = session
        self.name = name
        self.embedder = embedder
        self._table: Table = session.client.collections.use(name)
        self._about: About | None = None
        self._tenants: OrderedDict[str, None] = OrderedDict()

    async def ensure(self) -> None:
        """Make it where it isn't yet; others may do so at the same time.

        Raises:
            UnsupportedFormat: it is of a newer format.
        """
        async with self.session.calling("opening a collection", seconds=WRITE_SECONDS):
            exists = await self.session.client.collections.exists(self.name)
            if not exists:
                try:
                    await self.session.client.collections.create_from_dict(
                        definition(self.name, About(self.embedder))
                    )
                except exceptions.UnexpectedStatusCodeError:
                    if not await self.session.client.collections.exists(self.name):
                        raise
        self._about = await self._read()

    async def dimensions(self) -> int:
        """The length of its vectors, 0 where there are none yet."""
        if self._about is None or not self._about.dimensions:
            self._about = await self._read()
        return self._about.dimensions

    async def check_dimensions(self, given: int, *, first: bool = False) -> None:
        """Hold vectors to the length of those that are there; with `first`, set it.

        Raises:
            InvalidData: theirs is another.
        """
        stored = await self.dimensions()
        if not stored and first:
            about = About(self.embedder, given)
            async with self.session.calling("describing a collection", seconds=WRITE_SECONDS):
                await self._table.config.update(description=msgspec.json.encode(about).decode())
            self._about = about
        elif stored and stored != given:
            raise InvalidData(
                f"embedder {self.embedder} gives {given} dimensions, its stored vectors have"
                f" {stored}",
                hint="give every embedder, and every version of it, a name of its own",
            )

    async def tenant(self, name: str) -> Table | None:
        """A tenant's part to read, None where there is none yet."""
        if name not in self._tenants:
            async with self.session.calling("looking for a tenant"):
                if not await self._table.tenants.exists(name):
                    return None
            self._remember(name)
        return self._table.with_tenant(name)

    async def make_tenants(self, names: Iterable[str]) -> None:
        """Make those tenants that aren't there yet, all by one request; others may do so too."""
        unknown = [name for name in dict.fromkeys(names) if name not in self._tenants]
        if unknown:
            async with self.session.calling("making tenants", seconds=WRITE_SECONDS):
                await self._table.tenants.create(unknown)
            for name in unknown:
                self._remember(name)

    async def made_tenant(self, name: str) -> Table:
        """A tenant's part to write."""
        await self.make_tenants([name])
        return self._table.with_tenant(name)

    def _remember(self, name: str) -> None:
        self._tenants[name] = None
        self._tenants.move_to_end(name)
        if len(self._tenants) > TENANTS_KNOWN_MAX:
            self._tenants.popitem(last=False)

    async def _read(self) -> About:
        async with self.session.calling("reading a collection's description"):
            config = await self._table.config.get(simple=True)
        try:
            about = msgspec.json.decode(config.description or "", type=About)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UnsupportedFormat(
                f"the collection {self.name} of Weaviate is none of perdure's: {error}",
                hint="drop it, or give the cluster another name",
            ) from error
        if about.format > FORMAT:
            raise UnsupportedFormat(
                f"the collection {self.name} of Weaviate is of format {about.format}, this code"
                f" knows up to {FORMAT}",
                hint="install a newer perdure",
            )
        return about


class Collections:
    """The collections of one generation, each opened once."""

    def __init__(self, session: Session, cluster: str, generation: int) -> None:
        self.session = session
        self._cluster = cluster
        self._generation = generation
        self._open: dict[str, Collection] = {}

    async def open(self, embedder: str) -> Collection:
        """The collection of an embedder, made where there is none.

        Raises:
            Unreachable: Weaviate doesn't answer.
            UnsupportedFormat: it is of a newer format.
        """
        if embedder not in self._open:
            name = collection_name(self._cluster, self._generation, embedder)
            collection = Collection(self.session, name, embedder)
            await collection.ensure()
            self._open[embedder] = collection
        return self._open[embedder]

    async def drop(self) -> list[str]:
        """Drop all collections of the generation, with everything in them; their names."""
        self._open.clear()
        start = prefix(self._cluster, self._generation)
        async with self.session.calling("dropping collections", seconds=WRITE_SECONDS):
            everything = await self.session.client.collections.list_all(simple=True)
            names = sorted(name for name in everything if name.startswith(start))
            for name in names:
                await self.session.client.collections.delete(name)
        return names


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
