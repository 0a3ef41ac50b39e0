"""From a URL to a store: the one place where an adapter is chosen."""

import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import unquote, urlsplit

from perdure import settings
from perdure.agent.session import Session
from perdure.agent.store import Store
from perdure.checkpointer.graph import Classes, default_classes
from perdure.embedded.folder import open_folder
from perdure.errors import InvalidInput, Unavailable
from perdure.memorizer.embedder import CachedEmbedder, Embedder, default_embedder
from perdure.memorizer.message_search import MessageSearch
from perdure.model.projection import Projections, default_projections
from perdure.model.upcast import Upcasters, default_upcasters
from perdure.ports import Backend

DEFAULT_FOLDER: Final = ".perdure"
VARIABLE: Final = "PERDURE_STORE"


class connect:  # noqa: N801 - it is called like a function; it is awaited or entered
    """Connect to a store: `async with perdure.connect() as store:` (or `await perdure.connect()`).

    Args:
        url: a path or `file:///path` (one folder, no server); `perdure://host:port` or
            `perdure://host:port/store` (a cluster, behind its gateway), with `?ack=recorded` for
            what writes wait for that don't say; or a `perdure.toml` that describes a cluster.
            Without one, the variable PERDURE_STORE, and without that `./.perdure`.
        embedder: what makes vectors of memories, if not the built-in model.
        create: whether to make the folder where there is none.

    Raises (when entered):
        InvalidInput: the URL is of no known kind.
        NotFound: there is no store and `create` is off.
        Unavailable, Corrupt, UnsupportedFormat: the store can't be opened.

    >>> async with connect("crew.store") as store:
    ...     agent = await store.agent("airline/mia")
    ...     event = await agent.emit("decision.made", {"choice": "refund"})
    ...     print(event.sequence, agent.state.decisions[0]["choice"])
    1 refund
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        embedder: Embedder | None = None,
        projections: Projections = default_projections,
        upcasters: Upcasters = default_upcasters,
        classes: Classes = default_classes,
        create: bool = True,
    ) -> None:
        self._url = url
        self._embedder = embedder
        self._projections = projections
        self._upcasters = upcasters
        self._classes = classes
        self._create = create
        self._store: Store | None = None

    def __await__(self) -> Generator[object, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._store is not None:
            await self._store.close()

    async def _open(self) -> Store:
        given = store_url(self._url)
        if (cluster := cluster_url(given)) is not None:
            backend = await _open_cluster(cluster, self._upcasters.current)
        else:
            backend = open_folder(
                folder_of(given), version_of=self._upcasters.current, create=self._create
            )
        embedder = default_embedder() if self._embedder is None else CachedEmbedder(self._embedder)
        return Store(
            Session(
                backend,
                embedder,
                MessageSearch(backend.events, backend.scratch_memories, embedder, self._upcasters),
                self._projections,
                self._upcasters,
                self._classes,
            )
        )


async def _open_cluster(url: str, version_of: Callable[[str], int]) -> Backend:
    try:
        from perdure.gateway.backend import open_cluster
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("perdure"):
            raise
        raise Unavailable(
            f"the package {error.name} is not installed, which {url} needs",
            hint="pip install 'perdure[cluster]'",
        ) from error
    return await open_cluster(url, version_of=version_of)


def store_url(url: str | os.PathLike[str] | None) -> str:
    """Where the store is: what is given, else PERDURE_STORE, else the default folder."""
    return os.fspath(url) if url is not None else os.environ.get(VARIABLE) or DEFAULT_FOLDER


def cluster_url(given: str) -> str | None:
    """The URL of a cluster's gateway; None where a folder is meant.

    >>> cluster_url("perdure://127.0.0.1:8787/crew")
    'perdure://127.0.0.1:8787/crew'
    >>> cluster_url("./.perdure") is None
    True
    """
    if given.startswith("perdure://"):
        return given
    if given.endswith(".toml") and Path(given).is_file():
        cluster = settings.load(Path(given))
        return f"perdure://{cluster.gateway_host}:{cluster.gateway_port}"
    return None


def folder_of(url: str | os.PathLike[str] | None) -> Path:
    """The folder that a URL names.

    Raises:
        InvalidInput: it names none.

    >>> folder_of("file:///srv/agents").as_posix()
    '/srv/agents'
    """
    given = store_url(url)
    if not given or "\0" in given:
        raise InvalidInput(f"store URL {given!r} names no folder", hint="for example ./.perdure")
    scheme, separator, _ = given.partition("://")
    if given.startswith(("perdure:", "file:")) and not separator:
        raise InvalidInput(
            f"store URL {given!r} lacks a slash or two",
            hint="give file:///path, or perdure://host:port; a folder of that name is ./" + given,
        )
    if not separator:
        return Path(given).expanduser()
    if scheme == "perdure":
        raise InvalidInput(
            f"the store {given} is a cluster, and this works on a folder",
            hint="give a path; the services of a cluster tell how they are at /readyz and /metrics",
        )
    if scheme != "file":
        raise InvalidInput(
            f"store URL {given!r} is of the kind {scheme}://, which this perdure doesn't know",
            hint="give a path, file:///path, or perdure://host:port",
        )
    parts = urlsplit(given)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise InvalidInput(
            f"store URL {given!r} names the host {parts.netloc!r}",
            hint="a folder of this machine has three slashes: file:///path",
        )
    return Path(unquote(parts.path))
