"""What the recorder decides about an agent's records: a function of its stream and of them.

`asked` says what has to be looked up first, `decided` what is to be written and told. Neither
reads nor writes anything, so whoever decides, whenever, in however many steps, decides the same.

Invariants:
- A record at or before the stream's position was decided before: it is answered from what is
  stored, and never written again.
- What comes of a record is bounded (`buckets.ANSWER_BYTES_MAX`); one whose answer is larger leaves
  no trace but a dead letter.
- A write holds whole appends of one bucket; the streams between writes are those that any other
  division into steps would have had.
- Every record gets one entry, in the order of the records.
"""

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple, NoReturn

import msgspec

from perdure.errors import (
    AgentExists,
    EventTooLarge,
    InvalidData,
    PerdureError,
    Refused,
    SequenceConflict,
    Unreachable,
)
from perdure.kafka.journal import JOURNAL_BYTES, Entry, JournalRecord, Outcome, problem_of
from perdure.kafka.wire import Fork, Incoming
from perdure.model.event import Event, NewEvent, encode
from perdure.model.sequencing import Append, Head, Recorded, Verdict, decide
from perdure.model.timeline import Revert
from perdure.recorder import buckets
from perdure.recorder.buckets import BUCKET_BYTES, BUCKET_EVENTS, opened
from perdure.recorder.recordings import Row, Stream, Written, forked

WRITE_BYTES: Final = 1_000_000
"""Bytes of events after which a further write is begun."""

ENTRY_BYTES: Final = 40
"""What an entry of the journal takes beside its events, about."""

_REVERTED: Final = "agent.reverted"


class Work(NamedTuple):
    """A record that is to be decided, and its offset."""

    offset: int
    incoming: Incoming


class Asked(NamedTuple):
    """What has to be looked up before records are decided.

    `positions` are those of records that were decided before; `writers` those that the head
    doesn't name; `ids` and `numbers` those of events that may be stored already.
    """

    positions: Collection[int]
    writers: Collection[str]
    ids: Collection[str]


class Found(NamedTuple):
    """What was looked up: what `asked` names, and the events of writers' numbers."""

    written: dict[int, Written]
    lasts: dict[str, int]
    ids: dict[str, Event]
    numbers: dict[tuple[str, int], Event]


class Change(NamedTuple):
    """One write: the stream as it is stored, as it is after, and the rows that come."""

    before: Stream
    after: Stream
    rows: list[Row]


class Decided(NamedTuple):
    """What is to be written and told, each in order; and the stream after it.

    `letters` are the offsets of records that become dead letters, and why.
    """

    changes: list[Change]
    journal: list[JournalRecord]
    stream: Stream
    letters: dict[int, PerdureError]


class _Answer(NamedTuple):
    """What answers an append: the stored bytes of its events, and those that are new."""

    told: list[bytes]
    new: Sequence[Recorded]


def chunks(works: Sequence[Work]) -> Iterator[Sequence[Work]]:
    """Records that can be looked up together: a fork is the last of its chunk.

    What comes after a fork has its parent's history, which only a stream that is forked tells.
    """
    first = 0
    for end in [index for index, work in enumerate(works, 1) if work.incoming.kind == "fork"]:
        yield works[first:end]
        first = end
    if first < len(works):
        yield works[first:]


def asked(stream: Stream, works: Sequence[Work]) -> Asked:
    """What to look up of an agent before its records are decided, but for writers' numbers."""
    positions, writers, ids = [], set(), set()
    stored = stream.created or stream.parent is not None
    known = stream.head.writers
    for offset, incoming in works:
        append = incoming.append
        if offset <= stream.position:
            positions.append(offset)
        if not stored or not (stream.bucket or append.by_id):
            continue
        for event in append.events:
            writer = event.writer or append.writer
            # A stream in its first bucket has all its writers in the head.
            if stream.bucket and writer not in known:
                writers.add(writer)
            if append.by_id and event.id is not None:
                ids.add(event.id)
    return Asked(positions, writers, ids)


def asked_numbers(
    stream: Stream, works: Sequence[Work], lasts: dict[str, int]
) -> set[tuple[str, int]]:
    """Writers and their numbers that may be stored already: none above the writer's last one."""
    numbers = set()
    known = {**lasts, **stream.head.writers}
    for _, incoming in works:
        for event in incoming.append.events:
            writer, number = event.writer, event.writer_sequence
            if writer is not None and number is not None and number <= known.get(writer, 0):
                numbers.add((writer, number))
    return numbers


