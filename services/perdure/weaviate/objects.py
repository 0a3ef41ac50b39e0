"""Memories and forgettings as objects of Weaviate, and back.

Invariants:
- Ids are functions of store, agent, sequence, part and embedder: writing again replaces.
- Whatever data a foreign event carries, it is a memory, a forgetting, or passed over; never an
  error.
"""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from perdure.errors import Corrupt
from perdure.memorizer.memory import Memory
from perdure.model.event import JSON, NUMBER_MAX, Event
from perdure.weaviate.facts import facts_of
from perdure.weaviate.session import Row
from perdure.weaviate.terms import text_terms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEMORY: Final = "memory"
FORGETTING: Final = "forgetting"
MARK: Final = "mark"

NEVER: Final = NUMBER_MAX
"""`until` of what its own agent never forgot."""

TYPES: Final = ("memory.stored", "memory.forgotten")
"""The types of events that the index is made of."""

READ: Final = ("agent", "sequence", "event", "time", "text", "source", "context", "metadata")
"""The properties that a memory is made of."""

_SPACE: Final = uuid.UUID("6f1d2c52-6d5c-5e0c-9a77-6f4b8e0b6a55")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)


class Forgetting(NamedTuple):
    """A `memory.forgotten` event: where it stands, and the id of the memory."""

    sequence: int
    memory: str


def understood(event: Event) -> Memory | Forgetting | None:
    """What an event says to the index; None where it is no memory and no forgetting.

    >>> event = Event(id="e", type="memory.forgotten", subject="a/b", source="/", sequence=7,
    ...               time=_EPOCH, writer="w", writer_sequence=7, data={"id": "m-1"})
    >>> understood(event)
    Forgetting(sequence=7, memory='m-1')
    """
    data = event.data
    if not isinstance(data, dict):
        return None
    if event.type == "memory.forgotten" and isinstance(forgets := data.get("id"), str):
        return Forgetting(event.sequence, _storable(forgets))
    if event.type == "memory.stored" and isinstance(text := data.get("text"), str):
        source = data.get("source")
        return Memory(
            id=_storable(event.id),
            agent=event.subject,
            sequence=event.sequence,
            time=event.time,
            text=_storable(text),
            source=_storable(source) if isinstance(source, str) else None,
            context=_object(data.get("context")),
            metadata=_object(data.get("metadata")),
        )
    return None


class Ids:
    """The ids of one store's objects in the collection of one embedder."""

    def __init__(self, store: str, embedder: str) -> None:
        self._store = store
        self._embedder = embedder

    def memory(self, agent: str, sequence: int, part: int = 0) -> uuid.UUID:
        """Of a window of a memory."""
        return self._of(MEMORY, agent, sequence, part)

    def forgetting(self, agent: str, sequence: int) -> uuid.UUID:
        """Of a forgetting."""
        return self._of(FORGETTING, agent, sequence)

    def mark(self, agent: str) -> uuid.UUID:
        """Of an agent's mark."""
        return self._of(MARK, agent)

    def _of(self, *parts: str | int) -> uuid.UUID:
        name = msgspec.json.encode([self._store, self._embedder, *parts]).decode()
        return uuid.uuid5(_SPACE, name)


def memory_rows(
    ids: Ids, memory: Memory, vectors: "NDArray[np.float32] | None", until: int
) -> list[Row]:
    """A memory's objects: one for each of its vectors, part 0 last and with the whole text.

    So part 0 says that all are there. Without vectors part 0 stands alone, to be found by words.
    """
    parts = 0 if vectors is None else len(vectors)
    shared: dict[str, object] = {
        "kind": MEMORY,
        "agent": memory.agent,
        "sequence": memory.sequence,
        "event": memory.id,
        "time": memory.time.isoformat(),
        "microseconds": microseconds(memory.time),
        "until": until,
        "facts": facts_of(memory),
    }
    rows = []
    for part in range(max(parts, 1))[::-1]:
        properties = shared | {"part": part}
        if part == 0:
            properties |= {
                "parts": parts,
                "text": memory.text,
                "source": memory.source,
                "context": msgspec.json.encode(memory.context).decode(),
                "metadata": msgspec.json.encode(memory.metadata).decode(),
                "terms": text_terms(memory.text),
            }
        rows.append(
            Row(
                uuid=ids.memory(memory.agent, memory.sequence, part),
                properties={name: value for name, value in properties.items() if value is not None},
                vector=None if vectors is None else vectors[part].tolist(),
            )
        )
    return rows


def forgetting_row(ids: Ids, agent: str, forgetting: Forgetting) -> Row:
    """The object of a forgetting."""
    return Row(
        uuid=ids.forgetting(agent, forgetting.sequence),
        properties={
            "kind": FORGETTING,
            "agent": agent,
            "sequence": forgetting.sequence,
            "forgets": forgetting.memory,
        },
    )


def mark_row(ids: Ids, agent: str, through: int) -> Row:
    """The object that says up to where all memory events of an agent are in."""
    return Row(
        uuid=ids.mark(agent),
        properties={"kind": MARK, "agent": agent, "sequence": through},
    )


def memory_from(properties: Mapping[str, Any], *, until: int | None = None) -> Memory:
    """A memory from the properties `READ` of its part 0."""
    return Memory(
        id=str(properties["event"]),
        agent=str(properties["agent"]),
        sequence=number(properties["sequence"]),
        time=dt.datetime.fromisoformat(properties["time"]),
        text=str(properties.get("text") or ""),
        source=properties.get("source"),
        context=msgspec.json.decode(properties.get("context") or "{}"),
        metadata=msgspec.json.decode(properties.get("metadata") or "{}"),
        until=until,
    )


def number(value: object) -> int:
    """A whole number from a property.

    Raises:
        Corrupt: it is none.
    """
    if isinstance(value, int | float) and value == int(value):
        return int(value)
    raise Corrupt(
        f"a property of an object in Weaviate is {value!r}, not a whole number",
        hint="drop the collection: it is made again from the events",
    )


def microseconds(time: dt.datetime) -> int:
    """A time as microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def _storable(text: str) -> str:
    """A text as protocol buffers can hold it: lone surrogates become `?`."""
    return text.encode("utf-8", "replace").decode()


def _object(data: JSON) -> dict[str, JSON]:
    """A JSON object, an empty one for what is none."""
    if not isinstance(data, dict):
        return {}
    try:
        copied: dict[str, JSON] = msgspec.json.decode(msgspec.json.encode(data))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return {}
    return copied
