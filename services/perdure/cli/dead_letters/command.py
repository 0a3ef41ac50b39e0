"""`perdure dead-letters`: records that could not be recorded, and sending them again."""

import base64
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import typer

from perdure.cli import options, output, session
from perdure.errors import NotFound
from perdure.kafka.journal import Entry
from perdure.replay.dead_letters import (
    Content,
    Letter,
    Place,
    check_unsent,
    contents,
    letter,
    letters,
    place,
    redriver,
)
from perdure.replay.topic import check_topic
from perdure.replay.verdicts import decided, following
from perdure.settings import Cluster

LIST_EXAMPLES: Final = """\b
Examples:
  perdure dead-letters list
  perdure dead-letters list --reason InvalidData --json
"""
SHOW_EXAMPLES: Final = """\b
Examples:
  perdure dead-letters show 3:17
  perdure dead-letters show 3:17 --json
"""
REDRIVE_EXAMPLES: Final = """\b
Examples:
  perdure dead-letters redrive 3:17
  perdure dead-letters redrive --all --reason "no agent airline/mia"
"""

VERDICT_SECONDS: Final = 10.0
"""How long it is waited for what the recorder decides."""

REASON_CHARS: Final = 70
"""How much of a reason a list shows."""

dead_letters = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"max_content_width": 100},
)


@dead_letters.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Records that could not be recorded, with the reason: list, show, send again."""
    if context.invoked_subcommand is None:
        output.line(context.get_help())


Name = Annotated[
    str, typer.Argument(metavar="PARTITION:OFFSET", help="Of its record, as list shows it")
]
Reason = Annotated[
    str | None,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="Only those whose reason has this text, or whose error this name",
        show_default=False,
    ),
]


@dead_letters.command("list", epilog=LIST_EXAMPLES)
def list_(
    *,
    reason: Reason = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """List the dead letters of a cluster.

    In the order of their records. With --json, a letter a line: id (PARTITION:OFFSET), time, key,
    error, reason, redriven (where it was sent to again), bytes.
    """
    cluster = session.settings_of(config)
    found = session.run(_found(cluster, reason))
    if as_json:
        for each in found:
            output.json_value(_line(each))
    elif found:
        rows = [
            (
                str(each.place),
                each.time[:19],
                _text(each.key),
                each.error,
                output.shortened(output.safe(each.reason), REASON_CHARS),
                ", ".join(each.redriven),
            )
            for each in found
        ]
        output.table(("letter", "put aside", "key", "error", "reason", "redriven"), rows)
    else:
        output.note("there are no dead letters")


@dead_letters.command(epilog=SHOW_EXAMPLES)
def show(
    name: Name,
    *,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a dead letter: the reason, the record's headers and its body.

    With --json, what list gives, and headers (an array of name and value) and value; values that
    are no text are objects with their base64.
    """
    cluster = session.settings_of(config)
    found, content = session.run(_shown(cluster, place(name)))
    if as_json:
        headers = [[name, _jsonable(value)] for name, value in content.headers]
        output.json_value(_line(found) | {"headers": headers, "value": _jsonable(content.value)})
        return
    pairs = [
        ("letter", str(found.place)),
        ("put aside", found.time),
        ("error", found.error),
        ("reason", found.reason),
        ("key", _text(found.key)),
    ]
    pairs += [("redriven as", each) for each in found.redriven]
    pairs += [("redriven from", found.origin)] if found.origin else []
    output.fields(pairs)
    output.line()
    output.fields([(name, _text(value)) for name, value in content.headers])
    output.line()
    for each in _body(content.value):
        output.line(output.safe(each))


