"""What every measurement of a cluster works with: the engines, the runs, the sizes, the names."""

import contextlib
import datetime as dt
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import uuid_utils

from perdure.cli.bench.cluster import engines
from perdure.cli.bench.cluster.services import Services
from perdure.cli.bench.workbench import Workbench
from perdure.kafka import wire
from perdure.model.event import JSON, NewEvent
from perdure.model.sequencing import Append
from perdure.settings import Cluster

STORE: Final = wire.DEFAULT_STORE
WRITER: Final = "bench:1"


@dataclass(frozen=True, slots=True)
class ClusterScale:
    """How much is measured. `slices` of each contender take turns within a round."""

    rounds: int
    slices: int
    emits: int
    """Events of a slice that are emitted; fits groups of `IN_FLIGHT` and of a burst."""
    agents: int
    """Agents among which events are divided, where there are many."""
    backlog: int
    """Events of a slice that wait for the recorder; fits the agents."""
    inserts: int
    """Events of a slice that are inserted one by one."""
    samples: int
    """Of a latency in a slice: the median counts."""
    length: int
    """Events of the agent whose state is asked for."""
    counts: tuple[int, ...]
    """Numbers of agents, rising, at which the memory of services is looked at."""


FULL: Final = ClusterScale(
    rounds=15,
    slices=2,
    emits=4_000,
    agents=64,
    backlog=16_384,
    inserts=1_000,
    samples=15,
    length=100_000,
    counts=(1_000, 10_000, 100_000),
)
QUICK: Final = ClusterScale(
    rounds=3,
    slices=1,
    emits=1_000,
    agents=16,
    backlog=2_048,
    inserts=200,
    samples=5,
    length=5_000,
    counts=(50, 500),
)


@dataclass(frozen=True, slots=True)
class ClusterBench:
    """The setting of one run of the benchmark on a cluster."""

    base: Workbench
    """The folder, the runs and how to tell of progress."""
    engines: Cluster
    """Where the engines are."""
    scale: ClusterScale

    @contextlib.asynccontextmanager
    async def place(self, *names: str) -> AsyncIterator[Services]:
        """A cluster of its own name with these services; all of it is gone after."""
        name = f"bench_{uuid.uuid4().hex[:10]}"
        folder = self.base.new_folder(name)
        cluster = msgspec.structs.replace(
            self.engines,
            name=name,
            blobs=(folder / "blobs").as_uri(),
            archive=(folder / "archive").as_uri(),
            log_level="warning",
        )
        try:
            async with Services(cluster, folder) as services:
                for service in names:
                    await services.start(service)
                yield services
        finally:
            await engines.drop(cluster)

    def events(self, count: int) -> list[tuple[str, dict[str, JSON]]]:
        """The first so many messages of the runs, as (type, data), again from the first at need."""
        return [("message.added", each) for each in itertools.islice(self.base.messages(), count)]


class Writer:
    """Makes records as an agent process sends them, without a process that sends."""

    def __init__(self, agents: Sequence[str]) -> None:
        self.agents = agents
        self._number = itertools.count(1)

    def records(self, events: Sequence[tuple[str, dict[str, JSON]]]) -> Iterator[wire.Wire]:
        """A record for each event, the agents by turns."""
        for agent, event in zip(itertools.cycle(self.agents), events, strict=False):
            yield wire.encode(self.append(agent, event))

    def append(self, agent: str, event: tuple[str, dict[str, JSON]]) -> Append:
        """A write of one event with all that its record needs."""
        new = NewEvent(
            type=event[0],
            data=event[1],
            id=str(uuid_utils.uuid7()),
            time=dt.datetime.now(dt.UTC),
            version=1,
            writer=WRITER,
            writer_sequence=next(self._number),
        )
        return Append(agent, (new,), WRITER, by_id=False)
