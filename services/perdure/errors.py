"""Every error perdure raises, as one tree.

::

    PerdureError
    ├── InvalidInput              what the caller gave can't be accepted; nothing was written
    │   ├── InvalidName           an agent, event type, record key or checkpoint name
    │   ├── InvalidData           not JSON-able data, a wrong sequence, a time without zone
    │   ├── EventTooLarge         an event body over the limit
    │   └── NotCheckpointable     an object that a checkpoint can't hold
    ├── Refused                   a well-formed write that lost against another one
    │   ├── WriterFenced          a later opener owns the agent now
    │   ├── SequenceConflict      `expected_sequence` (or a writer's sequence) did not hold
    │   ├── RecordConflict        `expected_version` of a record did not hold
    │   └── AgentExists           a fork onto a name that is taken
    ├── NotFound                  an agent, sequence, record, memory or checkpoint that is not there
    ├── Incompatible              written by other code than this one can read
    │   ├── MissingUpcaster       an event version that no registered upcaster lifts
    │   └── UnsupportedFormat     a store or checkpoint of another format version
    ├── Corrupt                   stored bytes are not what was written
    └── Unavailable               the store can't serve now; old data is intact
        ├── StoreFull             no space left
        ├── StoreReadOnly         no right to write there
        ├── StoreBusy             another process holds the write lock for too long (retry helps)
        ├── StoreClosed           used after it was closed
        ├── Unreachable           an engine or service of a cluster does not answer (retry helps)
        └── ProjectionFailed      a user's projection or upcaster raised
"""


class PerdureError(Exception):
    """Base of all errors; `hint` says what to do next, `retriable` whether a retry can help.

    >>> try:
    ...     raise WriterFenced("agent airline/mia was opened again", hint="open it again")
    ... except PerdureError as error:
    ...     print(error)
    agent airline/mia was opened again (open it again)
    """

    retriable: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(PerdureError, ValueError):
    """What the caller gave can't be accepted; nothing was written."""


class InvalidName(InvalidInput):
    """The name of an agent, event type, record or checkpoint is not allowed."""


class InvalidData(InvalidInput):
    """Data that is not JSON-able, a sequence out of range, a time without zone."""


class EventTooLarge(InvalidInput):
    """The body of an event is over the limit: large objects belong into a checkpoint."""


class NotCheckpointable(InvalidInput):
    """An object holds something that a checkpoint can't hold; the message names its path."""


class Refused(PerdureError):
    """A well-formed write that lost against another one; nothing of it was recorded."""


class WriterFenced(Refused):
    """A later opener owns the agent now; this handle can't write any more."""


class SequenceConflict(Refused):
    """The stream is not where the writer expected it to be."""


class RecordConflict(Refused):
    """The record was changed since the version the writer expected."""


class AgentExists(Refused):
    """The name of a new agent is taken."""


class NotFound(PerdureError, LookupError):
    """An agent, sequence, record, memory or checkpoint that is not there."""


class Incompatible(PerdureError):
    """Written by other code than this one can read."""


class MissingUpcaster(Incompatible):
    """No registered upcaster lifts this version of an event type to the current one."""


class UnsupportedFormat(Incompatible):
    """A store or checkpoint of a format version that this code doesn't know."""


class Corrupt(PerdureError):
    """Stored bytes are not what was written; the message names what is damaged."""


class Unavailable(PerdureError):
    """The store can't serve the call now; what was acknowledged before is intact."""


class StoreFull(Unavailable):
    """No space is left where the store lives."""


class StoreReadOnly(Unavailable):
    """The store can't be written at this place."""


class StoreBusy(Unavailable):
    """Another process held the write lock for longer than the time limit."""

    retriable = True


class StoreClosed(Unavailable):
    """The store was used after it was closed."""


class Unreachable(Unavailable):
    """An engine or a service of a cluster did not answer, or could not do its part just now."""

    retriable = True


class ProjectionFailed(Unavailable):
    """A registered projection or upcaster raised; the message names it and the event."""
