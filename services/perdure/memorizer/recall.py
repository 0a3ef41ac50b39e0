"""Recall: embed what isn't yet, embed the query, search.

Invariants:
- No model runs on the event loop's thread.
- Storing a memory never waits for its embedding: what a crash left without a vector is embedded by
  the next recall that sees it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from perdure.errors import InvalidData
from perdure.memorizer.embedder import Embedder, unit_vectors
from perdure.memorizer.memory import (
    Embedded,
    Filter,
    Hit,
    Memory,
    MemoryIndex,
    checked_k,
)
from perdure.memorizer.windows import windows
from perdure.model.timeline import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH_MEMORIES: Final = 64
"""How many memories are embedded, and then stored in one transaction, at a time."""


async def recall(
    index: MemoryIndex,
    embedder: Embedder,
    spans: Sequence[Span],
    query: str,
    *,
    k: int = 5,
    filter: Filter | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Hit]:
    """The `k` memories visible in `spans` that fit the query best, by meaning and by word.

    `progress` is told how many memories were embedded for it.

    Raises:
        InvalidData: the query is no text or blank, `k` is not from 1 to 1000.
    """
    query = checked_text("query", query)
    k = checked_k(k)
    await memorize(index, embedder, spans, progress=progress)
    (vector,) = await asyncio.to_thread(unit_vectors, embedder, [query])
    return await index.search(spans, query, vector, embedder.name, k=k, filter=filter)


async def memorize(
    index: MemoryIndex,
    embedder: Embedder,
    spans: Sequence[Span],
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Embed the memories in `spans` that have no vector of `embedder` yet; how many that were.

    Safe to stop at any point and to run twice at once. `progress` is told how many are done.
    """
    done = 0
    while pending := await index.unembedded(spans, embedder.name, BATCH_MEMORIES):
        await index.add_vectors(
            embedder.name, await asyncio.to_thread(_embedded, embedder, pending)
        )
        done += len(pending)
        if progress is not None:
            progress(done)
    return done


def checked_text(what: str, text: object) -> str:
    """A text to remember or to ask for: any that isn't blank.

    Raises:
        InvalidData: it is no text, or blank.

    >>> checked_text("query", " ")
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidData: query is blank (give some text)
    """
    if not isinstance(text, str):
        raise InvalidData(f"{what} is of type {type(text).__name__}", hint="give some text")
    if not text.strip():
        raise InvalidData(f"{what} is blank", hint="give some text")
    return text


def _embedded(embedder: Embedder, pending: Sequence[Memory]) -> list[Embedded]:
    """The vectors of each memory, every distinct piece of text embedded once."""
    pieces = [windows(memory.text) for memory in pending]
    distinct = list(dict.fromkeys(piece for each in pieces for piece in each))
    rows = {piece: row for row, piece in enumerate(distinct)}
    vectors = _embed_bounded(embedder, distinct)
    return [
        Embedded(memory.agent, memory.sequence, vectors[[rows[piece] for piece in each]])
        for memory, each in zip(pending, pieces, strict=True)
    ]


PIECES_AT_ONCE: Final = 256
"""The most texts that an embedder is given in one call."""


def _embed_bounded(embedder: Embedder, texts: Sequence[str]) -> "NDArray[np.float32]":
    import numpy as np

    return np.concatenate(
        [
            unit_vectors(embedder, texts[first : first + PIECES_AT_ONCE])
            for first in range(0, len(texts), PIECES_AT_ONCE)
        ]
    )
