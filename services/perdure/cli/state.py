"""`perdure state` and `perdure diff`: what an agent was at any point, and what changed."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
import typer

from perdure.cli import options, output, session
from perdure.model.projection import DEFAULT, default_projections
from perdure.model.series import Map
from perdure.model.state import State, Task

V = TypeVar("V")

STATE_EXAMPLES = """\b
Examples:
  perdure state airline/mia
  perdure state airline/mia --at 42
  perdure state airline/mia --at 2026-11-01T10:00Z --json | jq .messages[-1]
  perdure state airline/mia --projection spending --load my_projections.py
"""

DIFF_EXAMPLES = """\b
Examples:
  perdure diff airline/mia 10 42
  perdure diff airline/mia 2026-11-01T10:00Z 2026-11-01T11:00Z
"""

_SHOWN_CHARS = 200
_SHOWN_ITEMS = 8
_COLOURS = {"added": "green", "removed": "red", "changed": "yellow"}


def state(
    agent: options.AgentName,
    *,
    at: Annotated[
        options.Point | None,
        typer.Option(
            metavar=options.POINT,
            parser=options.point,
            help="A sequence, or a time with a zone; the latest if left out",
            show_default=False,
        ),
    ] = None,
    projection: Annotated[
        str, typer.Option(metavar="NAME", help="A projection of yours instead")
    ] = DEFAULT.name,
    load: options.Load = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the state of an agent, now or at any point of its past.

    With --json, the whole state as one document; equal states give equal bytes.
    """
    point = at or options.Point()

    async def work() -> None:
        async with session.opened(store, load) as opened:
            known = default_projections.get(projection)
            value = await opened.view(agent).project(projection, point.seq, time=point.time)
        if as_json:
            output.json_bytes(known.encode(value))
        elif isinstance(value, State):
            _show(value)
        else:
            output.line(msgspec.json.format(known.encode(value), indent=2).decode())

    session.run(work())


def diff(
    agent: options.AgentName,
    before: Annotated[
        options.Point,
        typer.Argument(metavar="A", parser=options.point, help=f"{options.POINT} of the one state"),
    ],
    after: Annotated[
        options.Point,
        typer.Argument(metavar="B", parser=options.point, help=f"{options.POINT} of the other"),
    ],
    *,
    load: options.Load = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what changed in an agent's state between two points.

    With --json, a difference a line: path, kind (added, removed or changed), before and after.
    """

    async def work() -> None:
        async with session.opened(store, load) as opened:
            differences = await opened.view(agent).diff(_either(before), _either(after))
        for difference in differences:
            if as_json:
                output.json_value(difference)
            else:
                output.styled(str(difference), _COLOURS[difference.kind], indent=2)
        if not differences and not as_json:
            output.note("the two states are equal")

    session.run(work())


def _either(point: options.Point) -> int | str:
    return point.time if point.seq is None and point.time is not None else point.seq or 0


def _show(state: State) -> None:
    tools = [
        output.counted(len(state.tools.calls), "call"),
        output.counted(len(state.tools.results), "result"),
        output.counted(len(state.tools.failures), "failure"),
    ]
    output.fields(
        [
            ("agent", state.agent),
            ("sequence", f"{state.sequence}"),
            ("messages", f"{len(state.messages)}"),
            *(("", _message(message)) for message in list(state.messages)[-3:]),
            ("plan", "none" if state.plan is None else _short(state.plan)),
            ("decisions", f"{len(state.decisions)}"),
            *(("", _short(decision)) for decision in list(state.decisions)[-3:]),
            ("tools", ", ".join(tools)),
            *_listed("tasks", state.tasks, _task),
            *_listed("records", state.records, _short),
            ("memories", f"{state.memories.count}"),
            *_listed(
                "checkpoints",
                state.checkpoints,
                lambda saved: f"{output.size(saved.size)} at sequence {saved.sequence}",
            ),
        ]
    )


def _listed(name: str, items: Map[V], shown: Callable[[V], str]) -> list[tuple[str, str]]:
    newest = list(items.items())[-_SHOWN_ITEMS:]
    return [(name, f"{len(items)}"), *(("", f"{key}: {shown(value)}") for key, value in newest)]


def _task(task: Task) -> str:
    title = "" if task.title is None else f" – {task.title}"
    last = "" if task.last_action is None else f" (last: {task.last_action.type})"
    return output.shortened(f"{task.status}{last}{title}", _SHOWN_CHARS)


def _message(message: object) -> str:
    if not isinstance(message, dict):
        return _short(message)
    content = message.get("content")
    if not isinstance(content, str):
        content = output.compact(message.get("tool_calls", content))
    return output.shortened(f"{message.get('role')}: {content}", _SHOWN_CHARS)


def _short(value: object) -> str:
    return output.shortened(output.compact(value), _SHOWN_CHARS)
