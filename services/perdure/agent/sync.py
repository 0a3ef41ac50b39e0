"""The surface without `await`, for agents that are plain scripts.

Each class here has the methods of its counterpart (`Store`, `Agent`, `AgentView`, `Records`), which
run on an event loop in a thread of the store's own; what they do, and what they raise, is said
there. Where a counterpart gives an async iterator, these give an iterator.

Any thread may use a store and its agents, and so may code that runs in an event loop (a notebook).
Ctrl-C ends the wait and cancels what was waited for: a write may have been recorded by then or not,
as with a crash, and the store can be used on. A forked process connects anew.
"""

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from perdure.agent.agent import Agent, Attributes, Reverted
from perdure.agent.connect import connect
from perdure.agent.portal import Portal
from perdure.agent.records import Records, RecordVersion
from perdure.agent.store import Store
from perdure.agent.view import AgentView, Among, Change, Time, Verification
from perdure.checkpointer.graph import Classes, default_classes
from perdure.errors import StoreClosed
from perdure.memorizer.embedder import Embedder
from perdure.memorizer.memory import Hit, Memory, Scalar
from perdure.model.conversation import Conversation
from perdure.model.diff import Difference
from perdure.model.event import JSON, Event, NewEvent
from perdure.model.projection import DEFAULT, Projections, default_projections
from perdure.model.state import SavedObject, State
from perdure.model.upcast import Upcasters, default_upcasters
from perdure.ports import Ack, AgentSummary

T = TypeVar("T")


def connect_sync(
    url: str | os.PathLike[str] | None = None,
    *,
    embedder: Embedder | None = None,
    projections: Projections = default_projections,
    upcasters: Upcasters = default_upcasters,
    classes: Classes = default_classes,
    create: bool = True,
) -> "SyncStore":
    """Connect to a store without `await`; arguments and errors are those of `connect`.

    >>> with connect_sync("crew.store") as store:
    ...     agent = store.agent("airline/mia")
    ...     event = agent.emit("decision.made", {"choice": "refund"})
    ...     print(event.sequence, agent.state.decisions[0]["choice"])
    1 refund
    """

    async def connected() -> Store:
        return await connect(
            url,
            embedder=embedder,
            projections=projections,
            upcasters=upcasters,
            classes=classes,
            create=create,
        )

    portal = Portal("the store" if url is None else f"the store {os.fspath(url)}")
    try:
        return SyncStore(portal, portal.call(connected))
    except BaseException:
        portal.end()
        raise


