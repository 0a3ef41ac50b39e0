"""Agents and their events: lists, lineages, histories, and what happens live."""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Annotated, Final

import msgspec
from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from perdure.errors import NotFound, PerdureError
from perdure.gateway.messages import (
    NDJSON,
    ChainBody,
    FindingsLine,
    HeadBody,
    SequenceAtQuestion,
    SequenceBody,
    StreamBody,
    begun,
    head_body,
    lines,
    spans_of,
    stream_body,
)
from perdure.gateway.service import POLL_SECONDS_MAX, Gateway
from perdure.gateway.sources import StoreSources
from perdure.gateway.verdicts import Listener
from perdure.model import names
from perdure.model.event import Event, checked_sequence, decode, encode, utc
from perdure.model.timeline import Span, history, onward
from perdure.ports import AgentSummary

AGENTS_MAX: Final = 1_000
"""The most agents of one page."""

BEAT_SECONDS: Final = 15.0
"""How often a silent stream of live events shows that it lives."""

_AGENT: Final = "/agents/{namespace:str}/{name:str}"


class AgentRoutes(Controller):
    """What is read of agents."""

    path = "/v1/stores/{store:str}"

    @get("/agents", summary="Agents by name, a page at a time")
    async def agents(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        prefix: FromQuery[str] = "",
        after: FromQuery[str] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=AGENTS_MAX)] = 100,
    ) -> list[AgentSummary]:
        """Those whose name starts with `prefix` and is greater than `after`, at most `limit`."""
        found: list[AgentSummary] = []
        async for page in gateway.of(store).events.agents(prefix, after=after):
            found += page
            if len(found) >= limit:
                break
        return found[:limit]

    @get(f"{_AGENT}/lineage", summary="The agent's stream, then its parent's, and so on")
    async def lineage(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
    ) -> list[StreamBody]:
        """A fork's parents, where each was forked from, and what was undone."""
        agent = _agent(namespace, name)
        return [stream_body(each) for each in await gateway.of(store).events.lineage(agent)]

    @get(f"{_AGENT}/head", summary="Where the agent stands")
    async def head(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
    ) -> HeadBody:
        """Its last sequence, its epoch and its hash chain."""
        return head_body(await gateway.of(store).events.head(_agent(namespace, name)))

    @get(f"{_AGENT}/events", summary="Events of the agent, a line each")
    async def events(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
        first: FromQuery[int] = 1,
        last: FromQuery[int | None] = None,
        types: Annotated[list[str] | None, QueryParameter(name="type")] = None,
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        own: FromQuery[bool] = False,
    ) -> Stream:
        r"""Stored events in order, and a last line `{"end":N}` with their number.

        A last line `{"error":…}` tells what went wrong instead; a stream with neither was cut.
        `first` and `last` are sequences, both included; `type` may be given several times and end
        in `.*`; `since` is included, `until` is not. With `own` only the agent's own stream is
        read, without its parents'.
        """
        agent = _agent(namespace, name)
        sources = gateway.of(store)
        checked_sequence("first", first, least=1)
        if own:
            if last is None:
                last = (await sources.events.head(agent)).sequence
            spans = [Span(agent, first, last)] if first <= last else []
        else:
            lineage = await sources.events.lineage(agent)
            end = lineage[0].sequence if last is None else min(last, lineage[0].sequence)
            spans = onward(history(lineage, end), first)
        wanted = _Wanted(types, since, until)
        stored = await begun(_stored(sources, spans, wanted))
        return Stream(lines(stored), media_type=NDJSON)

    @get(f"{_AGENT}/events/live", summary="Events of the agent as they are recorded")
    async def live(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
        after: FromQuery[int | None] = None,
        last_event_id: Annotated[str | None, HeaderParameter(name="last-event-id")] = None,
    ) -> Stream:
        """Server-sent events: `id` is the sequence, `event` the type, `data` the stored event.

        Starts with the event after the sequence `after`, or after the last event id that a client
        sends when it connects again; without either, with what is recorded next.
        """
        agent = _agent(namespace, name)
        if after is None and last_event_id is not None and last_event_id.isdecimal():
            after = int(last_event_id)
        sequence = (await gateway.of(store).events.head(agent)).sequence
        start = sequence if after is None else checked_sequence("after", after)
        return Stream(
            _live(gateway, store, agent, start),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    @post("/sequence-at", status_code=200, summary="The last sequence at a time")
    async def sequence_at(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        data: JSONBody[SequenceAtQuestion],
    ) -> SequenceBody:
        """That of the last event of `spans` before the first one that is later."""
        events = gateway.of(store).events
        found = await events.sequence_at(spans_of(data.spans), data.time, inclusive=data.inclusive)
        return SequenceBody(found)

    @get(f"{_AGENT}/chain-at/{{sequence:int}}", summary="The hash chain after an event")
    async def chain_at(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
        sequence: FromPath[int],
    ) -> ChainBody:
        """What a fork at this sequence goes on from."""
        agent = _agent(namespace, name)
        events = gateway.of(store).events
        lineage = await events.lineage(agent)
        if not 0 <= sequence <= lineage[0].sequence:
            raise NotFound(
                f"agent {agent} has no sequence {sequence}: its last is {lineage[0].sequence}",
                hint=f"give one from 0 to {lineage[0].sequence}",
            )
        spans = history(lineage, sequence)
        owner = spans[-1].agent if spans else lineage[-1].agent
        return ChainBody((await events.chain_at(owner, sequence)).hex())

    @get(
        f"{_AGENT}/verify", summary="Whether the agent's events are what was written, a line a step"
    )
    async def verify(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
    ) -> Stream:
        """Lines with the number of `events` that were looked at and the `findings`; then an end."""
        agent = _agent(namespace, name)
        events = gateway.of(store).events
        await events.head(agent)  # where there is no such agent, that is the answer
        findings = await begun(_findings(gateway.of(store), agent))
        return Stream(lines(findings), media_type=NDJSON)

    @get(f"{_AGENT}/caught-up", summary="Whether all that was acknowledged can be read")
    async def caught_up(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
        wait: Annotated[float, QueryParameter(name="timeout", ge=0, le=POLL_SECONDS_MAX)] = 0.0,
    ) -> bool:
        """Waits for it at most `timeout` seconds."""
        return await gateway.positions.caught_up(store, _agent(namespace, name), wait)


class _Wanted:
    """Which events are asked for."""

    def __init__(self, types: Collection[str] | None, since: str | None, until: str | None) -> None:
        self._exact = frozenset(types or ())
        self._prefixes = tuple(name[:-1] for name in types or () if name.endswith(".*"))
        self._since = None if since is None else utc("since", since)
        self._until = None if until is None else utc("until", until)
        self.everything = types is None and since is None and until is None
        self.exactly = self._exact if not self._prefixes else frozenset()
        """The types asked for, where an index knows them."""

    def __call__(self, event: Event) -> bool:
        return (
            (
                not (self._exact or self._prefixes)
                or event.type in self._exact
                or (bool(self._prefixes) and event.type.startswith(self._prefixes))
            )
            and (self._since is None or event.time >= self._since)
            and (self._until is None or event.time < self._until)
        )


async def _stored(
    sources: StoreSources, spans: Sequence[Span], wanted: _Wanted
) -> AsyncIterator[list[bytes]]:
    for span in spans:
        if wanted.everything:
            async for page in sources.events.read_stored(span):
                yield page
            continue
        if wanted.exactly:
            found = sources.events.by_type(
                span.agent, wanted.exactly, first=span.first, last=span.last
            )
        else:
            found = sources.events.read(span)
        async for batch in found:
            yield [encode(event) for event in batch.events if wanted(event)]


async def _findings(sources: StoreSources, agent: str) -> AsyncIterator[list[bytes]]:
    async for events, findings in sources.events.verify(agent):
        yield [msgspec.json.encode(FindingsLine(events, findings))]


async def _live(gateway: Gateway, store: str, agent: str, sequence: int) -> AsyncIterator[bytes]:
    with gateway.journal.verdicts.listening(store, agent) as listener:
        # Registered first, read then: what is recorded in between comes twice, and is left out.
        listener.missed = True
        while not listener.ended:
            try:
                async for event in _news(gateway.of(store), agent, sequence, listener):
                    sequence = event.sequence
                    yield _sent_event(event)
            except PerdureError as error:
                yield f"event: error\ndata: {msgspec.json.encode(str(error)).decode()}\n\n".encode()
                return
            yield b": still here\n\n"


async def _news(
    sources: StoreSources, agent: str, sequence: int, listener: Listener
) -> AsyncIterator[Event]:
    """Events after a sequence: from the table what the listener missed, then what it hears."""
    while True:
        if listener.missed:
            listener.missed = False
            lineage = await sources.events.lineage(agent)
            for span in onward(history(lineage, lineage[0].sequence), sequence + 1):
                async for batch in sources.events.read(span):
                    for event in batch.events:
                        yield event
                        sequence = event.sequence
        heard = await listener.take(BEAT_SECONDS)
        for data in heard:
            event = decode(data)
            if event.sequence == sequence + 1:
                yield event
                sequence = event.sequence
            elif event.sequence > sequence:
                listener.missed = True
        if not heard and not listener.missed:
            return


def _sent_event(event: Event) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (
        event.sequence,
        event.type.encode(),
        encode(event),
    )


def _agent(namespace: str, name: str) -> str:
    return names.agent_name(f"{namespace}/{name}")
