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
"""How often a run is looked at anew because somebody wrote to its agent meanwhile."""


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
    for _ in range(ATTEMPTS - 1):
        try:
            return await _add(store, agent, events)
        except SequenceConflict:
            continue  # Somebody else wrote in between: look again at what is there.
    return await _add(store, agent, events)


async def _add(store: Store, agent: str, events: Sequence[NewEvent]) -> Added:
    body, ends = _numbered(agent, events)
    missing, sequence = await _missing(store.view(agent), body, ends)
    for first in range(0, len(missing), EVENTS_AT_ONCE):
        some = missing[first : first + EVENTS_AT_ONCE]
        # Expected: two imports at the same time must not add the same, or mix.
        answers = await store.emit_many(agent, some, expected_sequence=sequence)
        sequence = answers[-1].sequence
    return Added(len(missing), len(events) - len(missing))


def _numbered(agent: str, events: Sequence[NewEvent]) -> tuple[list[NewEvent], list[NewEvent]]:
    """The run's events with writer and sequence, and apart from them the one that ends its task.

    The end has a writer of its own, which counts the events before it: a longer version of the run
    has other events at its place, and another end.
    """
    writer = f"import:{agent}"
    ends = [event for event in events[-1:] if event.type == "task.finished"]
    body = events[: len(events) - len(ends)]
    return (
        [
            msgspec.structs.replace(event, writer=writer, writer_sequence=number)
            for number, event in enumerate(body, 1)
        ],
        [
            msgspec.structs.replace(
                event, writer=f"{writer}:end", writer_sequence=max(1, len(body))
            )
            for event in ends
        ],
    )


async def _missing(
    view: AgentView, body: Sequence[NewEvent], ends: Sequence[NewEvent]
) -> tuple[list[NewEvent], int]:
    """Which events of a run are not there yet, and the agent's last sequence."""
    try:
        last = await view.sequence()
    except NotFound:
        last = 0
    if last == 0:
        return [*body, *ends], 0
    writer = f"import:{view.name}"
    known, ended = 0, False
    async for event in view.events(last=last, lift=False):
        if event.writer == writer:
            if known < len(body) and not _same(event, body[known]):
                raise _other_run(view.name, event)
            known += 1
        elif event.writer == f"{writer}:end":
            for end in ends:
                if event.writer_sequence == end.writer_sequence:
                    if not _same(event, end):
                        raise _other_run(view.name, event)
                    ended = True
    if known == 0:
        raise AgentExists(
            f"agent {view.name} is there already, and was not imported",
            hint="choose another --namespace",
        )
    if known > len(body):
        return [], last  # What is there is a longer version of the run.
    return [*body[known:], *([] if ended else ends)], last


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
