"""`perdure verify`: whether everything is as it was written."""

from typing import Annotated

import typer

from perdure.agent.store import Store
from perdure.agent.view import Verification
from perdure.cli import options, output, session

EXAMPLES = """\b
Examples:
  perdure verify
  perdure verify airline/mia --json
"""


def verify(
    agent: Annotated[
        str | None,
        typer.Argument(metavar="AGENT", help="namespace/name; all agents if left out"),
    ] = None,
    *,
    load: options.Load = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that everything is as it was written.

    Looks at hash chains, checksums, saved states and checkpoints. The exit status is 1 when
    something is found. With --json, an agent a line: agent, events and checkpoints that were
    looked at, findings (subject, problem, hint).
    """
    if not session.run(_verify(agent, load, store, as_json)):
        raise typer.Exit(1)


async def _verify(
    agent: str | None, load: list[str] | None, store: str | None, as_json: bool
) -> bool:
    agents = events = checkpoints = findings = 0
    async with session.opened(store, load) as opened:
        for name in [agent] if agent is not None else [a.agent async for a in opened.agents()]:
            found = await _verified(opened, name)
            agents += 1
            events += found.events
            checkpoints += found.checkpoints
            findings += len(found.findings)
            if as_json:
                output.json_value(found)
            else:
                _show(found)
    if not as_json:
        looked_at = ", ".join(
            output.counted(count, what)
            for count, what in ((agents, "agent"), (events, "event"), (checkpoints, "checkpoint"))
        )
        verdict = output.counted(findings, "finding") if findings else "all as it was written"
        output.styled(f"{looked_at} looked at: {verdict}", "red" if findings else "green")
    return not findings


async def _verified(store: Store, name: str) -> Verification:
    view = store.view(name)
    with output.progress(f"verifying {name}", await view.sequence()) as done:
        return await view.verify(progress=done)


def _show(found: Verification) -> None:
    for finding in found.findings:
        output.styled(f"{finding.subject}: {finding.problem}", "red")
        if finding.hint:
            output.line(f"  hint: {output.safe(finding.hint)}")
