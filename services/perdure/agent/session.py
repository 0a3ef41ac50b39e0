"""What every agent of a store works with: the store's ports, and the user's own code."""

from dataclasses import dataclass

from perdure.checkpointer.graph import Classes
from perdure.memorizer.embedder import Embedder
from perdure.memorizer.message_search import MessageSearch
from perdure.model.projection import Projections
from perdure.model.upcast import Upcasters
from perdure.ports import Backend


@dataclass(frozen=True, slots=True)
class Session:
    """A connection: the ports that `connect` chose, and what reads and writes through them."""

    backend: Backend
    embedder: Embedder
    messages: MessageSearch
    projections: Projections
    upcasters: Upcasters
    classes: Classes
