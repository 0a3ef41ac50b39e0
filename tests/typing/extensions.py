"""What users register and pass in: it has to pass mypy --strict as it stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import perdure
from perdure.model.event import JSON


def nothing() -> int:
    """The state before the first event."""
    return 0


@perdure.projection("spent", initial=nothing)
def spent(state: int, event: perdure.Event) -> int:
    """A projection of a typed state."""
    return state + 1 if event.type == "paid" else state


@perdure.projection("counts")
def counts(state: dict[str, int], event: perdure.Event) -> dict[str, int]:
    """A projection whose state starts as an empty dict."""
    return {**state, event.type: state.get(event.type, 0) + 1}


@perdure.upcaster("order.placed", 1, 2)
def with_currency(data: dict[str, JSON]) -> JSON:
    """An upcaster from data to data."""
    return {**data, "currency": "EUR"}


@perdure.checkpointable
@dataclass
class Policy:
    """A class that checkpoints may hold, still known as itself."""

    weights: list[float]


class Constant:
    """An embedder is whatever has these members."""

    name = "constant"
    dimensions = 2

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The same vector for every text."""
        return np.ones((len(texts), 2), np.float32)


policy: Policy = Policy([0.5])
embedder: perdure.Embedder = Constant()
total: int = spent(0, perdure.Event.__new__(perdure.Event))


def embedded() -> perdure.SyncStore:
    """Both ways to connect take an embedder."""
    perdure.connect(embedder=Constant())
    return perdure.connect_sync(embedder=Constant())