class SyncStore:
    """`Store` without `await`. `perdure.connect_sync()` gives one; close it, or use `with`.

    >>> store = connect_sync("crew.store")
    >>> store.emit("airline/mia", "note", "seen by nobody yet").position
    'airline/mia@1'
    >>> [summary.agent for summary in store.agents("airline/")]
    ['airline/mia']
    >>> store.close()
    """

    def __init__(self, portal: Portal, store: Store) -> None:
        self._portal = portal
        self._store = store

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._store.url

    def __repr__(self) -> str:
        return f"<SyncStore {self.url}>"

    def agent(self, name: str) -> "SyncAgent":
        """Open an agent for writing, where it stopped; see `Store.agent`."""
        return SyncAgent(self._portal, self._portal.call(self._store.agent, name))

    def view(self, name: str) -> "SyncAgentView":
        """An agent for reading only; see `Store.view`."""
        return SyncAgentView(self._portal, self._store.view(name))

    def emit(
        self,
        agent: str,
        type: str,
        data: object = None,
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
        **attributes: Unpack[Attributes],
    ) -> Event:
        """Contribute an event to an agent without opening it; see `Store.emit`."""
        return self._portal.call(
            self._store.emit,
            agent,
            type,
            data,
            expected_sequence=expected_sequence,
            ack=ack,
            **attributes,
        )

    def emit_many(
        self,
        agent: str,
        events: Iterable[NewEvent | tuple[str, object]],
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
    ) -> list[Event]:
        """Contribute several events to an agent, all or none; see `Store.emit_many`."""
        # A list: what `events` runs while it is read may call the store, so not on its thread.
        return self._portal.call(
            self._store.emit_many,
            agent,
            list(events),
            expected_sequence=expected_sequence,
            ack=ack,
        )

    def fork(
        self, agent: str, at: int | None = None, *, name: str, time: Time | None = None
    ) -> "SyncAgent":
        """Fork an agent that need not be opened; see `Store.fork`."""
        forked = self._portal.call(self._store.fork, agent, at, name=name, time=time)
        return SyncAgent(self._portal, forked)

    def agents(self, prefix: str = "") -> Iterator[AgentSummary]:
        """The agents whose name starts with `prefix`, by name; see `Store.agents`."""
        return self._portal.iterate(partial(self._store.agents, prefix))

    def close(self) -> None:
        """Finish what is under way, let go of the store, end its thread. Twice is harmless."""
        if not self._portal.usable:
            return  # It is closed, or it is the parent process's to close.
        try:
            with contextlib.suppress(StoreClosed):  # Another thread has closed it meanwhile.
                self._portal.call(self._store.close)
        finally:
            self._portal.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class SyncAgentView:
    """`AgentView` without `await`. `store.view(name)` gives one.

    >>> with connect_sync("crew.store") as store:
    ...     _ = store.emit_many("airline/mia", [("note", n) for n in range(100)])
    ...     view = store.view("airline/mia")
    ...     print(view.state_at(40).sequence, [event.data for event in view.events(98)])
    40 [97, 98, 99]
    """

    def __init__(self, portal: Portal, view: AgentView) -> None:
        self._portal = portal
        self._view = view
        self.name = view.name

    def __repr__(self) -> str:
        return f"<Sync{repr(self._view).removeprefix('<')}"

    def sequence(self) -> int:
        """The sequence of the agent's last event; see `AgentView.sequence`."""
        return self._portal.call(self._view.sequence)

    def state_at(
        self,
        seq: int | None = None,
        *,
        time: Time | None = None,
        before: Time | None = None,
        at_least: str | None = None,
        fresh: bool = False,
    ) -> State:
        """The state at a sequence or time, or the latest; see `AgentView.state_at`."""
        return self._portal.call(
            self._view.state_at, seq, time=time, before=before, at_least=at_least, fresh=fresh
        )

    @overload
    def project(
        self,
        projection: str,
        seq: int | None = None,
        *,
        time: Time | None = None,
        before: Time | None = None,
        at_least: str | None = None,
        fresh: bool = False,
    ) -> object: ...
    @overload
    def project(
        self,
        projection: str,
        seq: int | None = None,
        *,
        time: Time | None = None,
        before: Time | None = None,
        at_least: str | None = None,
        fresh: bool = False,
        type: type[T],
    ) -> T: ...
    def project(
        self,
        projection: str,
        seq: int | None = None,
        *,
        time: Time | None = None,
        before: Time | None = None,
        at_least: str | None = None,
        fresh: bool = False,
        type: type[T] | None = None,
    ) -> object | T:
        """The state of a registered projection, at any point; see `AgentView.project`."""
        point = partial(
            self._view.project,
            projection,
            seq,
            time=time,
            before=before,
            at_least=at_least,
            fresh=fresh,
        )
        return self._portal.call(point if type is None else partial(point, type=type))

    def diff(self, a: int | Time, b: int | Time) -> list[Difference]:
        """What changed in the state from point `a` to point `b`; see `AgentView.diff`."""
        return self._portal.call(self._view.diff, a, b)

    def events(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        types: Collection[str] | None = None,
        since: Time | None = None,
        until: Time | None = None,
        lift: bool = True,
    ) -> Iterator[Event]:
        """The agent's events in order, in bounded memory; see `AgentView.events`."""
        return self._portal.iterate(
            partial(
                self._view.events, first, last, types=types, since=since, until=until, lift=lift
            )
        )

    @overload
    def watch(self, *, after: int | None = None) -> Iterator[Change[State]]: ...
    @overload
    def watch(self, *, after: int | None = None, projection: str) -> Iterator[Change[object]]: ...
    def watch(
        self, *, after: int | None = None, projection: str = DEFAULT.name
    ) -> Iterator[Change[Any]]:
        """The state after each event, as they are recorded; see `AgentView.watch`.

        Begins when the first item is asked for. Ends when the store is closed (StoreClosed), by
        another thread.
        """
        # One at a time: a change is given when it comes, not when the next ones have come.
        return self._portal.iterate(
            partial(self._view.watch, after=after, projection=projection), chunk=1
        )

    def conversation(
        self, for_provider: Literal["openai", "anthropic"], seq: int | None = None
    ) -> Conversation:
        """The messages at a sequence as a provider accepts them; see `AgentView.conversation`."""
        return self._portal.call(self._view.conversation, for_provider, seq)

    def recall(
        self,
        query: str,
        k: int = 5,
        *,
        among: Among = "memories",
        seq: int | None = None,
        source: str | None = None,
        since: Time | None = None,
        until: Time | None = None,
        where: Mapping[str, Scalar] | None = None,
        at_least: str | None = None,
        fresh: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Hit]:
        """The `k` memories, or messages, that fit the query best; see `AgentView.recall`."""
        return self._portal.call(
            self._view.recall,
            query,
            k,
            among=among,
            seq=seq,
            source=source,
            since=since,
            until=until,
            where=where,
            at_least=at_least,
            fresh=fresh,
            progress=progress,
        )

    def checkpoints(self, seq: int | None = None) -> dict[str, SavedObject]:
        """The object checkpoints at a sequence, by name; see `AgentView.checkpoints`."""
        return self._portal.call(self._view.checkpoints, seq)

    @overload
    def restore(self, name: str, *, seq: int | None = None, time: Time | None = None) -> object: ...
    @overload
    def restore(
        self, name: str, *, seq: int | None = None, time: Time | None = None, type: type[T]
    ) -> T: ...
    def restore(
        self,
        name: str,
        *,
        seq: int | None = None,
        time: Time | None = None,
        type: type[T] | None = None,
    ) -> object | T:
        """The object last saved as `name`, as of a sequence or time; see `AgentView.restore`."""
        saved = partial(self._view.restore, name, seq=seq, time=time)
        return self._portal.call(saved if type is None else partial(saved, type=type))

    def fork(self, at: int | None = None, *, name: str, time: Time | None = None) -> "SyncAgent":
        """A new agent that shares the history up to `at`; see `AgentView.fork`."""
        return SyncAgent(self._portal, self._portal.call(self._view.fork, at, name=name, time=time))

    def verify(self, *, progress: Callable[[int], None] | None = None) -> Verification:
        """Check everything there is of the agent; see `AgentView.verify`.

        `progress` is called on the store's thread: it can't call the store.
        """
        return self._portal.call(self._view.verify, progress=progress)


