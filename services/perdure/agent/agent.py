"""An agent that is opened for writing: its state at hand, everything it does recorded.

Invariants:
- `state` has folded in every event this handle was answered, and every earlier one of the stream;
  where one of them can't be read or folded, asking for `state` raises.
- Events that were acknowledged before they were recorded are folded with the sequences they will
  have if nobody else writes; when they are recorded, the state is made the recorded one.
- What is read through the handle includes what was written through it, recorded by then or not
  (what was only sent excepted).
- A write that was recorded is answered, whatever then becomes of the state.
- A handle whose epoch is not the newest writes nothing.
- Saving a state checkpoint never delays or fails a write. What is saved is folded from what is
  recorded, never the state at hand: its values are given away, and who gets them may change them.
"""

import asyncio
import contextlib
import datetime as dt
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Literal, Self, TypedDict, Unpack

import msgspec

from perdure.agent.confirmation import Confirmation
from perdure.agent.records import Records
from perdure.agent.session import Session
from perdure.agent.view import AgentView
from perdure.checkpointer import objects, policy
from perdure.errors import InvalidData, NotFound, PerdureError, Unavailable, WriterFenced
from perdure.memorizer.memory import Memory
from perdure.memorizer.recall import checked_text
from perdure.model import names, vocabulary
from perdure.model.conversation import Conversation, heal
from perdure.model.event import JSON, Event, NewEvent, Prepared, Sent, checked_sequence, prepared
from perdure.model.projection import DEFAULT
from perdure.model.sequencing import Head
from perdure.model.state import SavedObject, State
from perdure.model.timeline import Stream, history, onward, undone
from perdure.ports import Ack

ENVELOPE_BYTES: Final = 300
"""What the attributes of an event take beside its data, roughly: for the checkpoint policy only."""

PENDING_MAX: Final = 64
"""Events that wait to be folded until the state is asked for: folding many at once is cheaper."""


class Attributes(TypedDict, total=False):
    """What `emit` takes beside type and data; see `NewEvent` and `Event`."""

    id: str
    time: dt.datetime
    source: str
    version: int
    writer: str
    writer_sequence: int
    correlation_id: str
    causation_id: str
    traceparent: str


class Reverted(msgspec.Struct, frozen=True):
    """What an undo did: its event, and the outside effects that it can't take back.

    `effects` are the undone events that touched the outside: tools that were called or answered.
    """

    event: Event
    effects: list[Event]


