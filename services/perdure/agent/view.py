"""Reading an agent: any state it was ever in, its events, memories and checkpoints.

A view claims nothing: any number of them read an agent while another process writes it.
"""

import asyncio
import contextlib
import datetime as dt
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, overload

import msgspec

from perdure.agent.session import Session
from perdure.checkpointer import objects, policy
from perdure.errors import Corrupt, InvalidData, NotFound, PerdureError
from perdure.memorizer import recall
from perdure.memorizer.memory import Filter, Hit, Scalar
from perdure.model import names
from perdure.model.conversation import Conversation, heal
from perdure.model.diff import Difference, diff
from perdure.model.event import Event, NewEvent, checked_sequence, prepared, utc
from perdure.model.projection import DEFAULT, Projection
from perdure.model.sequencing import Append
from perdure.model.state import SavedObject, State
from perdure.model.timeline import Lineage, Span, Stream, history, onward, timeline
from perdure.ports import Finding
from perdure.projector.restore import Restored, refold, restore, save

if TYPE_CHECKING:
    from perdure.agent.agent import Agent

Time: TypeAlias = dt.datetime | str
"""A point in time: a datetime with a zone, or ISO 8601 text with one."""

Among: TypeAlias = Literal["memories", "messages"]
"""What `recall` searches."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_LOG_PLACE: Final = re.compile(r"\d{1,9}:\d{1,18}")


S = TypeVar("S")
T = TypeVar("T")


class Change(msgspec.Struct, Generic[S], frozen=True):
    """A step of a watched projection: the event that came, and the state after it."""

    event: Event
    state: S

    @property
    def sequence(self) -> int:
        """Of the event."""
        return self.event.sequence


class Verification(msgspec.Struct, frozen=True):
    """What `verify` looked at and what it found; `sound` when it found nothing."""

    agent: str
    events: int
    checkpoints: int
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        """Whether everything was as it was written."""
        return not self.findings


class AgentView:
    """An agent, for reading. `store.view(name)` gives one."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._backend = session.backend
        self.name = names.agent_name(name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} in {self._backend.url}>"

    async def sequence(self) -> int:
        """The sequence of the agent's last event, 0 before the first.

        Raises:
            NotFound: there is no such agent.
        """
        return (await self._lineage())[0].sequence

    async def state_at(
        self,
        seq: int | None = None,
        *,
        time: Time | None = None,
        before: Time | None = None,
        at_least: str | None = None,
        fresh: bool = False,
    ) -> State:
        """The state after sequence `seq`, or at `time`, or just before `before`; else the latest.

        At a time means: after the last event before the first one that is later. `at_least`, the
        position of an event, waits until that event can be read; `fresh` until everything can
        that was acknowledged before the call, by whichever process. One folder never makes wait.

        Raises:
            NotFound: there is no such agent, or it has no such sequence yet.
            InvalidData: more than one point is given, or a time has no zone.
        """
        return (
            await self._restore(
                DEFAULT, seq=seq, time=time, before=before, at_least=at_least, fresh=fresh
            )
        ).state

    @overload
    async def project(
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
    async def project(
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
    async def project(
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
        """The state of a registered projection, at any point (see `state_at`).

        With `type` the state is checked to be of it, which type checkers know then.

        Raises:
            NotFound: no projection of this name is registered.
            ProjectionFailed: its function raised.
            InvalidData: the state is not of `type`.
        """
        known: Projection[object] = self._session.projections.get(projection)
        restored = await self._restore(
            known, seq=seq, time=time, before=before, at_least=at_least, fresh=fresh
        )
        return _of_type(f"the state of projection {projection}", restored.state, type)

    async def diff(self, a: int | Time, b: int | Time) -> list[Difference]:
        """What changed in the state from point `a` to point `b`, each a sequence or a time."""
        return diff(await self._at(a), await self._at(b))

    async def events(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        types: Collection[str] | None = None,
        since: Time | None = None,
        until: Time | None = None,
        lift: bool = True,
    ) -> AsyncIterator[Event]:
        """The agent's events in order, its parents' up to the fork and undone ones included.

        `types` are exact or end with a dot and a star (`tool.*`). `since` is included, `until` is
        not. With `lift=False` they come in the version they were written in. Memory is bounded at
        any length.
        """
        checked_sequence("first", first, least=1)
        low = None if since is None else utc("since", since)
        high = None if until is None else utc("until", until)
        wanted = None if types is None else _Types(types)
        lineage = await self._lineage()
        end = lineage[0].sequence
        if last is not None:
            end = min(end, checked_sequence("last", last))
        lifted = self._session.upcasters.lift if lift else list
        for span in onward(history(lineage, end), first):
            async for batch in self._backend.events.read(span):
                for event in lifted(batch.events):
                    if (
                        (wanted is None or event.type in wanted)
                        and (low is None or event.time >= low)
                        and (high is None or event.time < high)
                    ):
                        yield event

    @overload
    def watch(self, *, after: int | None = None) -> AsyncIterator[Change[State]]: ...
    @overload
    def watch(
        self, *, after: int | None = None, projection: str
    ) -> AsyncIterator[Change[object]]: ...
    async def watch(
        self, *, after: int | None = None, projection: str = DEFAULT.name
    ) -> AsyncIterator[Change[Any]]:
        """The state after each event that is recorded from now on, or from `after` on.

        Never ends by itself. Sees what any process records.
        """
        known: Projection[object] = self._session.projections.get(projection)
        lineage = await self._lineage()
        sequence = self._checked_at(lineage, after, None)
        state = (await self._restored(known, lineage, sequence)).state
        while True:
            version = self._backend.events.version()
            lineage = await self._lineage()
            for span in onward(history(lineage, lineage[0].sequence), sequence + 1):
                async for batch in self._backend.events.read(span):
                    for event in self._session.upcasters.lift(batch.events):
                        sequence = event.sequence
                        state = await self._after(known, lineage, state, event)
                        yield Change(event, state)
            await self._backend.changed(version)

    async def _after(
        self, projection: Projection[S], lineage: Lineage, state: S, event: Event
    ) -> S:
        if event.type == "agent.reverted":
            return (await self._restored(projection, lineage, event.sequence)).state
        if projection.name != DEFAULT.name:
            # A copy: the user's function may change the state it is given, which was handed out.
            state = projection.decode(projection.encode(state))
        return projection.fold(state, [event])

    async def conversation(
        self, for_provider: Literal["openai", "anthropic"], seq: int | None = None
    ) -> Conversation:
        """The messages at a sequence as a provider accepts them (see `Agent.messages`)."""
        return heal((await self.state_at(seq)).messages, for_provider)

    async def recall(
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
        """The `k` memories that fit the query best, by meaning and by words, best first.

        `where` names fields of a memory's context or metadata and the values they must have:
        `{"context.task": "t-7", "topic": "seats"}`. With `seq`, memory is asked as of then: what
        was stored later is not seen, what was forgotten later still is. `progress` is called with
        how many memories were embedded first.

        With `among="messages"` the conversation is searched instead, and nothing is written: the
        newest 5,000 messages that have a text, system prompts left out. A hit then has the id and
        sequence of its `message.added` event, the role as `source`, and what the message has
        beside its role and content as `metadata`.
        """
        if among not in ("memories", "messages"):
            raise InvalidData(f"among is {among!r}", hint='give "memories" or "messages"')
        await self._caught_up(at_least, fresh=fresh)
        lineage = await self._lineage()
        at = self._checked_at(lineage, seq, at_least)
        chosen = Filter(
            source=source,
            since=None if since is None else utc("since", since),
            until=None if until is None else utc("until", until),
            where=dict(where or {}),
        )
        if among == "messages":
            return await self._session.messages.recall(
                lineage, at, query, k=k, filter=chosen, progress=progress
            )
        return await recall.recall(
            self._backend.memories,
            self._session.embedder,
            timeline(lineage, at),
            query,
            k=k,
            filter=chosen,
            progress=progress,
        )

    async def checkpoints(self, seq: int | None = None) -> dict[str, SavedObject]:
        """The object checkpoints that `restore` finds at a sequence, by name."""
        return dict((await self.state_at(seq)).checkpoints)

    @overload
    async def restore(
        self, name: str, *, seq: int | None = None, time: Time | None = None
    ) -> object: ...
    @overload
    async def restore(
        self, name: str, *, seq: int | None = None, time: Time | None = None, type: type[T]
    ) -> T: ...
    async def restore(
        self,
        name: str,
        *,
        seq: int | None = None,
        time: Time | None = None,
        type: type[T] | None = None,
    ) -> object | T:
        """The object last saved as `name`, as of a sequence or time.

        With `type` the object is checked to be of it, which type checkers know then.

        Raises:
            NotFound: there is none of this name at that point.
            Corrupt: its file is damaged.
            InvalidData: the object is not of `type`.
        """
        state = await self.state_at(seq, time=time)
        saved = state.checkpoints.get(names.key("checkpoint name", name))
        if saved is None:
            known = ", ".join(state.checkpoints) or "none"
            raise NotFound(
                f"agent {self.name} has no checkpoint {name!r} at sequence {state.sequence}",
                hint=f"there are: {known}",
            )
        data = await self._backend.blobs.get(saved.digest)
        value = await asyncio.to_thread(objects.unpack, data, saved.digest, self._session.classes)
        return _of_type(f"checkpoint {name!r}", value, type)

    async def fork(self, at: int | None = None, *, name: str, time: Time | None = None) -> "Agent":
        """A new agent that shares this one's history up to `at` and goes its own way from there.

        Nothing is copied, and this agent is not disturbed. The fork is open for writing; its first
        own event, `agent.forked`, has the sequence after `at`.

        Raises:
            AgentExists: there is an agent of this name.
            NotFound: this agent has no sequence `at`.
        """
        from perdure.agent.agent import Agent

        names.agent_name(name)
        if at is not None and time is not None:
            raise InvalidData("both at and time are given", hint="give one of them")
        lineage = await self._lineage()
        point = self._checked_at(lineage, at, None)
        if time is not None:
            point = await self._sequence_at(lineage, utc("time", time), inclusive=True)
        new = prepared(NewEvent(type="agent.forked", data={"parent": self.name, "at": point}))
        head, _ = await self._backend.log.fork(
            Append(name, (new,), self._backend.writer, epoch=1), self.name, point
        )
        return await Agent.start(self._session, name, head)

    async def verify(self, *, progress: Callable[[int], None] | None = None) -> Verification:
        """Check everything there is of the agent against what was written.

        Events: checksum, order and hash chain. Saved states: that they are what folding gives.
        Object checkpoints: their content's hash. `progress` is called with the events looked at.
        """
        lineage = await self._lineage()
        count, findings = 0, []
        async for looked_at, found in self._backend.events.verify(self.name):
            count += looked_at
            findings += found
            if progress is not None:
                progress(count)
        findings += await self._backend.states.check(self.name)
        checkpoints = 0
        if not findings:
            findings += await self._verify_states(lineage)
            checkpoints, broken = await self._verify_objects()
            findings += broken
        return Verification(self.name, count, checkpoints, findings)

    async def _verify_states(self, lineage: Lineage) -> list[Finding]:
        at = lineage[0].sequence
        try:
            restored = await self._restored(DEFAULT, lineage, at)
            folded = await refold(
                self._backend.events,
                self._session.upcasters,
                projection=DEFAULT,
                lineage=lineage,
                at=at,
            )
        except PerdureError as error:
            return [Finding(f"{self.name}@{at}", error.message, error.hint)]
        if restored.state == folded:
            return []
        return [
            Finding(
                f"{self.name}@{at}",
                "the state restored from its checkpoint is not the one its events give",
                "report this: it must not happen; the events are sound",
            )
        ]

    async def _verify_objects(self) -> tuple[int, list[Finding]]:
        findings, checked = [], set()
        async for event in self.events(types=["checkpoint.saved"]):
            data = event.data if isinstance(event.data, dict) else {}
            digest = data.get("digest")
            if not isinstance(digest, str) or digest in checked:
                continue
            checked.add(digest)
            try:
                stored = await self._backend.blobs.get(digest)
                await asyncio.to_thread(objects.check, stored, digest)
            except (Corrupt, NotFound) as error:
                name = f"checkpoint {data.get('name')!r} of {event.position}"
                findings.append(Finding(name, error.message, error.hint))
        return len(checked), findings

    async def _lineage(self) -> list[Stream]:
        return await self._backend.events.lineage(self.name)

    async def _at(self, point: int | Time) -> State:
        if isinstance(point, int):
            return await self.state_at(point)
        return await self.state_at(time=point)

    async def _restore(
        self,
        projection: Projection[S],
        *,
        seq: int | None,
        time: Time | None,
        before: Time | None,
        at_least: str | None,
        fresh: bool,
    ) -> Restored[S]:
        if (seq is not None) + (time is not None) + (before is not None) > 1:
            raise InvalidData(
                "more than one of seq, time and before is given", hint="give one of them"
            )
        await self._caught_up(at_least, fresh=fresh)
        lineage = await self._lineage()
        at = self._checked_at(lineage, seq, at_least)
        if time is not None:
            at = await self._sequence_at(lineage, utc("time", time), inclusive=True)
        elif before is not None:
            at = await self._sequence_at(lineage, utc("before", before), inclusive=False)
        restored = await self._restored(projection, lineage, at)
        newest = lineage[0]
        if (
            newest.forked_at < at == newest.sequence
            and not self._is_kept_by_store(projection)
            and policy.due(restored.folded, restored.saved, at_rest=True)
        ):
            # Where it can't be kept (a store that is read only, a state that is no JSON), the next
            # reader folds again: no reason to fail this one.
            with contextlib.suppress(PerdureError):
                await self._keep(projection, restored)
        return restored

    def _is_kept_by_store(self, projection: Projection[S]) -> bool:
        """Whether the store saves this projection's states, so that readers needn't."""
        return self._backend.keeps_states and projection.name == DEFAULT.name

    async def _keep(self, projection: Projection[S], restored: Restored[S]) -> int:
        return await save(
            self._backend.states,
            self._session.upcasters,
            projection=projection,
            agent=self.name,
            sequence=restored.sequence,
            state=restored.state,
        )

    async def _restored(self, projection: Projection[S], lineage: Lineage, at: int) -> Restored[S]:
        backend = self._backend
        return await restore(
            backend.events,
            backend.states,
            self._session.upcasters,
            projection=projection,
            lineage=lineage,
            at=at,
        )

    async def _sequence_at(self, lineage: Lineage, time: dt.datetime, *, inclusive: bool) -> int:
        spans: list[Span] = history(lineage, lineage[0].sequence)
        moment = (time - _EPOCH) // _MICROSECOND
        return await self._backend.events.sequence_at(spans, moment, inclusive=inclusive)

    async def _caught_up(self, at_least: str | None, *, fresh: bool) -> None:
        if at_least is not None:
            self._sequence_of(at_least)
            await self._backend.events.caught_up(self.name, at_least)
        if fresh:
            await self._backend.events.caught_up(self.name, None)

    def _checked_at(self, lineage: Lineage, seq: int | None, at_least: str | None) -> int:
        last = lineage[0].sequence
        if at_least is not None and self._sequence_of(at_least) > last:
            raise NotFound(
                f"agent {self.name} has no event {at_least} in this store: its last is {last}",
                hint="give a position that emit of this very store gave back",
            )
        if seq is None:
            return last
        if checked_sequence("seq", seq) > last:
            raise NotFound(
                f"agent {self.name} has no sequence {seq}: its last is {last}",
                hint=f"give one from 0 to {last}",
            )
        return seq

    def _sequence_of(self, position: str) -> int:
        """Of a position; 0 where it doesn't name one, but a place in a cluster's log."""
        agent, _, place = str(position).rpartition("@")
        if agent == self.name and place.isdecimal():
            return int(place)
        if agent != self.name or not _LOG_PLACE.fullmatch(place):
            raise InvalidData(
                f"position {position!r} is not one of agent {self.name}",
                hint="give the position of an event of this agent",
            )
        return 0


class _Types:
    """A set of event types, with `tool.*` for all that start with `tool.`."""

    def __init__(self, types: Collection[str]) -> None:
        if isinstance(types, str):
            types = [types]
        self._exact = frozenset(types)
        self._prefixes = tuple(name[:-1] for name in types if name.endswith(".*"))

    def __contains__(self, event_type: str) -> bool:
        return event_type in self._exact or (
            bool(self._prefixes) and event_type.startswith(self._prefixes)
        )


def _of_type(what: str, value: object, wanted: type[T] | None) -> object | T:
    if wanted is not None and not isinstance(value, wanted):
        raise InvalidData(
            f"{what} is of type {type(value).__name__}, not {wanted.__name__}",
            hint="ask for the type that was saved",
        )
    return value
