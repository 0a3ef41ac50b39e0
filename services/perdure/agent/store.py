"""A store: the agents of one folder or cluster."""

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Self, Unpack

from perdure.agent.agent import Agent, Attributes, as_new_event, checked
from perdure.agent.session import Session
from perdure.agent.view import AgentView, Time
from perdure.errors import InvalidData
from perdure.model import names
from perdure.model.event import Event, NewEvent
from perdure.ports import Ack, AgentSummary


class Store:
    """The agents of one store. `perdure.connect()` gives one; close it, or use `async with`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._backend = session.backend

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._backend.url

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    async def agent(self, name: str) -> Agent:
        """Open an agent for writing, where it stopped; it is made if there is none.

        The newest opener has the agent: the next write of an earlier one raises WriterFenced.

        Raises:
            InvalidName: the name is not of the form namespace/name.
        """
        return await Agent.open(self._session, name)

    def view(self, name: str) -> AgentView:
        """An agent for reading only; who has it open is not disturbed."""
        return AgentView(self._session, name)

    async def emit(
        self,
        agent: str,
        type: str,
        data: object = None,
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
        **attributes: Unpack[Attributes],
    ) -> Event:
        """Contribute an event to an agent without opening it; see `Agent.emit`.

        No later call tells what became of it: on a cluster only `ack="recorded"` waits for that.
        """
        new = NewEvent(type=type, data=data, **attributes)
        [event] = await self.emit_many(agent, [new], expected_sequence=expected_sequence, ack=ack)
        return event

    async def emit_many(
        self,
        agent: str,
        events: Iterable[NewEvent | tuple[str, object]],
        *,
        expected_sequence: int | None = None,
        ack: Ack | None = None,
    ) -> list[Event]:
        """Contribute several events to an agent, all or none; see `Agent.emit_many` and `emit`."""
        names.agent_name(agent)
        new = tuple(checked(as_new_event(event)) for event in events)
        if not new:
            return []
        return await self._session.append(
            agent, new, epoch=None, expected_sequence=expected_sequence, ack=ack
        )

    async def fork(
        self, agent: str, at: int | None = None, *, name: str, time: Time | None = None
    ) -> Agent:
        """Fork an agent that need not be opened; see `AgentView.fork`."""
        return await self.view(agent).fork(at, name=name, time=time)

    async def agents(self, prefix: str = "") -> AsyncIterator[AgentSummary]:
        """The agents whose name starts with `prefix`, by name."""
        if not isinstance(prefix, str):
            raise InvalidData(f"prefix is {prefix!r}, not text", hint="for example airline/")
        async for page in self._backend.events.agents(prefix):
            for summary in page:
                yield summary

    async def close(self) -> None:
        """Close the agents that are open, and the store. Closing twice is harmless."""
        try:
            while self._session.opened:
                await self._session.opened.pop().close()
        finally:
            self._session.messages.close()
            await self._backend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
