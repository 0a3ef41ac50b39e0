"""The arguments and options that several commands share, so that they mean the same everywhere."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from perdure.errors import InvalidData
from perdure.model.event import utc

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH_OR_URL",
        help="A folder, file:///folder or perdure://host:port. Default: $PERDURE_STORE, ./.perdure",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="JSON on standard output, everything else on standard error")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The cluster's settings (TOML). Default: ./perdure.toml if there is one; variables"
        " such as PERDURE_KAFKA win over it",
        show_default=False,
    ),
]
AgentName = Annotated[str, typer.Argument(metavar="AGENT", help="namespace/name")]
Load = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        metavar="MODULE_OR_FILE",
        help="Python module or .py file with your projections and upcasters (repeatable)",
        show_default=False,
    ),
]

POINT = "SEQ|TIME"


class Point(NamedTuple):
    """A point in an agent's history: a sequence, or a time; the latest where both are None."""

    seq: int | None = None
    time: str | None = None


def point(text: str) -> Point:
    """A point as it is typed: a sequence, or ISO 8601 time with a zone.

    >>> point("42"), point("2026-11-01T10:00Z")
    (Point(seq=42, time=None), Point(seq=None, time='2026-11-01T10:00Z'))
    """
    if text.isascii() and text.removeprefix("-").isdigit():
        return Point(seq=int(text))
    try:
        utc("the point", text)
    except InvalidData as error:
        raise typer.BadParameter(
            f"{text!r} is neither a sequence nor a time with a zone, such as 42 or"
            " 2026-11-01T10:00Z"
        ) from error
    return Point(time=text)


def time_with_zone(text: str) -> str:
    """ISO 8601 time with a zone, as it is typed.

    >>> time_with_zone("2026-11-01T10:00Z")
    '2026-11-01T10:00Z'
    """
    try:
        utc("the time", text)
    except InvalidData as error:
        raise typer.BadParameter(
            f"{text!r} is no time with a zone, such as 2026-11-01T10:00Z"
        ) from error
    return text