def decided(partition: int, stream: Stream, works: Sequence[Work], found: Found) -> Decided:
    """Decide records of one agent, in their order, at the end of its stream."""
    deciding = _Deciding(partition, stream, works[0].incoming, found)
    run: list[Work] = []
    for work in works:
        if work.offset <= stream.position:
            deciding.repeat(work)
        elif work.incoming.kind == "append" and not _reverts(work.incoming.append):
            run.append(work)
        else:
            deciding.run(run)
            run = []
            deciding.alone(work)
    deciding.run(run)
    return deciding.end()


class _Recall:
    """`model.sequencing.Recall` on what was looked up."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def by_id(self, agent: str, event_id: str) -> Event | None:  # noqa: ARG002 - found for one
        return self._found.ids.get(event_id)

    def by_writer(self, agent: str, writer: str, writer_sequence: int) -> Event | None:  # noqa: ARG002
        return self._found.numbers.get((writer, writer_sequence))

    def last_of(self, agent: str, writer: str) -> int:  # noqa: ARG002
        return self._found.lasts.get(writer, 0)


class _Deciding:
    """Records of one agent that are being decided: the stream as it moves, and what comes of it."""

    def __init__(self, partition: int, stream: Stream, first: Incoming, found: Found) -> None:
        self._partition = partition
        self._store = first.store
        self._found = found
        self._agent = stream.head.agent
        self._before = stream  # what is stored before the next change
        self._take(stream)
        self._known = {**found.lasts, **stream.head.writers}
        self._rows: list[Row] = []
        self._size = 0
        self._moved = False
        self._entries: list[Entry] = []
        self._entries_size = 0
        self._repeats = False
        self._recent: list[Row] = []
        self._changes: list[Change] = []
        self._journal: list[JournalRecord] = []
        self._letters: dict[int, PerdureError] = {}

    def _take(self, stream: Stream) -> None:
        """Go on from a stream."""
        self._stream = stream  # where the bucket began to be filled here; what moves is below
        self._head = stream.head
        self._position = stream.position
        self._events = stream.events
        self._bytes = stream.bytes
        self._writers = stream.head.writers.copy()
        self._reverts = stream.reverts

    def end(self) -> Decided:
        """Everything that came of the records."""
        self._cut()
        self._tell()
        return Decided(self._changes, self._journal, self._before, self._letters)

    def repeat(self, work: Work) -> None:
        """Answer a record that was decided before, from what is stored of it."""
        self._repeats = True
        offset, incoming = work
        before, stored = self._found.written.get(offset, Written(0, []))
        if incoming.kind == "claim":
            # The epoch it was given is told nowhere but in the journal, where it may be missing.
            self._refuse(offset, _again(self._agent))
        elif incoming.kind == "fork":
            if stored:
                self._add(offset, "forked", stored, epoch=1)
            else:
                self._refuse(offset, _taken(self._agent))
        elif len(stored) == len(incoming.append.events):
            self._add(offset, "recorded", stored)
        else:
            self._repeat_known(offset, incoming.append, before + len(stored))

    def _repeat_known(self, offset: int, append: Append, sequence: int) -> None:
        known = [self._known_at(append, event, sequence) for event in append.events]
        events = [event for event in known if event is not None]
        if len(events) == len(known):
            [answer] = _answers([append], Verdict([events], [], self._head))
            if isinstance(answer, _Answer):
                self._add(offset, "recorded", answer.told)
            else:
                self._put_aside(offset, answer)
            return
        # Nothing came of it. With which words is decided again, as far as the head still tells.
        [again] = _answers([append], self._verdict([append]))
        if isinstance(again, EventTooLarge):
            self._put_aside(offset, again)
        else:
            refused = again if isinstance(again, Refused) else _refused_before(append, self._head)
            self._refuse(offset, refused)

    def _known_at(self, append: Append, event: NewEvent, sequence: int) -> Event | None:
        """What answers an event when the stream is at a sequence: nothing that came later."""
        found = []
        if append.by_id and event.id is not None:
            found.append(self._found.ids.get(event.id))
        if event.writer is not None and event.writer_sequence is not None:
            found.append(self._found.numbers.get((event.writer, event.writer_sequence)))
        for known in found:
            if known is not None and (known.subject != self._agent or known.sequence <= sequence):
                return known
        return None

    def run(self, works: Sequence[Work]) -> None:
        """Decide appends that follow each other."""
        if not works:
            return
        self._begin_new()
        appends = [work.incoming.append for work in works]
        verdict = self._verdict(appends)
        answers = _answers(appends, verdict)
        if EventTooLarge not in map(type, answers):
            self._place(works, answers, verdict)
        elif len(works) == 1:
            self._put_aside(works[0].offset, _too_large(appends[0]))
        else:  # The others are decided as if it weren't there.
            for work in works:
                self.run([work])

    def alone(self, work: Work) -> None:
        """Decide a record that changes more than what events do: a claim, a fork, or undo."""
        self._begin_new()
        offset, incoming = work
        if incoming.kind == "claim":
            self._head = msgspec.structs.replace(self._head, epoch=self._head.epoch + 1)
            self._add(offset, "opened", epoch=self._head.epoch)
            self._position, self._moved = offset, True
        elif incoming.fork is not None:
            self._fork(work, incoming.fork)
        elif (error := _wrong_revert(incoming.append, self._head)) is not None:
            self._refuse(offset, error)
        else:
            self.run([work])

    def _fork(self, work: Work, fork: Fork) -> None:
        before = self._stream
        if before.created or self._moved:
            self._refuse(work.offset, _taken(self._agent))
            return
        self._take(forked(self._agent, fork.parent, fork.at, fork.chain))
        verdict = self._verdict([work.incoming.append])
        if isinstance(verdict.outcomes[0], Refused):
            self._take(before)
        self._place([work], _answers([work.incoming.append], verdict), verdict)

    def _verdict(self, appends: list[Append]) -> Verdict:
        for row in self._recent:
            # What was decided here is not stored yet: it is found as if it were.
            event = row.recorded.event
            self._found.numbers[event.writer, event.writer_sequence] = event
            self._found.ids[event.id] = event
        self._recent = []
        return decide(
            msgspec.structs.replace(self._head, writers=self._known),
            appends,
            _Recall(self._found),
            now=_NEVER,
            new_id=_named_already,
            version_of=_first_version,
        )

    def _place(
        self,
        works: Sequence[Work],
        answers: Sequence[_Answer | Refused | EventTooLarge],
        verdict: Verdict,
    ) -> None:
        """Put what was decided into entries and, bucket by bucket, into rows."""
        self._known = verdict.head.writers
        for (offset, incoming), answer in zip(works, answers, strict=True):
            if not isinstance(answer, _Answer):
                self._refuse(offset, answer)
                continue
            if incoming.kind == "fork":
                self._add(offset, "forked", answer.told, epoch=1)
            else:
                self._add(offset, "recorded", answer.told)
            if answer.new:
                self._place_rows(offset, answer.new)

    def _place_rows(self, offset: int, new: Sequence[Recorded]) -> None:
        """Put the events of one append into the bucket where they belong."""
        if self._events >= BUCKET_EVENTS or self._bytes >= BUCKET_BYTES:
            self._cut()
            self._take(opened(self._before))
        size = sum([len(recorded.data) for recorded in new])
        if self._rows and self._size + size > WRITE_BYTES:
            self._cut()
        time_max = self._head.time_max
        for recorded in new:
            event = recorded.event
            self._writers[event.writer] = event.writer_sequence
            if time_max is None or event.time > time_max:
                time_max = event.time
            if event.type == _REVERTED:
                self._reverts = (*self._reverts, Revert(event.sequence, _target(event.data)))
            row = Row(recorded, offset)
            self._rows.append(row)
            self._recent.append(row)
        last = new[-1]
        head = self._head
        self._head = Head(
            head.agent, last.event.sequence, head.epoch, last.chain, time_max, self._writers
        )
        self._position, self._moved = offset, True
        self._events += len(new)
        self._bytes += size
        self._size += size

    def _cut(self) -> None:
        """End a change: what comes after it is written after it."""
        if not self._moved:
            return
        head = msgspec.structs.replace(self._head, writers=self._writers.copy())
        after = msgspec.structs.replace(
            self._stream,
            head=head,
            position=self._position,
            events=self._events,
            bytes=self._bytes,
            reverts=self._reverts,
            created=True,
        )
        self._changes.append(Change(self._before, after, self._rows))
        self._before = self._stream = after
        self._rows, self._size, self._moved = [], 0, False

    def _put_aside(self, offset: int, error: PerdureError) -> None:
        self._letters[offset] = error
        self._add(offset, "dead-letter", error=error)

    def _refuse(self, offset: int, error: PerdureError) -> None:
        self._add(offset, "refused", error=error)

    def _add(
        self,
        offset: int,
        outcome: Outcome,
        events: Sequence[bytes] = (),
        *,
        epoch: int = 0,
        error: PerdureError | None = None,
    ) -> None:
        """Tell of a record, before the head moves with it."""
        size = ENTRY_BYTES + sum([len(data) for data in events])
        if self._entries and self._entries_size + size > JOURNAL_BYTES:
            self._tell()
        problem = None if error is None else problem_of(error)
        raws = [msgspec.Raw(data) for data in events]
        opened = outcome == "opened"
        self._entries.append(
            Entry(
                offset,
                outcome,
                raws,
                epoch,
                problem,
                self._head.sequence if opened else 0,
                self._head.chain.hex() if opened else "",
            )
        )
        self._entries_size += size

    def _begin_new(self) -> None:
        """What is told from here on is new: it comes with the head."""
        if self._repeats:
            self._tell()
            self._repeats = False

    def _tell(self) -> None:
        if not self._entries:
            return
        head, stream = self._head, self._stream
        self._journal.append(
            JournalRecord(
                self._store,
                self._agent,
                self._partition,
                self._entries,
                0 if self._repeats else head.sequence,
                0 if self._repeats else head.epoch,
                "" if self._repeats else head.chain.hex(),
                stream.parent,
                stream.forked_at,
            )
        )
        self._entries, self._entries_size = [], 0


_NEVER: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""In place of the time of deciding: events have one already, which is the record's."""


