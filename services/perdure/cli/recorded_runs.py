"""Adding a recorded run to a store, any number of times.

Invariants:
- Adding a run again adds nothing; a longer version of it adds what is new, a shorter one nothing.
- Two different runs never become one agent: what is there already has to be the run's beginning.
- A run of up to `EVENTS_AT_ONCE` events is recorded whole or not at all; a longer one goes on where
  it stopped when it is added again.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from perdure.agent.store import Store
from perdure.agent.view import AgentView
from perdure.errors import AgentExists, NotFound, SequenceConflict
from perdure.model.event import Event, NewEvent

EVENTS_AT_ONCE: Final = 1_000
"""Events of one write."""
ATTEMPTS: Final = 5
"""How often a run is looked at anew because somebody else writes to its agent."""


class Added(msgspec.Struct, frozen=True):
    """What adding a run did: how many of its events are new, and how many were there already."""

    new: int
    present: int


async def add(store: Store, agent: str, events: Sequence[NewEvent]) -> Added:
    """Add a run's events (`model.runs.run_events`) to an agent of a store, without opening it.

    Raises:
        AgentExists: the agent is there, and not from this run; nothing was added.
        SequenceConflict: others keep writing to the agent.
    """
    view, writer = store.view(agent), f"import:{agent}"
    # No sequence of the writer: such a write is answered, not refused, when another import was
    # faster with it, and then both would count its events as new.
    written = [msgspec.structs.replace(event, writer=writer) for event in events]
    new = known_before = attempts = 0
    while True:
        known, sequence = await _known(view, writer, written)
        try:
            for first in range(known, len(written), EVENTS_AT_ONCE):
                some = written[first : first + EVENTS_AT_ONCE]
                answers = await store.emit_many(agent, some, expected_sequence=sequence)
                sequence = answers[-1].sequence
                new += len(some)
        except SequenceConflict:
            # Somebody else wrote in between: look again at what is there. Another import of the
            # run brings it forward; only others can keep it from ending.
            attempts = 1 if known > known_before else attempts + 1
            known_before = known
            if attempts == ATTEMPTS:
                raise
        else:
            return Added(new, len(events) - new)


async def _known(view: AgentView, writer: str, events: Sequence[NewEvent]) -> tuple[int, int]:
    """How many events of a run are there already, and the agent's last sequence."""
    try:
        last = await view.sequence()
    except NotFound:
        last = 0
    if last == 0:
        return 0, 0
    known = 0
    async for event in view.events(last=last, lift=False):
        if event.writer == writer:
            if known < len(events) and not _same(event, events[known]):
                raise _other_run(view.name, event)
            known += 1
    if known == 0:
        raise AgentExists(
            f"agent {view.name} is there already, and was not imported",
            hint="choose another --namespace",
        )
    return known, last


def _same(recorded: Event, event: NewEvent) -> bool:
    return (
        recorded.type == event.type
        and recorded.data == event.data
        and recorded.correlation_id == event.correlation_id
    )


def _other_run(agent: str, event: Event) -> AgentExists:
    return AgentExists(
        f"agent {agent} is there already, from another run: they differ at event {event.position}",
        hint="import this one with another --namespace",
    )
