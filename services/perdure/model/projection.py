"""Projections: folds of an agent's events into a state, the built-in one and the users' own.

Invariants:
- A projection is identified by name, version and the code of its function: when any of the three
  changes, states that were saved before are not read any more.
- Whatever a user's function raises comes out as `ProjectionFailed`, naming the event.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, Protocol, TypeVar, overload

import msgspec

from perdure.errors import Corrupt, InvalidData, NotFound, ProjectionFailed
from perdure.model import names, state
from perdure.model.event import Event, checked_sequence
from perdure.model.fingerprint import fingerprint

S = TypeVar("S")
D = TypeVar("D", bound=dict[Any, Any])


class Projection(Protocol[S]):
    """A fold of events into a state, and how that state is kept.

    `name` is what users call it; `key` identifies the code that computed a state.
    """

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    def initial(self, agent: str) -> S:
        """The state before the first event."""
        ...

    def fold(self, state: S, events: Iterable[Event]) -> S:
        """The state after the events. The `state` given is used up: use only the result."""
        ...

    def encode(self, state: S) -> bytes:
        """The state as bytes, for a checkpoint. Raises InvalidData where it can't be kept."""
        ...

    def decode(self, data: bytes) -> S:
        """The state from its bytes. Raises Corrupt."""
        ...


class _DefaultProjection:
    """The built-in projection: events into `State`."""

    name = "state"
    key = "1"

    def initial(self, agent: str) -> state.State:
        return state.State(agent=agent)

    def fold(self, before: state.State, events: Iterable[Event]) -> state.State:
        return state.fold(before, events)

    def encode(self, value: state.State) -> bytes:
        return state.encode(value)

    def decode(self, data: bytes) -> state.State:
        try:
            return state.decode(data)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"the saved state is damaged: {error}") from error


DEFAULT: Final[Projection[state.State]] = _DefaultProjection()


class FunctionProjection(Generic[S]):
    """A projection made of a plain function `(state, event) -> state`."""

    def __init__(
        self,
        function: Callable[[S, Event], S],
        *,
        name: str,
        version: int,
        initial: Callable[[], S],
        state_type: object,  # any type form that msgspec converts to, such as dict[str, int]
    ) -> None:
        self.name = name
        self.version = version
        self.key = f"{version}:{fingerprint(function)}:{fingerprint(initial)}"
        self._function = function
        self._initial = initial
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(state_type)

    def initial(self, agent: str) -> S:  # noqa: ARG002 - the built-in one's state names it
        return self._initial()

    def fold(self, state: S, events: Iterable[Event]) -> S:
        function = self._function
        for event in events:
            try:
                state = function(state, event)
            except Exception as error:
                raise ProjectionFailed(
                    f"projection {self.name} failed on event {event.position} "
                    f"({event.type}): {error!r}",
                    hint="mend the function; no event was changed",
                ) from error
        return state

    def encode(self, state: S) -> bytes:
        try:
            data = msgspec.json.encode(state)
            kept = self._decoder.decode(data) == state
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidData(
                f"the state of projection {self.name} is not JSON-able: {error}",
                hint="return JSON values, or give state_type= a dataclass or msgspec.Struct",
            ) from error
        if not kept:
            raise InvalidData(
                f"the state of projection {self.name} changes when it is kept as JSON",
                hint="return JSON values, or give state_type= the type of the state",
            )
        return data

    def decode(self, data: bytes) -> S:
        try:
            value: S = self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"the saved state of projection {self.name} is damaged") from error
        return value


class Projections:
    """The projections that are known by name.

    >>> projections = Projections()
    >>> @projections.projection("spent", initial=lambda: 0)
    ... def spent(state, event):
    ...     return state + event.data["price"] if event.type == "paid" else state
    >>> projections.get("spent").initial("airline/mia")
    0
    """

    def __init__(self) -> None:
        self._known: dict[str, Projection[Any]] = {DEFAULT.name: DEFAULT}

    # Without `initial` the state starts as an empty dict: of which type, the function says.
    @overload
    def projection(
        self, name: str, *, version: int = 1, state_type: object = Any
    ) -> Callable[[Callable[[D, Event], D]], Callable[[D, Event], D]]: ...
    @overload
    def projection(
        self,
        name: str,
        *,
        version: int = 1,
        initial: Callable[[], S],
        state_type: object = Any,
    ) -> Callable[[Callable[[S, Event], S]], Callable[[S, Event], S]]: ...
    def projection(
        self,
        name: str,
        *,
        version: int = 1,
        initial: Callable[[], S] = dict,  # type: ignore[assignment]  # the S of most users
        state_type: object = Any,
    ) -> Callable[[Callable[[S, Event], S]], Callable[[S, Event], S]]:
        """Register a plain function `(state, event) -> state` as a projection.

        The function gives back a new state, or the one it was given, unchanged or changed.
        `initial` makes the state before the first event. Raise `version` when something that the
        function calls has changed; a change of the function itself is noticed.

        Raises:
            InvalidName: the name is no name, or is taken by the built-in projection.
        """
        names.event_type(name)
        checked_sequence("version", version, least=1)
        if name == DEFAULT.name:
            raise InvalidData(
                f"projection {name!r} is built in", hint="choose another name for your own"
            )

        def register(function: Callable[[S, Event], S]) -> Callable[[S, Event], S]:
            self._known[name] = FunctionProjection(
                function, name=name, version=version, initial=initial, state_type=state_type
            )
            return function

        return register

    def get(self, name: str) -> Projection[Any]:
        """The projection of this name.

        Raises:
            NotFound: none is registered under it.
        """
        known = self._known.get(name)
        if known is None:
            raise NotFound(
                f"there is no projection {name!r}",
                hint=f"known are: {', '.join(sorted(self._known))}; import the module that "
                "registers yours, or name it in the entry points group perdure.projections",
            )
        return known

    def __contains__(self, name: str) -> bool:
        return name in self._known


default_projections: Final = Projections()
"""Where `perdure.projection` registers."""