def _answers(
    appends: Sequence[Append], verdict: Verdict
) -> list[_Answer | Refused | EventTooLarge]:
    """What answers each append; EventTooLarge where that is more than can be told."""
    answers: list[_Answer | Refused | EventTooLarge] = []
    new, index = verdict.new, 0
    for append, outcome in zip(appends, verdict.outcomes, strict=True):
        if isinstance(outcome, Refused):
            answers.append(outcome)
            continue
        first, told, size = index, [], 0
        for event in outcome:
            if index < len(new) and new[index].event is event:
                data = new[index].data
                index += 1
            elif size <= buckets.ANSWER_BYTES_MAX:
                data = encode(event)
            else:
                continue
            told.append(data)
            size += len(data)
        if size > buckets.ANSWER_BYTES_MAX:
            answers.append(_too_large(append))
        else:
            answers.append(_Answer(told, new[first:index]))
    return answers


def _too_large(append: Append) -> EventTooLarge:
    return EventTooLarge(
        f"{len(append.events):,} events of {append.agent} are answered with more than "
        f"{buckets.ANSWER_BYTES_MAX:,} bytes: with larger ones that were recorded before",
        hint="divide them: events in several writes are recorded in the order of the writes",
    )


def _named_already() -> NoReturn:
    raise InvalidData("an event of the log has no id", hint="report this: decoding gives it one")


