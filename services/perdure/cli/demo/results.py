"""What the demo finds out, as values: computed in one place, printed in another."""

import msgspec


class Kill(msgspec.Struct, frozen=True):
    """One SIGKILL, and what was found right after it.

    `acknowledged` and `recorded` are events of all agents so far; `unheard` of those recorded were
    never acknowledged: the kill came before the answer. `lost` were acknowledged and aren't there.
    `runs_cut_short` had begun and not ended.
    """

    acknowledged: int
    recorded: int
    unheard: int
    lost: int
    runs_cut_short: int


class Restart(msgspec.Struct, frozen=True):
    """A process that opened all agents, each where it stood."""

    agents: int
    milliseconds: float


class Crashes(msgspec.Struct, frozen=True):
    """The first part: how an agent process was killed and started again until it was done."""

    processes: int
    seconds: float
    kills: list[Kill]
    starts: list[Restart]


class Tally(msgspec.Struct, frozen=True):
    """The journal and the store, side by side with a run that nobody interrupted.

    `acknowledged` are distinct events, `asked_again` the answers beyond the first for one of them.
    `lost`: acknowledged, and not in the store as that event with that sequence. `missing` and
    `doubled`: in the store more seldom, or more often, than in the uninterrupted run.
    `out_of_order`: places in a stream where the two runs hold different events, or sequences that
    aren't 1, 2, 3 ….
    """

    recorded: int
    acknowledged: int
    asked_again: int
    lost: int
    missing: int
    doubled: int
    out_of_order: int


class AgentResult(msgspec.Struct, frozen=True):
    """One agent after the crashes. `cut_short` counts the kills that found it in mid-run."""

    agent: str
    customer: str
    messages: int
    events: int
    tool_calls: int
    memories: int
    cut_short: int
    state_equal: bool
    messages_equal: bool


class Past(msgspec.Struct, frozen=True):
    """Time travel: one agent's state at a sequence and now, and every past state of every agent.

    `states` were looked up, `states_equal` of them hold exactly the recorded messages up to there.
    `snapshot_bytes` is what all of them take as JSON.
    """

    agent: str
    then: int
    now: int
    fields: list[tuple[str, str, str]]
    until: int
    changes: list[str]
    states: int
    states_equal: int
    milliseconds: float
    snapshot_bytes: int


class Step(msgspec.Struct, frozen=True):
    """An event in a few words."""

    sequence: int
    type: str
    text: str


class Fork(msgspec.Struct, frozen=True):
    """A run, and a fork of it that went another way after sequence `at`."""

    agent: str
    fork: str
    at: int
    tool: str
    shared: list[Step]
    original: list[Step]
    other: list[Step]
    original_unchanged: bool
    shared_equal: bool


class Recalled(msgspec.Struct, frozen=True):
    """One memory that was found, and why."""

    text: str
    source: str | None
    sequence: int
    score: float
    explained: str


class Recall(msgspec.Struct, frozen=True):
    """A question to an agent's memory, now and as of the sequence before the best answer came."""

    agent: str
    question: str
    memories: int
    hits: list[Recalled]
    as_of: int
    hits_as_of: list[Recalled]
    past_kept_apart: bool


class Sizes(msgspec.Struct, frozen=True):
    """Bytes of the store as the crashes left it, and of the same as plain JSON.

    `objects` checkpoints were saved: `objects_size` before and `objects_stored` after compression,
    `objects_json` as plain JSON. `events_stored` are the pages of the events, every past state
    restorable from them (None where SQLite can't tell), `events_json` the same events and
    `messages_json` the messages alone as JSON, `snapshots` one JSON document of the state for each
    event. `store` is everything: memory, indexes, checkpoints and free pages too.
    """

    objects: int
    objects_size: int
    objects_stored: int
    objects_json: int
    messages_json: int
    events_json: int
    events_stored: int | None
    store: int
    snapshots: int


class Verified(msgspec.Struct, frozen=True):
    """What `verify` looked at, and what it found."""

    agents: int
    events: int
    checkpoints: int
    findings: list[str]


class Results(msgspec.Struct, frozen=True):
    """Everything the demo found out. `checks` names each claim and whether it held."""

    folder: str
    seed: int
    runs: int
    seconds: float
    crashes: Crashes
    tally: Tally
    agents: list[AgentResult]
    past: Past
    fork: Fork
    recall: Recall
    sizes: Sizes
    verified: Verified
    checks: dict[str, bool]
    commands: list[list[str]]

    @property
    def held(self) -> bool:
        """Whether every claim held."""
        return all(self.checks.values())
