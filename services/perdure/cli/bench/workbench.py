"""What every measurement works with: a folder, the runs, the sizes, and how to tell of progress."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from perdure.agent.connect import connect
from perdure.cli.bench.rounds import Tick
from perdure.errors import InvalidData, InvalidInput
from perdure.model.event import JSON
from perdure.model.runs import Run, parse_run

SHIPPED: Final = Path(__file__).parents[1] / "data" / "airline-runs.jsonl"

RECORDS: Final = 1_000
"""Records of the agents of different lengths: their state is the same size at each length."""
RECORD_CHARACTERS: Final = 1_000
EVENTS_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `slices` of each contender take turns within a round."""

    rounds: int
    slices: int
    emits: int
    """Events of a slice that are emitted one at a time."""
    burst: int
    """Events of a slice that are emitted together; fits groups of 64 and of 100."""
    fold: int
    """Events of the agent that is folded."""
    lengths: tuple[int, ...]
    """Events of the agents that are opened, rising."""
    memory: int
    """Events that are imported and read while memory is watched."""


# Many short rounds rather than few long ones: the median then stands for a machine that is left
# alone, even where this one isn't.
FULL: Final = Scale(
    rounds=25,
    slices=2,
    emits=100,
    burst=1_600,
    fold=10_000,
    lengths=(1_000, 100_000, 1_000_000),
    memory=1_000_000,
)
QUICK: Final = Scale(
    rounds=7,
    slices=1,
    emits=100,
    burst=1_600,
    fold=2_000,
    lengths=(1_000, 5_000, 20_000),
    memory=50_000,
)


@dataclass(slots=True)
class Workbench:
    """The setting of one run of the benchmark. Its folder is the measurements' to fill."""

    folder: Path
    runs: Sequence[Run]
    scale: Scale
    begin: Callable[[str, int], Tick]
    """Tells that a part begins and of how many steps it is; gives what to call after each."""
    _built: set[int] = field(default_factory=set)

    def new_folder(self, name: str) -> Path:
        """An empty folder for a contender."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder

    def messages(self) -> "Iterator[dict[str, JSON]]":
        """The messages of all runs, in order, again and again."""
        return itertools.cycle([message for run in self.runs for message in run.messages])

    def bodies(self) -> list[bytes]:
        """The JSON bytes of the messages of all runs."""
        return [msgspec.json.encode(message) for run in self.runs for message in run.messages]

    async def long_agent(self, length: int) -> tuple[Path, str]:
        """An agent of so many events, each putting one of `RECORDS` records anew; made once."""
        folder, name = self.folder / "long", f"bench/of-{length}"
        if length in self._built:
            return folder, name
        texts = self.texts()
        tick = self.begin(f"building an agent of {length:,} events", length // EVENTS_AT_ONCE)
        async with connect(folder) as store:
            agent = await store.agent(name)
            for first in range(0, length, EVENTS_AT_ONCE):
                numbers = range(first, min(first + EVENTS_AT_ONCE, length))
                await agent.emit_many(
                    [("record.put", record(number, next(texts))) for number in numbers]
                )
                tick()
            await agent.close()
        self._built.add(length)
        return folder, name

    def texts(self) -> Iterator[str]:
        """Pieces of what was said in the runs, of one length, again and again."""
        said = "".join(
            content
            for run in self.runs
            for message in run.messages
            if isinstance(content := message.get("content"), str)
        )
        # At least one piece and a bit, however short the runs are.
        said *= 1 + 2 * RECORD_CHARACTERS // max(1, len(said))
        for at in itertools.count(step=RECORD_CHARACTERS - 1):
            start = at % (len(said) - RECORD_CHARACTERS)
            yield said[start : start + RECORD_CHARACTERS]


def record(number: int, text: str) -> "dict[str, JSON]":
    """The data of the `record.put` that is event `number` of a long agent."""
    return {"key": f"record-{number % RECORDS:04}", "value": {"number": number, "text": text}}


def load_runs(file: Path) -> list[Run]:
    """The recorded runs of a file.

    Raises:
        InvalidInput: it can't be read, or holds no runs with messages.

    >>> len(load_runs(SHIPPED))
    10
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise InvalidInput(
            f"{file} can't be read: {error.strerror or error}",
            hint="leave --runs out to measure on the runs that come with perdure",
        ) from error
    runs = [parse_run(line, number) for number, line in enumerate(lines, 1)]
    if not any(len(run.messages) > 1 for run in runs):
        raise InvalidData(f"{file} holds no run with messages", hint="give recorded runs")
    return [run for run in runs if run.messages]