def _first_version(event_type: str) -> int:  # noqa: ARG001 - decoding gives every event a version
    return 1


def _reverts(append: Append) -> bool:
    return _REVERTED in [event.type for event in append.events]


def _wrong_revert(append: Append, head: Head) -> SequenceConflict | None:
    """What is wrong with an undo: it goes back to a sequence before its own."""
    for index, event in enumerate(append.events):
        to = _target(event.data)
        if event.type == _REVERTED and not 0 <= to <= head.sequence + index:
            return SequenceConflict(
                f"agent {append.agent} can't go back to {to}: it is at {head.sequence + index}",
                hint="undo with agent.revert(to=…)",
            )
    return None


def _target(data: object) -> int:
    """The sequence that an undo goes back to, -1 where it names none."""
    to = data.get("to") if isinstance(data, dict) else None
    return to if isinstance(to, int) else -1


def _again(agent: str) -> Unreachable:
    return Unreachable(
        f"{agent} was opened by this, but with which epoch was lost with a recorder that ended",
        hint="open it again",
    )


def _taken(agent: str) -> AgentExists:
    return AgentExists(f"there is an agent {agent} already", hint="choose another name")


def _refused_before(append: Append, head: Head) -> SequenceConflict:
    return SequenceConflict(
        f"a write to {append.agent} was refused when it was decided; it is at {head.sequence} now",
        hint="read what came in between and try again",
    )
