"""A state as it is asked for over HTTP: at which point, of which projection, how fresh.

Invariants:
- An answer to `at_least` or `fresh` includes what it names, or there is no answer.
"""

import datetime as dt
from collections.abc import Callable
from typing import Final, Protocol

from perdure.errors import InvalidData, NotFound, Unreachable
from perdure.model.event import utc
from perdure.model.projection import DEFAULT
from perdure.model.timeline import history
from perdure.projector.states import Answer, Source, States

FRESH_SECONDS: Final = 30.0
"""How long an answer waits for what it has to include."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Freshness(Protocol):
    """Knows what has been recorded."""

    async def recorded(self, store: str, agent: str, position: str, wait_seconds: float) -> bool:
        """Whether what was written at a position can be read; waits at most so long."""
        ...

    async def caught_up(self, store: str, agent: str, wait_seconds: float) -> bool:
        """Whether all that was acknowledged before the call can be read; waits at most so long."""
        ...


class Desk:
    """Answers questions for states, of the agents of any store."""

    def __init__(
        self, states: States, source_of: Callable[[str], Source], freshness: Freshness
    ) -> None:
        self.states = states
        self.source_of = source_of
        self._freshness = freshness

    async def answer(
        self,
        store: str,
        agent: str,
        *,
        projection: str = DEFAULT.name,
        seq: int | None = None,
        time: str | None = None,
        before: str | None = None,
        at_least: str | None = None,
        fresh: bool = False,
    ) -> Answer:
        """The state after sequence `seq`, at `time`, or just before `before`; else the latest.

        Raises:
            NotFound: no such agent, sequence or projection.
            InvalidData: more than one point is given, a time has no zone, a position is none.
            Unreachable: what the answer has to include was not recorded in time.
        """
        if (seq is not None) + (time is not None) + (before is not None) > 1:
            raise InvalidData(
                "more than one of seq, time and before is given", hint="give one of them"
            )
        source = self.source_of(store)
        if at_least is not None and not await self._freshness.recorded(
            store, agent, at_least, FRESH_SECONDS
        ):
            raise _late(agent)
        if fresh and not await self._freshness.caught_up(store, agent, FRESH_SECONDS):
            raise _late(agent)
        if seq is None and time is None and before is None:
            return await self.states.latest(source, agent, projection)
        lineage = await source.events.lineage(agent)
        last = lineage[0].sequence
        if seq is None:
            inclusive = time is not None
            moment = utc("time" if inclusive else "before", time or before)
            microseconds = (moment - _EPOCH) // dt.timedelta(microseconds=1)
            spans = history(lineage, last)
            seq = await source.events.sequence_at(spans, microseconds, inclusive=inclusive)
        elif not 0 <= seq <= last:
            raise NotFound(
                f"agent {agent} has no sequence {seq}: its last is {last}",
                hint=f"give one from 0 to {last}",
            )
        if seq == last and time is None and before is None:
            return await self.states.latest(source, agent, projection)
        return await self.states.at(source, agent, seq, projection)


def _late(agent: str) -> Unreachable:
    return Unreachable(
        f"what was written of agent {agent} was not recorded within {FRESH_SECONDS:.0f} s",
        hint="look at /readyz and the lag of the recorder; what was acknowledged is safe",
    )
