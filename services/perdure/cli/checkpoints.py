"""`perdure checkpoints`: which objects an agent has saved."""

from typing import Annotated

import msgspec
import typer

from perdure.cli import options, output, session

EXAMPLES = """\b
Examples:
  perdure checkpoints airline/mia
  perdure checkpoints airline/mia --as-of 42 --json
"""


def checkpoints(
    agent: options.AgentName,
    *,
    as_of: Annotated[
        int | None,
        typer.Option(metavar="SEQ", help="Those of a past sequence", show_default=False),
    ] = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """List the objects that an agent has saved.

    The newest of each name, as `agent.restore(name)` gives it back. With --json, a checkpoint a
    line: name, digest (SHA-256), size and stored (bytes before and after compression) and
    sequence.
    """
    session.run(_checkpoints(agent, as_of, store, as_json))


async def _checkpoints(agent: str, as_of: int | None, store: str | None, as_json: bool) -> None:
    async with session.opened(store) as opened:
        found = await opened.view(agent).checkpoints(as_of)
    if as_json:
        for name, saved in found.items():
            output.json_value({"name": name, **msgspec.structs.asdict(saved)})
    elif found:
        rows = [
            (
                name,
                f"{saved.sequence}",
                output.size(saved.size),
                output.size(saved.stored),
                f"{saved.digest[:16]}…",
            )
            for name, saved in found.items()
        ]
        output.table(("name", "sequence", "size", "stored", "digest"), rows, right="lrrr")
    else:
        output.note(f"{output.safe(agent)} has saved no objects")