@dead_letters.command(epilog=REDRIVE_EXAMPLES)
def redrive(
    name: Annotated[
        str | None,
        typer.Argument(metavar="PARTITION:OFFSET", help="Which one; or --all", show_default=False),
    ] = None,
    *,
    all: Annotated[
        bool, typer.Option("--all", help="All that were not sent again yet, in their order")
    ] = False,
    reason: Reason = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was sent again before")] = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Send dead letters again, once what was wrong is mended.

    Each goes to the topic that it came from, as it was: same key, same body, same headers. It is
    decided like any other record, after all that is there: what the recorder decides is waited for
    and shown. What was sent again is noted; a second time it is refused without --again. With
    --json, a letter a line: id, redriven (its new PARTITION:OFFSET), outcome (recorded, refused,
    dead-letter; null where it isn't decided yet), error. The exit status is 1 when one was not
    recorded.
    """
    if (name is None) == (not all):
        raise typer.BadParameter("give the PARTITION:OFFSET of one, or --all")
    if name is not None and reason is not None:
        raise typer.BadParameter("--reason chooses among --all")
    cluster = session.settings_of(config)
    chosen = None if name is None else place(name)
    if not session.run(_redrive(cluster, chosen, reason, as_json, again=again)):
        raise typer.Exit(1)


async def _found(cluster: Cluster, reason: str | None) -> list[Letter]:
    await check_topic(cluster, "dead-letters")
    found = (await letters(cluster)).values()
    return [
        each for each in found if reason is None or reason == each.error or reason in each.reason
    ]


async def _shown(cluster: Cluster, chosen: Place) -> tuple[Letter, Content]:
    await check_topic(cluster, "dead-letters")
    found = await letter(cluster, chosen)
    for content in [content async for content in contents(cluster, [chosen])]:
        return found, content
    raise NotFound(f"dead letter {chosen} was deleted just now", hint="list them again")


async def _redrive(
    cluster: Cluster, chosen: Place | None, reason: str | None, as_json: bool, *, again: bool
) -> bool:
    if chosen is not None:
        wanted = [await letter(cluster, chosen)]
        if not again:
            check_unsent(wanted)
    else:
        wanted = [each for each in await _found(cluster, reason) if again or not each.redriven]
    if not wanted:
        output.note("there is nothing to send again")
        return True
    by_place = {each.place: each for each in wanted}
    sent: list[tuple[Letter, Place]] = []
    async with redriver(cluster) as sender, following(cluster) as verdicts:
        with output.progress("sending again", len(wanted)) as done:
            async for content in contents(cluster, by_place):
                sent.append((by_place[content.place], await sender.send(content)))
                done(len(sent))
        events = {(to.partition, to.offset) for _, to in sent if to.kind == "events"}
        entries = await decided(verdicts, events, VERDICT_SECONDS)
    rows = [(each, to, _entry(entries, to)) for each, to in sent]
    if as_json:
        for each, to, entry in rows:
            output.json_value(_outcome(each, to, entry))
    else:
        _show_outcomes(rows)
    return _all_went_well(rows)


def _all_went_well(rows: Sequence[tuple[Letter, Place, Entry | None]]) -> bool:
    """Whether all of it was recorded, as far as the recorder decides about it."""
    return all(
        to.kind != "events" or (entry is not None and entry.error is None) for _, to, entry in rows
    )


def _entry(entries: dict[tuple[int, int], Entry], to: Place) -> Entry | None:
    return entries.get((to.partition, to.offset)) if to.kind == "events" else None


def _outcome(each: Letter, to: Place, entry: Entry | None) -> dict[str, object]:
    return {
        "id": str(each.place),
        "redriven": str(to),
        "outcome": None if entry is None else entry.outcome,
        "error": None if entry is None or entry.error is None else entry.error.message,
    }


def _show_outcomes(rows: Sequence[tuple[Letter, Place, Entry | None]]) -> None:
    shown = []
    for each, to, entry in rows:
        outcome = "sent" if to.kind != "events" else "not decided yet"
        told = ""
        if entry is not None:
            outcome = entry.outcome
            told = "" if entry.error is None else output.safe(entry.error.message)
        shown.append((str(each.place), str(to), outcome, output.shortened(told, REASON_CHARS)))
    output.table(("letter", "sent as", "outcome", "reason"), shown)
    if any(outcome == "not decided yet" for _, _, outcome, _ in shown):
        output.note(
            f"within {VERDICT_SECONDS:.0f} s the recorder decided nothing about some: is it"
            " running? They are recorded when it does"
        )


def _line(each: Letter) -> dict[str, object]:
    return {
        "id": str(each.place),
        "time": each.time,
        "key": _jsonable(each.key),
        "error": each.error,
        "reason": each.reason,
        "redriven": list(each.redriven),
        "bytes": each.bytes,
    }


def _jsonable(value: bytes | None) -> object:
    """Text as text, and what is none as base64."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="backslashreplace")


def _body(value: bytes | None) -> list[str]:
    """A body for people: JSON in lines, other text as it is."""
    if value is None:
        return ["(no value)"]
    try:
        return msgspec.json.format(value, indent=2).decode().splitlines()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _text(value).splitlines() or ["(empty)"]
