"""Records of the journal: what became of each record of the topic of events.

The recorder writes them into the partition with the number of the events' partition, after what
they tell is in the tables. Each record is about one agent, and whoever reads it knows the agent's
events without a table. Duplicates are possible, and late copies of a recorder that was held up:
per agent, the sequences tell which are new.

Invariants:
- Every record of the topic of events gets an entry, duplicates and dead letters included.
- Entries of an agent follow its stream: the sequences of first copies are contiguous.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from perdure import errors
from perdure.errors import Corrupt, PerdureError, Unavailable
from perdure.model.event import Event
from perdure.model.event import decode as decode_event

JOURNAL_BYTES: Final = 1_000_000
"""Bytes of events after which a further record is begun."""

Outcome: TypeAlias = Literal["recorded", "refused", "opened", "forked", "dead-letter", "switched"]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a write was refused: the name of a class of `perdure.errors`, and what it says."""

    name: str
    message: str
    hint: str = ""

    def error(self) -> PerdureError:
        """The error, as it is raised where the write came from.

        >>> Problem("WriterFenced", "agent airline/mia was opened again").error()
        WriterFenced('agent airline/mia was opened again', '')
        """
        kind = getattr(errors, self.name, None)
        if not (isinstance(kind, type) and issubclass(kind, PerdureError)):
            return Unavailable(f"{self.name}: {self.message}", hint=self.hint)
        return kind(self.message, hint=self.hint)


def problem_of(error: PerdureError) -> Problem:
    """What the journal tells of an error."""
    return Problem(type(error).__name__, error.message, error.hint)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the record of events at `offset`.

    `recorded`     `events` answer it, in their order: new ones, or those that were known already
    `refused`      nothing of it was recorded; `error` says why
    `opened`       a claim: `epoch` is the one it was given, at `sequence` and `chain` (hexadecimal)
    `forked`       the agent was created as a fork; `events` is its first event, `epoch` its epoch
    `dead-letter`  it could not be recorded; `error` says why
    `switched`     the partition's tables are of `generation` from here on
    """

    offset: int
    outcome: Outcome
    events: Sequence[msgspec.Raw] = ()
    epoch: int = 0
    error: Problem | None = None
    sequence: int = 0
    chain: str = ""
    generation: int = 0

    def answers(self) -> list[Event]:
        """The events that answer the write.

        Raises:
            PerdureError: it was refused, as the class that says why.
            Corrupt: the entry holds something else than events.
        """
        if self.error is not None:
            raise self.error.error()
        return [decode_event(raw) for raw in self.events]


class JournalRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of consecutive records of one agent, and its head after them.

    `partition` is the number of both the events' partition and this record's; `chain` is in
    hexadecimal, and empty where `entries` tell again what was told before: the head is not theirs
    then. Every record of the events' partition up to offset `through` has an entry in this
    record or one before it in the journal's partition, whatever its agent; -1 where that is not
    known. Records that name no agent are told with an empty `agent`.
    """

    store: str
    agent: str
    partition: int
    entries: Sequence[Entry]
    sequence: int = 0
    epoch: int = 0
    chain: str = ""
    parent: str | None = None
    forked_at: int = 0
    through: int = -1

    @property
    def switched(self) -> bool:
        """Whether it tells that the partition's tables are of another generation."""
        return any(entry.outcome == "switched" for entry in self.entries)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JournalRecord)


def encode(record: JournalRecord) -> bytes:
    """The value of a journal record."""
    return _encoder.encode(record)


def decode(value: bytes | None) -> JournalRecord:
    """A journal record from its value.

    Raises:
        Corrupt: the value is none.

    >>> decode(encode(JournalRecord("default", "airline/mia", 3, [Entry(17, "recorded")]))).entries
    [Entry(offset=17, outcome='recorded', events=(), epoch=0, error=None, sequence=0, ...)]
    """
    try:
        return _decoder.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"a record of the journal is damaged: {error}") from error
