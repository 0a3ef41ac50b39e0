"""Which embedder a cluster's services use, by its name in the settings."""

import functools
import importlib

from perdure.errors import InvalidInput
from perdure.memorizer.embedder import CachedEmbedder, Embedder, default_embedder


@functools.cache
def chosen_embedder(name: str) -> Embedder:
    """The embedder that `MODULE:NAME` is or makes; the default for an empty name.

    Raises:
        InvalidInput: the module can't be imported, or there is no embedder of that name in it.

    >>> chosen_embedder("perdure.memorizer.minilm:MiniLM").dimensions
    384
    >>> chosen_embedder("perdure.memorizer.minilm:Nobody")
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidInput: embedder 'perdure.memorizer.minilm:Nobody' can't be had: ...
    """
    if not name:
        return default_embedder()
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        embedder = found() if callable(found) else found
        known = isinstance(embedder.name, str) and isinstance(embedder.dimensions, int)
    except Exception as error:  # whatever a user's module raises
        raise _wrong(name, repr(error)) from error
    if not known or not callable(getattr(embedder, "embed", None)):
        raise _wrong(name, "it has not the three members of an Embedder")
    return embedder if isinstance(embedder, CachedEmbedder) else CachedEmbedder(embedder)


def _wrong(name: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"embedder {name!r} can't be had: {reason}",
        hint="name it MODULE:NAME, in a module that the services can import",
    )
