"""The agent process of the demo, `python -m perdure.cli.demo.worker` with five arguments.

They are the store, its own record of acknowledgements, how many runs, the number of the process,
and for how many seconds an agent thinks before each message.

It opens its agents, looks at their states to see where each stands, and goes on from there, all
of them at once. It knows nothing of being killed, and has no code for it but this looking.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import cast

import msgspec

import perdure
from perdure.cli.demo.journal import Journal, Opened
from perdure.cli.demo.script import (
    WORKSPACE,
    Workspace,
    agent_of,
    learn,
    new_workspace,
    shipped_runs,
    turns,
)
from perdure.model.runs import Run


async def work(url: str, journal: Journal, count: int, thinking: float) -> None:
    """Work through the first `count` runs, from wherever they stand, to their end."""
    runs = shipped_runs(count)
    async with perdure.connect(url) as store:
        started = time.perf_counter()
        agents = await asyncio.gather(*(store.agent(agent_of(run)) for run in runs))
        opened = Opened(journal.process, len(agents), time.perf_counter() - started)
        os.write(1, msgspec.json.encode(opened) + b"\n")
        await asyncio.gather(
            *(
                attend(agent, run, journal, thinking)
                for agent, run in zip(agents, runs, strict=True)
            )
        )


async def attend(agent: perdure.Agent, run: Run, journal: Journal, thinking: float) -> None:
    """One run, from where its agent stands.

    The last message of the state may have been cut short: its events are emitted again, and those
    that are there already are not recorded twice, because they have the same ids.
    """
    messages = agent.state.messages
    start = max(0, len(messages) - 1)
    workspace = new_workspace()
    if WORKSPACE in agent.state.checkpoints:
        workspace = cast("Workspace", await agent.restore(WORKSPACE))
    saved = workspace["messages_done"]
    for message in run.messages[saved:start]:
        learn(workspace, message)
    for index, turn in enumerate(turns(run)[start:], start):
        if thinking:
            await asyncio.sleep(thinking)  # in place of the model that a real agent would ask
        for new in turn.events:
            [event] = await agent.emit_many([new])
            journal.acknowledge(agent.name, event.sequence, id=event.id)
        if workspace["messages_done"] == index:
            learn(workspace, turn.message)
        if turn.checkpoint and saved <= index:
            kept = await agent.checkpoint(WORKSPACE, workspace)
            journal.acknowledge(agent.name, kept.sequence, digest=kept.digest)
            saved = index + 1
    await agent.close()


def main() -> None:
    """Run the process on its command line."""
    url, journal, count, process, thinking = sys.argv[1:]
    try:
        asyncio.run(work(url, Journal(Path(journal), int(process)), int(count), float(thinking)))
    except BrokenPipeError:
        sys.exit(1)  # whoever watched is gone


if __name__ == "__main__":
    main()
