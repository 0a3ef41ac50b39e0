"""eventsourcing on SQLite: its own way to keep the same messages, at the same durability.

It opens its file with a write-ahead log and leaves `synchronous` as the library has it, which is
FULL in Python's; that is read back and checked.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.sqlite import SQLiteApplicationRecorder

from perdure.cli.bench.raw import check_durable
from perdure.cli.bench.rounds import Work
from perdure.model.event import JSON


class Conversation(Aggregate):
    """An aggregate that holds a conversation."""

    def __init__(self) -> None:
        self.messages: list[dict[str, JSON]] = []

    @event("Added")
    def add(self, message: dict[str, JSON]) -> None:
        """Add a message."""
        self.messages.append(message)


class EventSourced:
    """An eventsourcing application on one file."""

    def __init__(self, folder: Path) -> None:
        self._application: Application[UUID] = Application(
            env={
                "PERSISTENCE_MODULE": "eventsourcing.sqlite",
                "SQLITE_DBNAME": str(folder / "events.db"),
            }
        )
        recorder = self._application.recorder
        if isinstance(recorder, SQLiteApplicationRecorder):
            with recorder.datastore.transaction(commit=False) as cursor:

                def ask(query: str) -> object:
                    cursor.execute(query)
                    return cursor.fetchone()[0]

                check_durable(ask)

    def one_by_one(self, messages: Iterable[dict[str, JSON]]) -> Work:
        """Save each message by itself."""
        return self._save([message] for message in messages)

    def in_groups(self, messages: Sequence[dict[str, JSON]], size: int) -> Work:
        """Save messages so many at a time."""
        return self._save(messages[at : at + size] for at in range(0, len(messages), size))

    def keep(self, messages: Iterable[dict[str, JSON]]) -> UUID:
        """A conversation of its own, saved; its id."""
        conversation = Conversation()
        for message in messages:
            conversation.add(message)
        self._application.save(conversation)
        return conversation.id

    def fold(self, identity: UUID) -> tuple[int, float]:
        """Rebuild a conversation from its first event: its messages, and the seconds it took."""
        started = time.perf_counter()
        conversation: Conversation = self._application.repository.get(identity)
        return len(conversation.messages), time.perf_counter() - started

    def close(self) -> None:
        """Close the file."""
        self._application.close()

    def _save(self, groups: Iterable[Sequence[dict[str, JSON]]]) -> Work:
        groups = list(groups)
        conversation, count = Conversation(), 0
        started = time.perf_counter()
        for group in groups:
            for message in group:
                conversation.add(message)
            self._application.save(conversation)
            count += len(group)
        return Work(count, time.perf_counter() - started)
