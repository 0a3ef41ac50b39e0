"""Whether what was built from the log is what is live: agent by agent, while both go on.

Heads are compared where both stand at the same record; where one is ahead, its hash chain at the
sequence of the other one is. The chain runs over all stored bytes, so that one value says it all.

Invariants:
- Nothing is told as a difference that is only not there yet: each side is held to what it must
  have, by how far it was in the log before it was looked at.
"""

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Final, NamedTuple, Protocol

import msgspec

from perdure.errors import PerdureError, Unavailable
from perdure.recorder.recordings import Stream

AGENTS_AT_ONCE: Final = 32
"""Agents that are compared at the same time."""

DIFFERENCES_MAX: Final = 1000
"""Differences that are told one by one."""


class Difference(msgspec.Struct, frozen=True):
    """An agent that is not the same on both sides, and how."""

    store: str
    agent: str
    problem: str


class Side(Protocol):
    """The tables of all agents."""

    async def load(self, store: str, agent: str) -> Stream:
        """The agent as it is stored, `fresh` where there is none. Raises Unavailable, Corrupt."""
        ...

    async def chain_at(self, store: str, agent: str, sequence: int) -> bytes:
        """The hash chain after a sequence that the agent has. Raises Unavailable, Corrupt."""
        ...


class Sides(NamedTuple):
    """What is live, and what was built.

    `recorded` and `rebuilt` give, for a store's agent, the offset before which everything of its
    partition is in the live tables, and in those that were built.
    """

    live: Side
    built: Side
    recorded: Callable[[str, str], int]
    rebuilt: Callable[[str, str], int]


class Compared:
    """What was compared so far: agents, their events, and what is not the same."""

    def __init__(self) -> None:
        self.agents = self.events = self.count = 0
        self.differences: list[Difference] = []

    def add(self, difference: Difference) -> None:
        """Note a difference; beyond `DIFFERENCES_MAX` they are counted."""
        self.count += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)


async def compare(
    sides: Sides,
    live: AsyncIterable[list[tuple[str, str]]],
    built: AsyncIterable[list[tuple[str, str]]],
    done: Callable[[int], None],
) -> Compared:
    """Compare every agent (store, name) that either side lists; `done` is told how many were.

    Raises:
        Unavailable: the tables don't answer.
    """
    compared = Compared()
    gate = asyncio.Semaphore(AGENTS_AT_ONCE)
    looked = 0

    async def look(store: str, agent: str, *, of_built: bool) -> None:
        nonlocal looked
        async with gate:
            problem, stream = await difference(sides, store, agent, listed_built=of_built)
        if problem:
            compared.add(Difference(store, agent, problem))
        if stream is not None:
            compared.agents += 1
            compared.events += stream.head.sequence - stream.forked_at
        looked += 1
        done(looked)

    for listed, of_built in ((live, False), (built, True)):
        async for page in listed:
            await asyncio.gather(*(look(store, agent, of_built=of_built) for store, agent in page))
    return compared


async def difference(
    sides: Sides, store: str, agent: str, *, listed_built: bool
) -> tuple[str, Stream | None]:
    """How an agent is not the same on both sides, empty where it is; and what was built of it.

    An agent that is live is compared where the live ones are listed, any other one where those
    that were built are: asked from the other list it is passed over.

    Raises:
        Unavailable: the tables don't answer.
    """
    recorded, rebuilt = sides.recorded(store, agent), sides.rebuilt(store, agent)
    try:
        live = await sides.live.load(store, agent)
    except Unavailable:
        raise
    except PerdureError as error:
        return ("" if listed_built else f"live: {error.message}"), None
    if live.created is listed_built:
        return "", None
    built = await sides.built.load(store, agent)
    problem = judged(live, built, recorded, rebuilt)
    if not problem and live.created and built.created and live.position != built.position:
        problem = await _chains(sides, store, agent, live, built)
    return problem, built if built.created else None


def judged(live: Stream, built: Stream, recorded: int, rebuilt: int) -> str:
    """What is different, as far as the heads tell; the chain of the one ahead may tell more.

    Before the offset `recorded` everything is live, before `rebuilt` everything is built.
    """
    if not live.created and not built.created:
        return ""
    if live.created and built.created and live.position == built.position:
        return _unlike(live, built)
    ahead, behind, must = (
        (live, "the new generation", rebuilt)
        if built.position < live.position
        else (built, "what is live", recorded)
    )
    if ahead.position < must:
        return f"{behind} lacks what the record at offset {ahead.position} brought"
    return ""


def _unlike(live: Stream, built: Stream) -> str:
    pairs = {
        "sequence": (live.head.sequence, built.head.sequence),
        "epoch": (live.head.epoch, built.head.epoch),
        "chain": (live.head.chain.hex(), built.head.chain.hex()),
        "latest time": (live.head.time_max, built.head.time_max),
        "origin": ((live.parent, live.forked_at), (built.parent, built.forked_at)),
        "undone": (live.reverts, built.reverts),
        "bucket": ((live.bucket, live.events), (built.bucket, built.events)),
    }
    return ", ".join(
        f"{what} is {here} live and {there} in the new generation"
        for what, (here, there) in pairs.items()
        if here != there
    )


async def _chains(sides: Sides, store: str, agent: str, live: Stream, built: Stream) -> str:
    """Compare the chains at the sequence of the one that is behind."""
    ahead, side, behind = (
        (live, sides.live, built) if built.position < live.position else (built, sides.built, live)
    )
    sequence = behind.head.sequence
    if ahead.head.sequence == sequence:
        chain = ahead.head.chain
    else:
        try:
            chain = await side.chain_at(store, agent, sequence)
        except Unavailable:
            raise
        except PerdureError as error:
            return error.message
    if chain != behind.head.chain:
        return f"the chains at sequence {sequence} are not the same"
    return ""
