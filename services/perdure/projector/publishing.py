"""What the projector publishes to `perdure.state`: the newest state of each agent that moved."""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from perdure.errors import NotFound, PerdureError, Unavailable
from perdure.kafka.journal import JournalRecord
from perdure.model.projection import DEFAULT
from perdure.projector.states import Answer, Source, States

STATE_BYTES_MAX: Final = 64 * 1024
"""A larger state is told by where it can be asked for."""


class Moved(NamedTuple):
    """An agent that has new events."""

    store: str
    agent: str


class StateRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of `perdure.state`: an agent's newest state, or where to ask for it.

    `chain` is the hash chain after `sequence`, in hexadecimal. `state` is left out where it is
    large or where it could not be folded (`error` says why); `location` is the path, of the gateway
    or a projector, that answers with it.
    """

    store: str
    agent: str
    sequence: int
    chain: str
    projection: str
    location: str
    state: msgspec.Raw | None = None
    error: str = ""


def moved(records: Iterable[JournalRecord]) -> list[Moved]:
    """The agents of which something was recorded, each once.

    >>> from perdure.kafka.journal import Entry
    >>> refused = JournalRecord("default", "airline/mia", 0, [Entry(1, "refused")])
    >>> forked = JournalRecord("default", "airline/twin", 0, [Entry(2, "forked")])
    >>> moved([refused, forked, forked])
    [Moved(store='default', agent='airline/twin')]
    """
    found = {
        Moved(record.store, record.agent): None
        for record in records
        if record.agent
        and any(entry.events or entry.outcome == "forked" for entry in record.entries)
    }
    return list(found)


async def state_record(
    states: States, source_of: Callable[[str], Source], agent: Moved
) -> StateRecord | None:
    """What to tell of an agent; None where there is no such agent any more.

    Raises:
        Unavailable: what it is read from does not answer; try again.
    """
    source = source_of(agent.store)
    location = f"/v1/stores/{agent.store}/agents/{agent.agent}/state"
    error = ""
    try:
        answer = await states.newest(source, agent.agent, bytes_max=STATE_BYTES_MAX)
    except NotFound:
        return None
    except PerdureError as failure:
        if isinstance(failure, Unavailable) and failure.retriable:
            raise
        # Of a state that can't be folded it is told that there is a newer one, and what is wrong.
        error = str(failure)
        head = await source.events.head(agent.agent)
        answer = Answer(agent.agent, head.sequence, b"", head.chain.hex())
    return StateRecord(
        agent.store,
        agent.agent,
        answer.sequence,
        answer.chain,
        DEFAULT.name,
        location,
        msgspec.Raw(answer.data) if answer.data else None,
        error,
    )


def encode(record: StateRecord) -> bytes:
    """The value of a record of `perdure.state`."""
    return msgspec.json.encode(record)
