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
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from perdure.errors import Refused, SequenceConflict, WriterFenced
from perdure.model.event import Event, NewEvent, encode

CHAIN_BYTES: Final = 32


class Head(msgspec.Struct, frozen=True):
    """Where an agent's stream stands.

    `chain` is 32 bytes; `time_max` the latest time of any event so far; `writers` the last sequence
    of those who wrote lately. Of all others `Recall.last_of` knows it: each process is a writer of
    its own, and an agent may be opened by a million of them.
    """

    agent: str
    sequence: int
    epoch: int
    chain: bytes
    time_max: dt.datetime | None
    writers: dict[str, int]


class Append(msgspec.Struct, frozen=True, gc=False):
    """One write: events of one agent that are recorded together or not at all.

    `writer` is who writes, where an event doesn't say; `epoch` is None for a shared contribution;
    `expected_sequence` is what the stream's last sequence must be, where the writer cares. `by_id`
    says that an id that is given identifies its event; else only a writer's number does, and the
    id is a name that nobody looks for.
    """

    agent: str
    events: tuple[NewEvent, ...]
    writer: str
    epoch: int | None = None
    expected_sequence: int | None = None
    by_id: bool = True


class Recorded(NamedTuple):
    """An event, the bytes that are stored of it, and the stream's chain after it."""

    event: Event
    data: bytes
    chain: bytes


class Verdict(NamedTuple):
    """What became of writes: of each its answers or why it was refused; and the head after."""

    outcomes: list[list[Event] | Refused]
    new: list[Recorded]
    head: Head


class Recall(Protocol):
    """How the events that are recorded already are found; None where there is none."""

    def by_id(self, agent: str, event_id: str) -> Event | None:
        """The agent's event of this id."""
        ...

    def by_writer(self, agent: str, writer: str, writer_sequence: int) -> Event | None:
        """The agent's event that this writer gave this number."""
        ...

    def last_of(self, agent: str, writer: str) -> int:
        """The last sequence of a writer that the head doesn't name; 0 where it has written none."""
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
    appends: Sequence[Append],
    recorded: Recall,
    *,
    now: dt.datetime,
    new_id: Callable[[], str],
    version_of: Callable[[str], int],
) -> Verdict:
    """Decide writes to one agent, in their order, against its head.

    A write that is refused leaves no trace, and the ones after it are decided as if it weren't
    there. Outcomes may be `WriterFenced` (a later opener owns the agent) or `SequenceConflict` (the
    stream is not at `expected_sequence`, or a writer's sequence lies below its last one and is not
    recorded).
    """
    decision = _Decision(head, recorded, now, new_id, version_of)
    outcomes: list[list[Event] | Refused] = []
    for append in appends:
        try:
            outcomes.append(decision.append(append))
        except Refused as error:
            outcomes.append(error)
    return Verdict(outcomes, decision.new, decision.head())


