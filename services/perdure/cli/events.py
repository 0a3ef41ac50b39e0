"""`perdure events`: what happened to an agent."""

from typing import Annotated

import typer

from perdure.cli import options, output, session
from perdure.model.event import Event

EXAMPLES = """\b
Examples:
  perdure events airline/mia
  perdure events airline/mia --type 'tool.*' --first 10 --last 20
  perdure events airline/mia --since 2026-11-01T10:00Z --json | jq .data
"""

_PROGRESS_EVENTS = 256
"""How often the progress bar is told."""


def events(
    agent: options.AgentName,
    *,
    first: Annotated[int, typer.Option(metavar="SEQ", help="From this sequence on")] = 1,
    last: Annotated[
        int | None, typer.Option(metavar="SEQ", help="Up to this sequence", show_default=False)
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Only this type; tool.* for all that start with tool. (repeatable)",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            parser=options.time_with_zone,
            help="At or after this time",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            parser=options.time_with_zone,
            help="Before this time",
            show_default=False,
        ),
    ] = None,
    load: options.Load = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """List an agent's events.

    Undone events and those from before a fork are there, too. With --json, a CloudEvent (1.0, JSON
    format) a line. Data are shown in the current version of their type.
    """

    async def work() -> None:
        async with session.opened(store, load) as opened:
            view = opened.view(agent)
            end = await view.sequence()
            total = max(0, (end if last is None else min(last, end)) - first + 1)
            scrolls = output.to_terminal()
            show = _json if as_json else _Line() if scrolls else _plain
            count = 0
            # On a terminal the lines themselves show how it goes on.
            with output.progress("reading", total, when=not scrolls) as done:
                async for event in view.events(first, last, types=types, since=since, until=until):
                    show(event)
                    count += 1
                    if count % _PROGRESS_EVENTS == 0:
                        done(event.sequence - first + 1)
        if not count and not as_json:
            output.note("no events yet" if end == 0 else f"none of {end} events fits")

    session.run(work())


def _json(event: Event) -> None:
    output.json_value(event.to_cloudevent())


def _parts(event: Event) -> tuple[str, str, str, str]:
    return (
        f"{event.sequence:>6}",
        event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        f"{output.safe(event.type):<16}",
        output.compact(event.data),
    )


def _plain(event: Event) -> None:
    output.line("  ".join(_parts(event)))


class _Line:
    """Prints an event on a terminal, on one line of its width."""

    def __init__(self) -> None:
        self._console = output.console()

    def __call__(self, event: Event) -> None:
        from rich.text import Text

        sequence, time, kind, data = _parts(event)
        width = max(20, self._console.width - len(sequence) - len(time) - len(kind) - 6)
        text = Text(sequence, style="bold")
        text.append(f"  {time}", style="dim").append(f"  {kind}", style="cyan")
        text.append(f"  {output.shortened(data, width)}", style="not bold")
        self._console.print(text, no_wrap=True, overflow="ellipsis", crop=True)
