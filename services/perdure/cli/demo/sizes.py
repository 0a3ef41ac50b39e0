"""What the work takes on disk, beside the same as plain JSON."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

import msgspec

import perdure
from perdure.cli.demo import folder
from perdure.cli.demo.judge import Streams
from perdure.cli.demo.results import Sizes
from perdure.cli.demo.script import WORKSPACE, Workspace, agent_of, plain_json_size
from perdure.embedded.folder import DATABASE
from perdure.model.runs import Run

EVENTS: Final = "segments"
"""The table that holds the events."""


class Saved(NamedTuple):
    """Checkpoints of working objects: how many, and their bytes before and after compression.

    `json` is what they take as plain JSON.
    """

    objects: int
    size: int
    stored: int
    json: int


async def checkpoints(store: perdure.Store, runs: Sequence[Run], events: Streams) -> Saved:
    """Restore every checkpoint that the runs saved, and measure it."""
    count = size = stored = as_json = 0
    for run in runs:
        view = store.view(agent_of(run))
        for event in events[view.name]:
            if event.type != "checkpoint.saved":
                continue
            saved = (await view.state_at(event.sequence)).checkpoints[WORKSPACE]
            workspace = await view.restore(WORKSPACE, seq=event.sequence)
            count += 1
            size += saved.size
            stored += saved.stored
            as_json += plain_json_size(cast("Workspace", workspace))
    return Saved(count, size, stored, as_json)


async def measured(
    store: perdure.Store, path: Path, runs: Sequence[Run], events: Streams, snapshot_bytes: int
) -> Sizes:
    """Measure the store as the crashes left it; `snapshot_bytes` is known from looking back."""
    saved = await checkpoints(store, runs, events)
    return Sizes(
        objects=saved.objects,
        objects_size=saved.size,
        objects_stored=saved.stored,
        objects_json=saved.json,
        messages_json=messages_json(runs),
        events_json=events_json(events),
        events_stored=_table(path),
        store=folder.size(path),
        snapshots=snapshot_bytes,
    )


def messages_json(runs: Sequence[Run]) -> int:
    """Bytes of the recorded messages as JSON."""
    return sum(len(msgspec.json.encode(run.messages)) for run in runs)


def events_json(events: Streams) -> int:
    """Bytes of all events as JSON."""
    return sum(len(msgspec.json.encode(each)) for each in events.values())


def _table(path: Path) -> int | None:
    """Bytes of the pages that hold events; None where SQLite was built without `dbstat`."""
    uri = f"{(path / DATABASE).absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        try:
            row = connection.execute(
                "SELECT sum(pgsize) FROM dbstat WHERE name = ?", (EVENTS,)
            ).fetchone()
        except sqlite3.OperationalError:
            return None
    return int(row[0]) if row and row[0] is not None else None
