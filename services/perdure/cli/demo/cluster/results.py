"""What the demo on a cluster finds out, as values: computed in one place, printed in another."""

import msgspec

from perdure.cli.demo.results import AgentResult, Fork, Past, Recall, Restart, Tally, Verified


class Kill(msgspec.Struct, frozen=True):
    """One SIGKILL of the agents' process or of a service.

    `second` of the work, after so many `acknowledged` events. `behind`: records that the recorder
    had not recorded then. `runs_cut_short` had begun and not ended; None where a service was
    killed. `away`: seconds until the service was ready again; None of the agents' process.
    """

    victim: str
    second: float
    acknowledged: int
    behind: int
    runs_cut_short: int | None = None
    away: float | None = None


class Sample(msgspec.Struct, frozen=True):
    """At a `second` of the work: how many records each service had not committed yet."""

    second: float
    behind: dict[str, int]


class Work(msgspec.Struct, frozen=True):
    """How the work was done through all kills.

    `seconds` to the last acknowledgement, and `drained` more until every service was seen to have
    committed everything. `starts` are those of the agents' process.
    """

    seconds: float
    drained: float
    kills: list[Kill]
    starts: list[Restart]
    lag: list[Sample]


class Rows(msgspec.Struct, frozen=True):
    """A table of Cassandra and how many rows it has."""

    table: str
    rows: int
    holds: str


class HeadRow(msgspec.Struct, frozen=True):
    """The static columns beside an agent's events: one write with them, so they can't disagree.

    `position` is the offset of the record that brought the last event, `bytes` those of all events.
    """

    agent: str
    last: int
    epoch: int
    position: int
    chain: str
    bytes: int


class Collection(msgspec.Struct, frozen=True):
    """A collection of Weaviate: objects by tenant."""

    name: str
    tenants: dict[str, int]


class Stored(msgspec.Struct, frozen=True):
    """What lies where: rows, objects, and files of checkpoint storage with their bytes.

    `manifest` is the table of those files.
    `checkpoints` were saved by the agents: `checkpoints_size` before and `checkpoints_stored` after
    compression, `checkpoints_json` as plain JSON. `snapshots` is one JSON document of the state for
    each event, `events_json` the events as JSON.
    """

    rows: list[Rows]
    manifest: Rows
    head: HeadRow
    collections: list[Collection]
    objects: int
    objects_bytes: int
    checkpoints: int
    checkpoints_size: int
    checkpoints_stored: int
    checkpoints_json: int
    events_json: int
    snapshots: int


class Chains(msgspec.Struct, frozen=True):
    """An agent's head in the generation that was written as it went, and in the rebuilt one."""

    agent: str
    live: HeadRow
    rebuilt: HeadRow

    @property
    def equal(self) -> bool:
        """Whether the same events are in both: the chain runs over all their bytes."""
        return (self.live.last, self.live.chain) == (self.rebuilt.last, self.rebuilt.chain)


class Replayed(msgspec.Struct, frozen=True):
    """A replay of the whole log into a fresh `generation`, which then is the one that is read.

    Meanwhile `reads` of states were answered, the `slowest` in so many milliseconds. `different` is
    what `replay` itself found; `chains` and `rows` are read from the tables.
    """

    generation: int
    seconds: float
    records: int
    events: int
    states: int
    memories: int
    different: int
    switched: bool
    chains: list[Chains]
    rows: list[Rows]
    reads: int
    slowest: float
    states_equal: bool
    recall_equal: bool


class ClusterResults(msgspec.Struct, frozen=True):
    """Everything the demo found out. `checks` names each claim and whether it held."""

    folder: str
    cluster: str
    store: str
    seed: int
    runs: int
    seconds: float
    work: Work
    tally: Tally
    agents: list[AgentResult]
    past: Past
    fork: Fork
    recall: Recall
    stored: Stored
    replayed: Replayed
    verified: Verified
    checks: dict[str, bool]
    commands: list[list[str]]

    @property
    def held(self) -> bool:
        """Whether every claim held."""
        return all(self.checks.values())
