"""What every agent of a store works with: the store's ports, and the user's own code."""

import weakref
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, get_args

from perdure.checkpointer.graph import Classes
from perdure.errors import InvalidData
from perdure.memorizer.embedder import Embedder
from perdure.memorizer.message_search import MessageSearch
from perdure.model.event import Event, NewEvent, checked_sequence
from perdure.model.projection import Projections
from perdure.model.sequencing import Append
from perdure.model.upcast import Upcasters
from perdure.ports import Ack, Backend

if TYPE_CHECKING:
    from perdure.agent.agent import Agent

ACKS: Final[tuple[str, ...]] = get_args(Ack)


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

    def append(
        self,
        agent: str,
        events: tuple[NewEvent, ...],
        *,
        epoch: int | None,
        expected_sequence: int | None,
        ack: Ack | None,
    ) -> Awaitable[list[Event]]:
        """Record events, one at least, that `event.prepared` has checked; see `EventLog.append`.

        A write with an expectation waits until it is known whether that holds.

        Raises:
            InvalidData: `expected_sequence` is no sequence, `ack` is no acknowledgement, or a
                version can't be read back here.
        """
        if ack is None:
            ack = self.backend.ack
        elif ack not in ACKS:
            raise InvalidData(f"ack is {ack!r}", hint=f"give one of {', '.join(ACKS)}")
        if expected_sequence is not None:
            checked_sequence("expected_sequence", expected_sequence)
            ack = "recorded"
        self.upcasters.check_readable(events)
        writer = self.backend.writer
        return self.backend.log.append(Append(agent, events, writer, epoch, expected_sequence), ack)
