"""What the work has left in the engines, and what it takes."""

from collections.abc import Sequence
from pathlib import Path

import perdure
from perdure.cli.demo.cluster.engines import Engines
from perdure.cli.demo.cluster.place import BLOBS
from perdure.cli.demo.cluster.results import Stored
from perdure.cli.demo.judge import Streams
from perdure.cli.demo.script import agent_of
from perdure.cli.demo.sizes import checkpoints, events_json
from perdure.model.runs import Run
from perdure.settings import Cluster

FIRST_GENERATION = 1


async def look(
    store: perdure.Store,
    engines: Engines,
    cluster: Cluster,
    *,
    folder: Path,
    runs: Sequence[Run],
    events: Streams,
    snapshot_bytes: int,
) -> Stored:
    """Count rows, objects and files; `snapshot_bytes` is known from looking back."""
    saved = await checkpoints(store, runs, events)
    files = [path.stat().st_size for path in (folder / BLOBS).rglob("*") if path.is_file()]
    return Stored(
        rows=await engines.rows(cluster, FIRST_GENERATION),
        manifest=await engines.manifest(cluster),
        head=await engines.head(cluster, FIRST_GENERATION, agent_of(runs[0])),
        collections=await engines.collections(cluster, FIRST_GENERATION),
        objects=len(files),
        objects_bytes=sum(files),
        checkpoints=saved.objects,
        checkpoints_size=saved.size,
        checkpoints_stored=saved.stored,
        checkpoints_json=saved.json,
        events_json=events_json(events),
        snapshots=snapshot_bytes,
    )
