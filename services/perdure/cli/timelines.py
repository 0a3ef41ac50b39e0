"""`perdure fork` and `perdure revert`: another future, and undoing."""

import sys
from typing import Annotated, Final

import typer

from perdure.agent.agent import Reverted
from perdure.agent.store import Store
from perdure.cli import options, output, session
from perdure.errors import NotFound

FORK_EXAMPLES = """\b
Examples:
  perdure fork airline/mia --at 42 --name airline/mia-what-if
  perdure fork airline/mia --at 2026-11-01T10:00Z --name airline/mia-before
"""

REVERT_EXAMPLES = """\b
Examples:
  perdure revert airline/mia --to 42
  perdure revert airline/mia --to 42 --yes --json
"""


EFFECT_CHARACTERS: Final = 160
"""Of an effect's data, on the screen: --json has all of it."""


def fork(
    agent: options.AgentName,
    *,
    name: Annotated[str, typer.Option(metavar="NEW", help="Name of the fork: namespace/name")],
    at: Annotated[
        options.Point | None,
        typer.Option(
            metavar=options.POINT,
            parser=options.point,
            help="Where it leaves the history; the latest if left out",
            show_default=False,
        ),
    ] = None,
    load: options.Load = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Make an agent that shares another's history up to a point.

    Nothing is copied, and the other agent is not disturbed. With --json, one document: agent,
    sequence (of the fork's first own event), parent and forked_at.
    """
    point = at or options.Point()

    async def work() -> None:
        async with session.opened(store, load) as opened:
            forked = await opened.fork(agent, point.seq, name=name, time=point.time)
            sequence = forked.state.sequence
            await forked.close()
        last = sequence - 1  # of what is shared
        if as_json:
            output.json_value(
                {"agent": name, "sequence": sequence, "parent": agent, "forked_at": last}
            )
        else:
            output.line(f"{output.safe(name)} goes on from {output.safe(agent)}@{last}")

    session.run(work())


def revert(
    agent: options.AgentName,
    *,
    to: Annotated[int, typer.Option(metavar="SEQ", help="Undo everything after this sequence")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Don't ask (it is asked on a terminal alone)")
    ] = False,
    load: options.Load = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Undo everything that an agent did after a sequence.

    State, records, memory and checkpoints are as they were then. This takes the agent over: a
    process that has it open can't write to it any more. Undoing is an event, so it can be undone:
    revert to the sequence before it. Lists the undone events that touched the outside, which no
    undo takes back. With --json, one document: event and effects.
    """

    async def work() -> None:
        async with session.opened(store, load) as opened:
            await _ask(opened, agent, to, sure=yes)
            async with await opened.agent(agent) as mine:
                undone = await mine.revert(to)
        if as_json:
            output.json_value(
                {
                    "event": undone.event.to_cloudevent(),
                    "effects": [effect.to_cloudevent() for effect in undone.effects],
                }
            )
            return
        _show(agent, to, undone)
        output.note(
            f"to undo this: perdure revert {output.safe(agent)} --to {undone.event.sequence - 1}"
            f"{output.store_option(store)}"
        )

    session.run(work())


async def _ask(store: Store, agent: str, to: int, *, sure: bool) -> None:
    # Looked at before it is opened: opening takes the agent from whoever has it.
    last = await store.view(agent).sequence()
    if not 0 <= to <= last:
        raise NotFound(
            f"agent {agent} has no sequence {to}: its last is {last}",
            hint=f"give one from 0 to {last}",
        )
    output.note(f"this opens {agent}: a process that has it open can't write to it any more")
    asks = not sure and sys.stdin.isatty() and sys.stderr.isatty()
    if asks and not typer.confirm(f"undo {agent} from {last} back to {to}?", err=True):
        output.note("nothing was undone")
        raise typer.Exit(1)


def _show(agent: str, to: int, undone: Reverted) -> None:
    output.line(
        f"{output.safe(agent)} is as it was at {to} (recorded as event {undone.event.sequence})"
    )
    if undone.effects:
        effects = output.counted(len(undone.effects), "effect")
        output.line(f"{effects} on the outside can't be taken back:")
    for effect in undone.effects:
        data = output.shortened(output.compact(effect.data), EFFECT_CHARACTERS)
        output.line(f"{effect.sequence:>6}  {effect.type:<16}  {data}")
