"""`perdure agents`: which agents there are."""

from typing import Annotated

import typer

from perdure.cli import options, output, session

EXAMPLES = """\b
Examples:
  perdure agents
  perdure agents airline/
  perdure agents --json | jq -r .agent
"""


def agents(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Start of the names")] = "",
    *,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """List the agents of a store.

    With --json, an agent a line: agent, sequence, epoch, time of its last event, parent and
    forked_at (null and 0 where it is no fork).
    """
    rows = []

    async def work() -> None:
        async with session.opened(store) as opened:
            async for agent in opened.agents(prefix):
                if as_json:
                    output.json_value(agent)
                    continue
                fork = "" if agent.parent is None else f"{agent.parent}@{agent.forked_at}"
                rows.append((agent.agent, f"{agent.sequence}", agent.time or "", fork))

    session.run(work())
    if rows:
        output.table(("agent", "events", "last event", "forked from"), rows, right="lr")
    elif not as_json:
        output.note(f"no agent starts with {prefix}" if prefix else "the store has no agents yet")
