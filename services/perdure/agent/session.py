"""What every agent of a store works with: the store's ports, and the user's own code."""

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perdure.checkpointer.graph import Classes
from perdure.memorizer.embedder import Embedder
from perdure.memorizer.message_search import MessageSearch
from perdure.model.projection import Projections
from perdure.model.upcast import Upcasters
from perdure.ports import Backend

if TYPE_CHECKING:
    from perdure.agent.agent import Agent


@dataclass(frozen=True, slots=True)
class Session:
    """A connection: the ports that `connect` chose, and what reads and writes through them."""

    backend: Backend
    embedder: Embedder
    messages: MessageSearch
    projections: Projections
    upcasters: Upcasters
    classes: Classes
    opened: "weakref.WeakSet[Agent]" = field(default_factory=weakref.WeakSet)
    """The agents that are open for writing; closing the store closes them."""
