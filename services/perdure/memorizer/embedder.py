"""What turns texts into vectors, and a cache in front of it.

Invariant: vectors of two embedders are never compared. An embedder's `name` is stored with its
vectors, so another model, or another version of it, has to have another name.
"""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from perdure.errors import InvalidData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CACHE_BYTES_MAX: Final = 16 * 2**20
"""The most bytes of vectors that a `CachedEmbedder` keeps."""


class Embedder(Protocol):
    """Turns texts into vectors: texts of like meaning into vectors of a small angle.

    `embed` is called in worker threads, at times from two at once, and must take any `str`. A text
    longer than the model's window comes in several pieces (see `windows`).
    """

    @property
    def name(self) -> str:
        """Which model in which version: stored with each vector."""
        ...

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        ...

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """The vectors of the texts: len(texts) x `dimensions`, each of unit length."""
        ...


class CachedEmbedder:
    """Another embedder, asked once for each text: the last ones are kept by their SHA-256.

    Safe to call from several threads. Bounded by `bytes_max` bytes of vectors.

    >>> import numpy
    >>> class Length:
    ...     name, dimensions, asked = "length", 1, 0
    ...     def embed(self, texts):
    ...         self.asked += len(texts)
    ...         return numpy.ones((len(texts), 1), numpy.float32)
    >>> embedder = CachedEmbedder(Length())
    >>> embedder.embed(["a", "b", "a"]).shape, embedder.embed(["b"]).shape
    ((3, 1), (1, 1))
    >>> embedder.embedder.asked
    2
    """

    def __init__(self, embedder: Embedder, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self.embedder = embedder
        self._rows_max = max(1, bytes_max // (4 * embedder.dimensions))
        self._rows: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name of the embedder behind."""
        return self.embedder.name

    @property
    def dimensions(self) -> int:
        """The dimensions of the embedder behind."""
        return self.embedder.dimensions

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """The vectors of the texts, from the embedder behind where they are not kept."""
        import numpy as np

        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        with self._lock:
            found = {key: self._rows[key] for key in keys if key in self._rows}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        # Not under the lock: a query must not wait for a long batch of another thread.
        if missing:
            rows = unit_vectors(self.embedder, list(missing.values()))
            # Copies, so that a kept row does not keep its whole batch alive.
            found.update((key, row.copy()) for key, row in zip(missing, rows, strict=True))
        with self._lock:
            for key in keys:
                self._rows[key] = found[key]
                self._rows.move_to_end(key)
            while len(self._rows) > self._rows_max:
                self._rows.popitem(last=False)
        if not keys:
            return np.zeros((0, self.dimensions), np.float32)
        return np.stack([found[key] for key in keys])


def unit_vectors(embedder: Embedder, texts: Sequence[str]) -> "NDArray[np.float32]":
    """Ask an embedder and hold it to its contract: right shape, finite, of unit length.

    Vectors of another length are scaled (a zero vector stays zero: like nothing).

    Raises:
        InvalidData: the embedder gave another shape, or a number that is not finite.
    """
    import numpy as np

    vectors = np.asarray(embedder.embed(texts), dtype=np.float32)
    expected = (len(texts), embedder.dimensions)
    if vectors.shape != expected:
        raise InvalidData(
            f"embedder {embedder.name} gave vectors of shape {vectors.shape}, not {expected}",
            hint="embed() gives one row a text, of `dimensions` numbers",
        )
    if not np.isfinite(vectors).all():
        raise InvalidData(
            f"embedder {embedder.name} gave a vector with NaN or infinity",
            hint="embed() has to give finite numbers for any text",
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    scaled: NDArray[np.float32] = vectors / lengths
    return scaled


@functools.cache
def default_embedder() -> CachedEmbedder:
    """The embedder of a store that is given none: MiniLM behind a cache, one in a process.

    Making it is cheap: the model is loaded when the first text is embedded.

    >>> default_embedder().dimensions
    384
    """
    from perdure.memorizer.minilm import MiniLM

    return CachedEmbedder(MiniLM())