class _Decision:
    """Writes that are being decided: the head as it moves, and what is new."""

    def __init__(
        self,
        head: Head,
        recorded: Recall,
        now: dt.datetime,
        new_id: Callable[[], str],
        version_of: Callable[[str], int],
    ) -> None:
        self.new: list[Recorded] = []
        self._before = head
        self._recorded = recorded
        self._now = now
        self._new_id = new_id
        self._version_of = version_of
        self._sequence = head.sequence
        self._chain = head.chain
        self._time_max = head.time_max
        self._writers = head.writers.copy()
        self._given: dict[str, Event] = {}
        """New events whose id was given, by it."""
        self._counted: dict[tuple[str, int], Event] = {}
        """New events, by writer and the writer's sequence."""

    def head(self) -> Head:
        """The head after what was decided."""
        before = self._before
        return Head(
            before.agent, self._sequence, before.epoch, self._chain, self._time_max, self._writers
        )

    def append(self, append: Append) -> list[Event]:
        """Decide one write.

        Raises:
            Refused: see `decide`.
        """
        for draft in append.events:
            if not (draft.id is None and draft.writer is None and draft.writer_sequence is None):
                break
        else:  # Nothing is named that could be there already: most writes are such.
            self._check(append)
            last = self._last(append.writer)
            return [
                self._record(append, draft, append.writer, number)
                for number, draft in enumerate(append.events, last + 1)
            ]
        if len(append.events) == 1 and not append.by_id:
            [draft] = append.events
            writer, number = draft.writer, draft.writer_sequence
            if writer is not None and number is not None and number > self._last(writer):
                # A writer that counts on: what follows would find the same, in twice the time.
                self._check(append)
                return [self._record(append, draft, writer, number)]
        known = [self._known(append, draft) for draft in append.events]
        if append.events and None not in known:
            return [event for event in known if event is not None]
        self._check(append)
        numbers = self._numbered(append, known)
        return [
            found or self._in_this_commit(append, draft) or self._record(append, draft, *number)
            for found, draft, number in zip(known, append.events, numbers, strict=True)
        ]

    def _last(self, writer: str) -> int:
        """The last sequence of a writer, 0 before its first."""
        last = self._writers.get(writer)
        if last is None:
            last = self._writers[writer] = self._recorded.last_of(self._before.agent, writer)
        return last

    def _known(self, append: Append, draft: NewEvent) -> Event | None:
        """The event that this draft was recorded as before, if it was."""
        event_id = draft.id if append.by_id else None
        agent, writer, number = append.agent, draft.writer, draft.writer_sequence
        if event_id is None and number is None:
            return None
        found = self._in_this_commit(append, draft)
        if found is None and event_id is not None:
            found = self._recorded.by_id(agent, event_id)
        if found is None and writer is not None and number is not None:
            if number > self._last(writer):
                return None
            found = self._recorded.by_writer(agent, writer, number)
        return found

    def _in_this_commit(self, append: Append, draft: NewEvent) -> Event | None:
        found = None
        if draft.id is not None and append.by_id:
            found = self._given.get(draft.id)
        if found is None and draft.writer is not None and draft.writer_sequence is not None:
            found = self._counted.get((draft.writer, draft.writer_sequence))
        return found

    def _check(self, append: Append) -> None:
        epoch, expected = self._before.epoch, append.expected_sequence
        if append.epoch is not None and append.epoch != epoch:
            raise WriterFenced(
                f"agent {append.agent} was opened again with epoch {epoch}; "
                f"this writer has epoch {append.epoch}",
                hint="who opened it last goes on with it; open the agent again to take it back",
            )
        if expected is not None and expected != self._sequence:
            raise SequenceConflict(
                f"agent {append.agent} is at sequence {self._sequence}, "
                f"not at the expected {expected}",
                hint="read what came in between and try again",
            )

    def _numbered(self, append: Append, known: Sequence[Event | None]) -> list[tuple[str, int]]:
        """Writer and writer's sequence of each draft; all are checked before one is recorded."""
        numbers = []
        counted: dict[str, int] = {}
        given: set[object] = set()
        for draft, found in zip(append.events, known, strict=True):
            writer = append.writer if draft.writer is None else draft.writer
            last = counted.get(writer) or self._last(writer)
            number = draft.writer_sequence
            event_id = draft.id if append.by_id else None
            again = found is not None or event_id in given or (writer, number) in given
            if number is None:
                number = last + 1
            elif number <= last and not again:
                raise SequenceConflict(
                    f"writer {writer} gave {append.agent} its sequence {number} after {last}",
                    hint="a writer counts its events up; give each the next number",
                )
            if not again:
                counted[writer] = number
                given.add((writer, number))
                if event_id is not None:
                    given.add(event_id)
            numbers.append((writer, number))
        return numbers

    def _record(self, append: Append, draft: NewEvent, writer: str, number: int) -> Event:
        self._sequence += 1
        self._writers[writer] = number
        time = self._now if draft.time is None else draft.time
        event = Event(
            id=draft.id or self._new_id(),
            type=draft.type,
            subject=append.agent,
            source=draft.source or f"/{append.agent}",
            sequence=self._sequence,
            time=time,
            writer=writer,
            writer_sequence=number,
            epoch=append.epoch or 0,
            data=draft.data,  # type: ignore[arg-type]  # a copy made by event.prepared: JSON
        )
        version = draft.version or self._version_of(draft.type)
        rare = (draft.correlation_id, draft.causation_id, draft.traceparent, draft.key_id)
        if version != 1 or append.expected_sequence is not None or rare != _NONE_OF_THEM:
            # Apart, because giving all of them every time takes four times as long.
            event = msgspec.structs.replace(
                event,
                version=version,
                correlation_id=draft.correlation_id,
                causation_id=draft.causation_id,
                traceparent=draft.traceparent,
                expected_sequence=append.expected_sequence,
                key_id=draft.key_id,
            )
        data = encode(event)
        self._chain = link(self._chain, data)
        if self._time_max is None or time > self._time_max:
            self._time_max = time
        self.new.append(Recorded(event, data, self._chain))
        if draft.id is not None:
            self._given[draft.id] = event
        self._counted[writer, number] = event
        return event


_NONE_OF_THEM: Final = (None, None, None, None)
