"""The one place where it is decided what is recorded: deduplication, fencing, sequence and chain.

Everything here is a function of the head and of the writes in their order, so that whoever decides,
whenever, decides the same.

Invariants:
- A write is recorded whole or not at all.
- What is recorded already is answered with what was recorded, before anything else is asked.
- A write of an epoch older than the head's is refused; a shared contribution has no epoch.
- Sequences of a stream have no gap and no repetition; the chain of a stream is a function of its
  events' bytes, in their order.
"""

import datetime as dt
import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import msgspec

from perdure.errors import SequenceConflict, WriterFenced
from perdure.model.event import Event, NewEvent, encode

CHAIN_BYTES: Final = 32


class Head(msgspec.Struct, frozen=True):
    """Where an agent's stream stands.

    `chain` is 32 bytes; `time_max` the latest time of any event so far; `writers` the last sequence
    of each writer.
    """

    agent: str
    sequence: int
    epoch: int
    chain: bytes
    time_max: dt.datetime | None
    writers: dict[str, int]


class Append(msgspec.Struct, frozen=True):
    """One write: events of one agent that are recorded together or not at all.

    `writer` is who writes, where an event doesn't say; `epoch` is None for a shared contribution;
    `expected_sequence` is what the stream's last sequence must be, where the writer cares.
    """

    agent: str
    events: tuple[NewEvent, ...]
    writer: str
    epoch: int | None = None
    expected_sequence: int | None = None


class Recorded(NamedTuple):
    """An event, the bytes that are stored of it, and the stream's chain after it."""

    event: Event
    data: bytes
    chain: bytes


class Verdict(NamedTuple):
    """What became of a write: an answer for each of its events, what is new, and the head after."""

    answers: list[Event]
    new: list[Recorded]
    head: Head


class Recall(Protocol):
    """How the events that are recorded already are found; both give None where there is none."""

    def by_id(self, agent: str, event_id: str) -> Event | None:
        """The agent's event of this id."""
        ...

    def by_writer(self, agent: str, writer: str, writer_sequence: int) -> Event | None:
        """The agent's event that this writer gave this number."""
        ...


def first_chain(agent: str) -> bytes:
    """The chain of an agent before its first event.

    >>> len(first_chain("airline/mia"))
    32
    """
    return hashlib.sha256(f"perdure:1:{agent}".encode()).digest()


def link(chain: bytes, data: bytes) -> bytes:
    """The chain after one more event: SHA-256 of the chain before and the event's stored bytes."""
    return hashlib.sha256(chain + data).digest()


def decide(
    head: Head,
    append: Append,
    recorded: Recall,
    *,
    now: dt.datetime,
    new_id: Callable[[], str],
    version_of: Callable[[str], int],
) -> Verdict:
    """Decide one write against the head.

    Raises:
        WriterFenced: a later opener owns the agent.
        SequenceConflict: the stream is not at `expected_sequence`, or a writer's sequence lies
            below its last one and is not recorded.
    """
    answers: list[Event | None] = [
        _already(head, append.agent, event, recorded) for event in append.events
    ]
    if append.events and all(answers):
        return Verdict([answer for answer in answers if answer], [], head)
    _check(head, append)
    sequence, chain, time_max = head.sequence, head.chain, head.time_max
    writers = head.writers
    counted: dict[str, int] = {}
    within: dict[str, Event] = {}
    new: list[Recorded] = []
    for index, draft in enumerate(append.events):
        if answers[index] is not None:
            continue
        if draft.id is not None and draft.id in within:
            answers[index] = within[draft.id]
            continue
        writer = append.writer if draft.writer is None else draft.writer
        last = counted.get(writer) or writers.get(writer, 0)
        writer_sequence = last + 1 if draft.writer_sequence is None else draft.writer_sequence
        if writer_sequence <= last:
            raise SequenceConflict(
                f"writer {writer} gave {append.agent} its sequence {writer_sequence} after {last}",
                hint="a writer counts its events up; give each the next number",
            )
        sequence += 1
        counted[writer] = writer_sequence
        time = now if draft.time is None else draft.time
        event = Event(
            id=new_id() if draft.id is None else draft.id,
            type=draft.type,
            subject=append.agent,
            source=f"/{append.agent}" if draft.source is None else draft.source,
            sequence=sequence,
            time=time,
            writer=writer,
            writer_sequence=writer_sequence,
            epoch=append.epoch or 0,
            version=version_of(draft.type) if draft.version is None else draft.version,
            correlation_id=draft.correlation_id,
            causation_id=draft.causation_id,
            traceparent=draft.traceparent,
            expected_sequence=append.expected_sequence,
            key_id=draft.key_id,
            data=draft.data,  # type: ignore[arg-type]  # a copy made by event.prepared: JSON
        )
        data = encode(event)
        chain = link(chain, data)
        if time_max is None or time > time_max:
            time_max = time
        if draft.id is not None:
            within[draft.id] = event
        answers[index] = event
        new.append(Recorded(event, data, chain))
    after = Head(append.agent, sequence, head.epoch, chain, time_max, {**writers, **counted})
    return Verdict([answer for answer in answers if answer is not None], new, after)


def _already(head: Head, agent: str, draft: NewEvent, recorded: Recall) -> Event | None:
    """The event that this draft was recorded as before, if it was."""
    if draft.id is not None:
        found = recorded.by_id(agent, draft.id)
        if found is not None:
            return found
    if (
        draft.writer is not None
        and draft.writer_sequence is not None
        and draft.writer_sequence <= head.writers.get(draft.writer, 0)
    ):
        return recorded.by_writer(agent, draft.writer, draft.writer_sequence)
    return None


def _check(head: Head, append: Append) -> None:
    if append.epoch is not None and append.epoch != head.epoch:
        raise WriterFenced(
            f"agent {append.agent} was opened again with epoch {head.epoch}; "
            f"this writer has epoch {append.epoch}",
            hint="another process goes on with it; open the agent again to take it back",
        )
    if append.expected_sequence is not None and append.expected_sequence != head.sequence:
        raise SequenceConflict(
            f"agent {append.agent} is at sequence {head.sequence}, "
            f"not at the expected {append.expected_sequence}",
            hint="read what came in between and try again",
        )