class SyncAgent(SyncAgentView):
    """`Agent` without `await`. `store.agent(name)` gives one.

    >>> with connect_sync("crew.store") as store, store.agent("airline/mia") as agent:
    ...     _ = agent.emit("message.added", {"role": "user", "content": "hello"})
    ...     _ = agent.records.put("profile", {"tier": "gold"})
    ...     _ = agent.revert(to=1)
    ...     print(agent.messages("openai")[0]["content"], agent.records.find())
    hello {}
    """

    def __init__(self, portal: Portal, agent: Agent) -> None:
        super().__init__(portal, agent)
        self._agent = agent
        self.epoch = agent.epoch
        self.records = SyncRecords(portal, agent.records)

    @property
    def state(self) -> State:
        """The agent's state, everything it has written included."""
        return self._read(lambda: self._agent.state)

    def refresh(self) -> State:
        """The state with what others contributed up to now."""
        return self._portal.call(self._agent.refresh)

    def emit(
        self,
        type: str,
        data: object = None,
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
        **attributes: Unpack[Attributes],
    ) -> Event:
        """Record an event; when this returns, it survives power loss; see `Agent.emit`."""
        return self._portal.call(
            self._agent.emit,
            type,
            data,
            expected_sequence=expected_sequence,
            ack=ack,
            **attributes,
        )

    def emit_many(
        self,
        events: Iterable[NewEvent | tuple[str, object]],
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
    ) -> list[Event]:
        """Record several events in one go, all or none; see `Agent.emit_many`."""
        # A list: what `events` runs while it is read may call the store, so not on its thread.
        return self._portal.call(
            self._agent.emit_many, list(events), expected_sequence=expected_sequence, ack=ack
        )

    def remember(
        self,
        text: str,
        *,
        source: str | None = None,
        context: Mapping[str, object] | None = None,
        time: dt.datetime | None = None,
        **metadata: object,
    ) -> Memory:
        """Remember a text, where it comes from, and fields of your own; see `Agent.remember`."""
        return self._portal.call(
            self._agent.remember, text, source=source, context=context, time=time, **metadata
        )

    def forget(self, memory: str | Memory) -> Event:
        """Forget a memory; see `Agent.forget`."""
        return self._portal.call(self._agent.forget, memory)

    def checkpoint(self, name: str, value: object) -> SavedObject:
        """Save any object under a name; see `Agent.checkpoint`."""
        return self._portal.call(self._agent.checkpoint, name, value)

    def revert(self, to: int) -> Reverted:
        """Undo everything after sequence `to`; see `Agent.revert`."""
        return self._portal.call(self._agent.revert, to)

    def messages(self, for_provider: Literal["openai", "anthropic"] | None = None) -> Conversation:
        """The conversation as a provider accepts it; see `Agent.messages`."""
        return self._read(lambda: self._agent.messages(for_provider))

    def close(self) -> None:
        """Finish what is under way. The agent can be opened again by anybody."""
        with contextlib.suppress(StoreClosed):  # The store finished it.
            self._portal.call(self._agent.close)

    def _read(self, read: Callable[[], T]) -> T:
        """What is read of the state at hand, on the store's thread, which folds what it recorded.

        On this thread once the store is closed: then there is nothing left to fold.
        """

        async def on_its_thread() -> T:
            return read()

        try:
            return self._portal.call(on_its_thread)
        except StoreClosed:
            return read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class SyncRecords:
    """`Records` without `await`: `agent.records`.

    >>> with connect_sync("crew.store") as store, store.agent("airline/mia") as agent:
    ...     event = agent.records.put("profile", {"tier": "gold"})
    ...     _ = agent.records.put("profile", {"tier": "none"}, expected_version=event.sequence)
    ...     print([version.value["tier"] for version in agent.records.history("profile")])
    ['gold', 'none']
    """

    def __init__(self, portal: Portal, records: Records) -> None:
        self._portal = portal
        self._records = records

    def get(self, key: str, default: JSON = None) -> JSON:
        """The value of a record, or `default` where there is none."""
        return self._portal.call(self._records.get, key, default)

    def version(self, key: str) -> int:
        """The version of a record, 0 where there is none."""
        return self._portal.call(self._records.version, key)

    def put(self, key: str, value: object, *, expected_version: int | None = None) -> Event:
        """Set a record; see `Records.put`."""
        return self._portal.call(self._records.put, key, value, expected_version=expected_version)

    def delete(self, key: str, *, expected_version: int | None = None) -> Event:
        """Delete a record; see `Records.delete`."""
        return self._portal.call(self._records.delete, key, expected_version=expected_version)

    def find(self, where: Mapping[str, JSON] | None = None, **fields: JSON) -> dict[str, JSON]:
        """The records whose fields have these values, by key; see `Records.find`."""
        return self._portal.call(self._records.find, where, **fields)

    def history(self, key: str) -> Iterator[RecordVersion]:
        """Every version of a record there ever was, oldest first; see `Records.history`."""
        return self._portal.iterate(partial(self._records.history, key))
