"""Upcasters: plain functions that lift the data of an old event version to the next one.

Invariants:
- An event is read in the newest version that is known for its type, or not at all.
- A type without any registered version is read as it was written.
- `key` names the code of all upcasters together: states folded with others are not read.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from perdure.errors import InvalidData, MissingUpcaster, ProjectionFailed
from perdure.model import names, vocabulary
from perdure.model.event import JSON, Event, NewEvent, checked_sequence
from perdure.model.fingerprint import fingerprint

Upcast: TypeAlias = Callable[[dict[str, JSON]], JSON]


class Upcasters:
    """The known versions of event types, and how to lift one to another.

    >>> upcasters = Upcasters()
    >>> @upcasters.upcaster("order.placed", 1, 2)
    ... def with_currency(data):
    ...     return {**data, "currency": "EUR"}
    >>> upcasters.current("order.placed")
    2
    """

    def __init__(self) -> None:
        self._steps: dict[str, dict[int, tuple[int, Upcast]]] = {}
        self._current: dict[str, int] = dict.fromkeys(vocabulary.BUILT_IN, 1)
        self.key = ""
        """Identifies the code of what is registered, "" for nothing: a part of what a saved state
        is kept under."""

    def upcaster(
        self, event_type: str, from_version: int, to_version: int
    ) -> Callable[[Upcast], Upcast]:
        """Register a function `data -> data` that lifts a type from one version to a later one.

        Raises:
            InvalidData: the versions do not go up, or this step is registered already.
        """
        names.event_type(event_type)
        checked_sequence("from_version", from_version, least=1)
        checked_sequence("to_version", to_version, least=1)
        if to_version <= from_version:
            raise InvalidData(
                f"upcaster of {event_type} goes from version {from_version} to {to_version}",
                hint="it has to go up",
            )

        def register(function: Upcast) -> Upcast:
            steps = self._steps.setdefault(event_type, {})
            known = steps.get(from_version)
            if known is not None and known[1].__qualname__ != function.__qualname__:
                raise InvalidData(
                    f"two upcasters lift {event_type} from version {from_version}",
                    hint=f"keep one of {known[1].__qualname__} and {function.__qualname__}",
                )
            steps[from_version] = (to_version, function)
            self.key = self._fingerprint()
            self._current[event_type] = max(self._current.get(event_type, 1), to_version)
            return function

        return register

    def current(self, event_type: str) -> int:
        """The version that new events of this type are written in: 1 where none is known.

        >>> Upcasters().current("anything")
        1
        """
        return self._current.get(event_type, 1)

    def lift(self, events: Sequence[Event]) -> Sequence[Event]:
        """The events, each in the current version of its type.

        Raises:
            MissingUpcaster: there is no way to the current version, or the event is newer.
            ProjectionFailed: an upcaster raised.
        """
        if not self._steps and {1}.issuperset([event.version for event in events]):
            return events
        return [self._lifted(event) for event in events]

    def check_readable(self, events: Iterable[NewEvent]) -> None:
        """Refuse to write what could not be read back here.

        Raises:
            InvalidData: an event's version can't be lifted to the current one of its type.

        >>> Upcasters().check_readable([NewEvent(type="message.added", version=7)])
        Traceback (most recent call last):
        ...
        perdure.errors.InvalidData: version 7 of message.added can't be read here: ... (...)
        """
        for event in events:
            version = event.version
            if version is None:
                continue
            current = self._current.get(event.type)
            if current is None:
                continue
            steps = self._steps.get(event.type, {})
            while version < current and version in steps:
                version = steps[version][0]
            if version != current:
                raise InvalidData(
                    f"version {event.version} of {event.type} can't be read here: "
                    f"the current one is {current}",
                    hint="leave the version out, or register upcasters first",
                )

    def _fingerprint(self) -> str:
        steps = [
            (event_type, start, end, fingerprint(function))
            for event_type, known in sorted(self._steps.items())
            for start, (end, function) in sorted(known.items())
        ]
        return hashlib.sha256(repr(steps).encode()).hexdigest()[:16]

    def _lifted(self, event: Event) -> Event:
        current = self._current.get(event.type)
        if current is None or event.version == current:
            return event
        if event.version > current:
            raise MissingUpcaster(
                f"event {event.position} of type {event.type} has version {event.version}, "
                f"the newest known here is {current}",
                hint="it was written by newer code: update this process",
            )
        version, data = event.version, event.data
        while version < current:
            step = self._steps.get(event.type, {}).get(version)
            if step is None:
                raise MissingUpcaster(
                    f"event {event.position} of type {event.type} has version {event.version}, "
                    f"and no upcaster lifts {event.type} from version {version} to {current}",
                    hint=f'register one: @perdure.upcaster("{event.type}", {version}, {current})',
                )
            # The upcaster gets a copy: it may change it in place without changing the event.
            own = msgspec.json.decode(msgspec.json.encode(data))
            try:
                version, data = step[0], step[1](own)
            except Exception as error:
                raise ProjectionFailed(
                    f"upcaster {step[1].__qualname__} failed on event {event.position} "
                    f"({event.type}, version {version}): {error!r}",
                    hint="mend the upcaster; the stored event is as it was",
                ) from error
        return msgspec.structs.replace(event, version=current, data=data)


default_upcasters: Final = Upcasters()
"""Where `perdure.upcaster` registers."""
