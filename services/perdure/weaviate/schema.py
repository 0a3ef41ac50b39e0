"""The collections: one for each embedder beside each keyspace, with a tenant for each namespace.

A generation of the tables is a keyspace; memories of tables that are built anew enter collections
of their own.

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

_TENANT = re.compile(r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*")
_NO_WORD = re.compile(r"[^A-Za-z0-9]+")


class About(msgspec.Struct, frozen=True):
    """What a collection says about itself, as JSON in its description.

    `keyspace` is that of the tables whose memories are in it. `dimensions` is the length of its
    vectors, 0 before the first.
    """

    keyspace: str
    embedder: str
    dimensions: int = 0
    format: int = FORMAT


def collection_name(keyspace: str, embedder: str) -> str:
    """The name of a collection. Case doesn't count in it, and it holds letters, digits and `_`.

    >>> collection_name("perdure_g1", "all-MiniLM-L6-v2")
    'Perdure_perdure_g1__all_MiniLM_L6_v2_da0bdcd3'
    """
    readable = _NO_WORD.sub("_", embedder)[:60]
    return f"{_prefix(keyspace)}{readable}_{_digest(f'{keyspace}/{embedder}')[:8]}"


def _prefix(keyspace: str) -> str:
    return f"Perdure_{keyspace}__"


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

    def __init__(self, session: Session, keyspace: str, embedder: str) -> None:
        self.session = session
        self.keyspace = keyspace
        self.embedder = embedder
        self.name = collection_name(keyspace, embedder)
        self._table: Table = session.client.collections.use(self.name)
        self.cuts_lists = True
        """Whether the server may drop the best matches by words from a list that is full.

        Versions up to 1.37 do (its fixes 11780 and 12022), those of recent writes above all, unless
        the server runs with USE_INVERTED_SEARCHABLE=false."""
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
                        definition(self.name, About(self.keyspace, self.embedder))
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
            about = About(self.keyspace, self.embedder, given)
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
        found = await self.session.definition(self.name)
        inverted = found.get("invertedIndexConfig")
        self.cuts_lists = isinstance(inverted, dict) and bool(inverted.get("usingBlockMaxWAND"))
        return _about(self.name, str(found.get("description") or ""))


class Collections:
    """The collections of a cluster, each opened once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._open: dict[tuple[str, str], Collection] = {}

    async def open(self, keyspace: str, embedder: str) -> Collection:
        """The collection for an embedder beside the tables of a keyspace, made where there is none.

        Raises:
            Unreachable: Weaviate doesn't answer.
            UnsupportedFormat: it is of a newer format.
        """
        key = keyspace, embedder
        if key not in self._open:
            collection = Collection(self.session, *key)
            await collection.ensure()
            self._open[key] = collection
        return self._open[key]

    async def drop(self, keyspace: str) -> list[str]:
        """Drop all collections beside a keyspace, with everything in them; their names."""
        for key in [key for key in self._open if key[0] == keyspace]:
            del self._open[key]
        async with self.session.calling("dropping collections", seconds=WRITE_SECONDS):
            everything = await self.session.client.collections.list_all(simple=True)
            names = [
                name
                for name, config in everything.items()
                if name.startswith(_prefix(keyspace))
                and _about(name, config.description).keyspace == keyspace
            ]
            for name in names:
                await self.session.client.collections.delete(name)
        return sorted(names)


def _about(name: str, description: str | None) -> About:
    try:
        about = msgspec.json.decode(description or "", type=About)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnsupportedFormat(
            f"the collection {name} of Weaviate is none of perdure's: {error}",
            hint="drop it, or give the cluster another name",
        ) from error
    if about.format > FORMAT:
        raise UnsupportedFormat(
            f"the collection {name} of Weaviate is of format {about.format}, this code knows up to"
            f" {FORMAT}",
            hint="install a newer perdure",
        )
    return about


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