class Agent(AgentView):
    """An agent, opened for writing. `store.agent(name)` gives one."""

    def __init__(self, session: Session, name: str, head: Head) -> None:
        super().__init__(session, name)
        self.epoch = head.epoch
        self.records = Records(self)
        self._state = State(agent=name)
        self._pending: list[Event] = []
        """What was recorded and is not folded into `_state` yet."""
        self._sequence = 0
        """Of the last event in `_state` and `_pending`."""
        self._saved_bytes = 0
        self._tail_bytes = 0
        self._failure: PerdureError | None = None
        """Why the state could not follow what was recorded."""
        self._catching_up = asyncio.Lock()
        self._saving: asyncio.Task[None] | None = None
        self._assumptions = 0
        """How often events were folded before they were recorded."""
        self._doubtful = False
        """Whether one of them may not be recorded as was assumed: its id or writer was given, so it
        may have been recorded before, or it was only sent."""
        self._refusals: deque[PerdureError] = deque()
        """Why events that were acknowledged are not recorded, as far as nobody was told."""
        self._fenced: WriterFenced | None = None
        self._confirmation = Confirmation(
            self._backend.events, name, recorded=self._reconcile, refused=self._take_refusal
        )

    @classmethod
    async def open(cls, session: Session, name: str) -> Self:
        """Open an agent where it stopped; whoever had it open before can write no more."""
        return await cls.start(
            session, name, await session.backend.log.claim(names.agent_name(name))
        )

    @classmethod
    async def start(cls, session: Session, name: str, head: Head) -> Self:
        """An agent that was just claimed, with its state restored."""
        agent = cls(session, name, head)
        async with agent._catching_up:
            await agent._reload()
        session.opened.add(agent)
        return agent

    @property
    def state(self) -> State:
        """The agent's state, everything it has written included.

        Raises:
            MissingUpcaster, ProjectionFailed, Corrupt: an event of it can't be read or folded.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        self._fold_pending()
        return self._state

    async def refresh(self) -> State:
        """The state with what others contributed up to now."""
        await self._confirmation.wait()
        if self._doubtful:
            await self._reconcile()
        await self._catch_up((await self._lineage())[0].sequence)
        return self.state

    async def emit(
        self,
        type: str,
        data: object = None,
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
        **attributes: Unpack[Attributes],
    ) -> Event:
        """Record an event; when this returns, it survives a crash and power loss.

        On a cluster `ack` says what it waits for: "sent" (nothing), "durable" (the default: the log
        has it, on all its replicas) or "recorded" (it has its sequence and can be read). Before it
        is recorded its `sequence` is 0; should it be refused, a later call says so instead of
        writing, or `close` does. A write with an `expected_sequence` always waits. One folder
        records at once, whatever `ack` is.

        Given an `id` (or `writer` and `writer_sequence`) that is recorded already, nothing is
        written and the recorded event is the answer.

        Raises:
            WriterFenced: the agent was opened by another process since.
            SequenceConflict: the stream's last sequence is not `expected_sequence`.
            InvalidInput: the type, data or an attribute is not allowed; nothing was written.
            PerdureError: what an earlier write was refused with; nothing was written.
        """
        new = checked(NewEvent(type=type, data=data, **attributes))
        answers = await self._append((new,), expected_sequence, ack)
        return answers[0]

    async def emit_many(
        self,
        events: Iterable[NewEvent | tuple[str, object]],
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
    ) -> list[Event]:
        """Record several events in one go, all or none: each a NewEvent or a (type, data) pair."""
        new = tuple([checked(as_new_event(event)) for event in events])
        return await self._append(new, expected_sequence, ack) if new else []

    async def remember(
        self,
        text: str,
        *,
        source: str | None = None,
        context: Mapping[str, object] | None = None,
        time: dt.datetime | None = None,
        **metadata: object,
    ) -> Memory:
        """Remember a text, with where it comes from and any fields of your own.

        Durable when it returns. Its embedding is computed when memory is next asked.

        Raises:
            InvalidData: the text is empty, or a field is not JSON-able.
        """
        data: dict[str, object] = {"text": checked_text("text", text)}
        if source is not None:
            data["source"] = source
        if context:
            data["context"] = dict(context)
        if metadata:
            data["metadata"] = metadata
        new = checked(NewEvent(type="memory.stored", data=data, time=time))
        [event] = await self._append((new,), None)
        kept = event.data if isinstance(event.data, dict) else {}
        return msgspec.convert(
            {
                **kept,
                "id": event.id,
                "agent": event.subject,
                "sequence": event.sequence,
                "time": event.time,
            },
            Memory,
        )

    async def forget(self, memory: str | Memory) -> Event:
        """Forget a memory: it is no longer recalled, except as of an earlier sequence.

        Raises:
            NotFound: the agent has no such memory, or has forgotten it.
        """
        key = memory.id if isinstance(memory, Memory) else names.key("memory id", memory)
        if key not in self.state.memories.ids:
            await self.refresh()
        if key not in self.state.memories.ids:
            raise NotFound(
                f"agent {self.name} has no memory {key}",
                hint="agent.state.memories.ids lists those it has; recall gives them with their id",
            )
        return await self.emit("memory.forgotten", {"id": key})

    async def checkpoint(self, name: str, value: object) -> SavedObject:
        """Save any object under a name: zstd, deduplicated, checksummed. Older ones stay.

        It is encoded in a thread meanwhile: other tasks leave it alone until this returns.

        Raises:
            NotCheckpointable: the object holds something that can't be saved; names its path.
        """
        names.key("checkpoint name", name)
        packed = await asyncio.to_thread(objects.pack, value, self._session.classes)
        stored = await self._backend.blobs.put(packed.digest, packed.data)
        data: dict[str, JSON] = {
            "name": name,
            "digest": packed.digest,
            "size": packed.size,
            "stored": stored,
        }
        new = prepared(NewEvent(type="checkpoint.saved", data=data))
        [event] = await self._append((new,), None)
        return SavedObject(packed.digest, packed.size, stored, event.sequence)

    async def revert(self, to: int) -> Reverted:
        """Undo everything after sequence `to`: state, records, memory and checkpoints are as then.

        Undoing is an event, so it can be undone: revert to the sequence before it.

        Raises:
            NotFound: the agent has no sequence `to`.
        """
        lineage = await self._lineage()
        self._checked_at(lineage, checked_sequence("to", to), None)
        new = prepared(NewEvent(type="agent.reverted", data={"to": to}))
        [event] = await self._append((new,), None, "recorded")
        # Looked for when it is known what was undone: others may have written until then.
        effects = []
        for span in undone(await self._lineage(), event.sequence - 1, to):
            async for batch in self._backend.events.read(span):
                effects += [each for each in batch.events if each.type in _EFFECTS]
        return Reverted(event, effects)

    def messages(self, for_provider: Literal["openai", "anthropic"] | None = None) -> Conversation:
        """The conversation as a provider accepts it, whatever a crash has left of it.

        Calls without an answer are answered as interrupted, answers without a call are set aside;
        `.repairs` says what was done. The log is not touched. Without a provider: as recorded,
        in the form of OpenAI's.
        """
        return heal(self.state.messages, for_provider or "openai")

    async def close(self) -> None:
        """Finish what is under way. The agent can be opened again by anybody.

        Raises:
            WriterFenced: another process has opened the agent, and what this one wrote last was
                acknowledged by the log and then refused.
            PerdureError: what another write was refused with, if no call after it has said so.
        """
        self._session.opened.discard(self)
        with contextlib.suppress(Unavailable):
            await self._confirmation.wait()
        # What is left to do saves time and space, nothing else: where it fails, it is left.
        with contextlib.suppress(PerdureError):
            self._fold_pending()
        await self._saved_all()
        self._save_when_due(at_rest=True)
        await self._saved_all()
        with contextlib.suppress(PerdureError):
            await self._backend.log.settle(self.name)
        if self._refusals:
            raise self._refusals.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _append(
        self,
        events: tuple[Prepared, ...],
        expected_sequence: int | None,
        ack: Ack | None = None,
    ) -> list[Event]:
        if self._refusals:
            raise self._refusals.popleft()
        if self._fenced is not None:
            raise self._fenced.with_traceback(None)
        await self._confirmation.room()
        answers = await self._session.append(
            self.name, events, epoch=self.epoch, expected_sequence=expected_sequence, ack=ack
        )
        try:
            newest = answers[-1]
            if isinstance(newest, Sent):
                self._assume(events, answers, newest)
            else:
                await self._follow(events, answers)
        except PerdureError as error:
            # Raised to who asks for the state: here it would say that nothing was recorded.
            self._failure, self._pending = error, []
        return answers

    async def _follow(self, events: Sequence[Prepared], answers: list[Event]) -> None:
        """Have the state follow what was just recorded."""
        known, last = self._sequence, max([answer.sequence for answer in answers])
        catching_up = self._catching_up.locked()  # What it read may lack this.
        if (
            not catching_up
            and last == known + len(answers)
            and answers[0].sequence == known + 1
            and self._failure is None
            and not any(event.type == "agent.reverted" for event in answers)
        ):
            self._sequence = last
            self._pending += answers
            self._tail_bytes += _size(events)
            if len(self._pending) >= PENDING_MAX:
                self._fold_pending()
                self._save_when_due()
        elif last > known or self._failure is not None or catching_up:
            # Others have written in between.
            await self._confirmation.wait()
            await self._catch_up(last)

    def _assume(self, events: Sequence[Prepared], answers: list[Event], newest: Sent) -> None:
        """Have the state follow what was acknowledged, as if nobody else wrote."""
        self._assumptions += 1
        named = any([event.id is not None or event.writer is not None for event in events])  # noqa: C419
        if newest.log_position:
            self._confirmation.sent(newest.position, apart=named)
        if named or not newest.log_position:
            self._doubtful = True
        for answer in answers:
            self._sequence += 1
            self._pending.append(msgspec.structs.replace(answer, sequence=self._sequence))
        self._tail_bytes += _size(events)
        if len(self._pending) >= PENDING_MAX:
            self._fold_pending()

    async def _reconcile(self) -> None:
        """Make the state the recorded one, now that all that was assumed is recorded."""
        before = self._assumptions
        sequence = (await self._stored_lineage())[0].sequence
        if before == self._assumptions and (sequence != self._sequence or self._doubtful):
            async with self._catching_up:
                self._doubtful = not await self._reload()

    def _take_refusal(self, error: PerdureError) -> None:
        self._refusals.append(error)
        if isinstance(error, WriterFenced):
            self._fenced = self._failure = error
            self._pending = []
        else:
            self._doubtful = True  # The state has it.

    def _fold_pending(self) -> None:
        if self._pending:
            # Cleared when they are folded: what an upcaster fails on must not be left out silently.
            self._state = DEFAULT.fold(self._state, self._session.upcasters.lift(self._pending))
            self._pending = []

    async def _lineage(self) -> list[Stream]:
        # Whoever reads through the handle sees what was written through it.
        await self._confirmation.wait()
        return await self._stored_lineage()

    async def _stored_lineage(self) -> list[Stream]:
        return await super()._lineage()

    async def _catch_up(self, to: int) -> None:
        async with self._catching_up:
            if to <= self._sequence and self._failure is None:
                return
            lineage = await self._stored_lineage()
            known = self._sequence
            if self._failure is not None or any(
                revert.sequence > known for revert in lineage[0].reverts
            ):
                await self._reload()
                return
            state, size = self.state, 0
            for span in onward(history(lineage, to), known + 1):
                async for batch in self._backend.events.read(span):
                    state = DEFAULT.fold(state, self._session.upcasters.lift(batch.events))
                    size += batch.size
            # An emit may have come in between, and have seen no gap.
            if state.sequence > self._sequence:
                self._take_over(state)
                self._tail_bytes += size
                self._save_when_due()

    def _take_over(self, state: State) -> None:
        self._state, self._sequence, self._pending = state, state.sequence, []
        self._failure = None

    async def _reload(self) -> bool:
        """Restore the state, with `_catching_up` held: who is answered meanwhile waits for that.

        False where it is left as it is: what was sent meanwhile is reconciled when it is recorded.
        """
        before = self._assumptions
        lineage = await self._stored_lineage()
        restored = await self._restored(DEFAULT, lineage, lineage[0].sequence)
        if before != self._assumptions:
            return False
        self._take_over(restored.state)
        self._sequence = restored.sequence
        self._saved_bytes, self._tail_bytes = restored.saved, restored.folded
        self._save_when_due(at_rest=True)
        return True

    def _save_when_due(self, *, at_rest: bool = False) -> None:
        if self._backend.keeps_states:
            return
        if self._saving is None and policy.due(
            self._tail_bytes, self._saved_bytes, at_rest=at_rest
        ):
            self._tail_bytes = 0
            self._saving = asyncio.create_task(self._save())
            self._saving.add_done_callback(self._saved)

    async def _saved_all(self) -> None:
        if self._saving is not None:
            await asyncio.wait([self._saving])

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving = None
        if not task.cancelled() and task.exception() is not None:
            # The store can't take it now: a checkpoint is never needed, the next one will do.
            self._tail_bytes = 0

    async def _save(self) -> None:
        lineage = await self._stored_lineage()
        restored = await self._restored(DEFAULT, lineage, lineage[0].sequence)
        if lineage[0].forked_at < restored.sequence:
            self._saved_bytes = await self._keep(DEFAULT, restored)


_EFFECTS = frozenset({"tool.called", "tool.executed", "step.started", "step.completed"})


def as_new_event(event: object) -> NewEvent:
    """A NewEvent of what `emit_many` takes.

    Raises:
        InvalidData: it is neither a NewEvent nor a pair.
    """
    if isinstance(event, NewEvent):
        return event
    if isinstance(event, tuple) and len(event) == 2:
        return NewEvent(type=event[0], data=event[1])
    raise InvalidData(
        f"{type(event).__name__} is no event", hint="give NewEvent(type=…, data=…) or (type, data)"
    )


def _size(events: Sequence[Prepared]) -> int:
    return sum([len(event.encoded) + ENVELOPE_BYTES for event in events])


def checked(event: NewEvent) -> Prepared:
    """An event as users may emit it, checked and copied.

    Raises:
        InvalidInput: see `event.prepared` and `vocabulary.check`; reserved types too.
    """
    new = prepared(event)
    if new.type in vocabulary.RESERVED:
        raise InvalidData(
            f"events of type {new.type} are written by perdure itself",
            hint=f"call {vocabulary.RESERVED[new.type]}",
        )
    if new.version is None or new.version == 1:
        vocabulary.check(new.type, new.data)  # type: ignore[arg-type]  # prepared: it is JSON now
    return new
