"""Structured records of an agent: profiles, metadata, configuration. Each change is an event."""

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from perdure.errors import RecordConflict, SequenceConflict
from perdure.model import names
from perdure.model.event import JSON, Event, checked_sequence

if TYPE_CHECKING:
    from perdure.agent.agent import Agent


class RecordVersion(msgspec.Struct, frozen=True):
    """One version of a record: the sequence that put it, and its value; deleted has no value."""

    sequence: int
    value: JSON
    deleted: bool = False


class Records:
    """The records of one agent: `agent.records`.

    Reading answers from the agent's state at once. A record's version is the sequence of the event
    that last put it; 0 means that there is none.
    """

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    async def get(self, key: str, default: JSON = None) -> JSON:
        """The value of a record, or `default` where there is none."""
        return self._agent.state.records.get(names.key("record key", key), default)

    async def version(self, key: str) -> int:
        """The version of a record, 0 where there is none."""
        return self._agent.state.record_versions.get(names.key("record key", key), 0)

    async def put(self, key: str, value: object, *, expected_version: int | None = None) -> Event:
        """Set a record; the event's `sequence` is the new version.

        Raises:
            RecordConflict: the record's version is not `expected_version`; nothing was written.
            InvalidData: the value is not JSON-able.
        """
        names.key("record key", key)
        return await self._change("record.put", {"key": key, "value": value}, expected_version)

    async def delete(self, key: str, *, expected_version: int | None = None) -> Event:
        """Delete a record; deleting one that is not there is recorded as well.

        Raises:
            RecordConflict: the record's version is not `expected_version`; nothing was written.
        """
        names.key("record key", key)
        return await self._change("record.deleted", {"key": key}, expected_version)

    async def find(
        self, where: Mapping[str, JSON] | None = None, **fields: JSON
    ) -> dict[str, JSON]:
        """The records whose fields have these values, by key, in the order of their keys.

        A dotted name in `where` leads into nested objects: `{"address.city": "Rome"}`. Without
        any condition, all records.
        """
        conditions = {**(where or {}), **fields}
        return {
            key: value
            for key, value in self._agent.state.records.items()
            if all(_at(value, path) == [wanted] for path, wanted in conditions.items())
        }

    async def history(self, key: str) -> AsyncIterator[RecordVersion]:
        """Every version of a record there ever was, oldest first, undone ones included."""
        names.key("record key", key)
        async for event in self._agent.events(types=["record.put", "record.deleted"]):
            if isinstance(event.data, dict) and event.data.get("key") == key:
                deleted = event.type == "record.deleted"
                yield RecordVersion(event.sequence, event.data.get("value"), deleted)

    async def _change(self, event_type: str, data: object, expected: int | None) -> Event:
        agent = self._agent
        if expected is None:
            return await agent.emit(event_type, data)
        checked_sequence("expected_version", expected)
        key = data["key"] if isinstance(data, dict) else ""
        while True:
            # What others put since counts too: it may be the very version that is expected.
            state = await agent.refresh()
            version = state.record_versions.get(key, 0)
            if version != expected:
                raise RecordConflict(
                    f"record {key!r} of {agent.name} is at version {version}, "
                    f"not at the expected {expected}",
                    hint="read it again and decide anew",
                )
            try:
                return await agent.emit(event_type, data, expected_sequence=state.sequence)
            except SequenceConflict:
                continue  # Something was recorded in between, perhaps not of this record.


def _at(value: JSON, path: str) -> list[JSON]:
    """The value at a dotted path, in a list; nothing where there is none."""
    if isinstance(value, dict) and path in value:
        return [value[path]]
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return []
        value = value[name]
    return [value]
