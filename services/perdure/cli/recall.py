"""`perdure recall`: what an agent remembers about something."""

from typing import Annotated

import msgspec
import typer

from perdure.cli import options, output, session
from perdure.memorizer.memory import Hit, Scalar

EXAMPLES = """\b
Examples:
  perdure recall airline/mia 'where does she like to sit?'
  perdure recall airline/mia refunds -k 3 --source chat --where context.task=t-7
  perdure recall airline/mia seats --as-of 42 --json | jq .text

--where compares with JSON: count=3 is the number, count='"3"' the text, and anything that is
no JSON is text.
"""


def condition(text: str) -> tuple[str, Scalar]:
    """A `key=value` of --where: the value is JSON where it is valid JSON, else text.

    >>> condition("context.task=t-7"), condition("n=3"), condition('n="3"')
    (('context.task', 't-7'), ('n', 3), ('n', '3'))
    """
    key, separator, written = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"{text!r} is not of the form key=value, such as topic=seats")
    try:
        value = msgspec.json.decode(written)
    except (msgspec.MsgspecError, UnicodeError):
        return key, written
    if isinstance(value, str | int | float | None):
        return key, value
    raise typer.BadParameter(f"{text!r} compares with a list or object; give one text or number")


def recall(
    agent: options.AgentName,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in any words")],
    *,
    k: Annotated[int, typer.Option("-k", "--k", metavar="N", help="How many at most")] = 5,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only memories with this value in a field, such as topic or context.task "
            "(repeatable)",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Only memories from there", show_default=False),
    ] = None,
    as_of: Annotated[
        int | None,
        typer.Option(
            metavar="SEQ",
            help="Ask as of a past sequence: without what came later, with what was forgotten "
            "later",
            show_default=False,
        ),
    ] = None,
    store: options.Store = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the memories that fit a query, by meaning and by words.

    Memories are embedded when they are first asked for. With --json, a memory a line, best first,
    with its score and the parts of the score.
    """
    conditions = dict(condition(text) for text in where or ())

    async def work() -> None:
        async with session.opened(store) as opened:
            view = opened.view(agent)
            asked = view.recall(query, k, seq=as_of, source=source, where=conditions)
            hits = await output.waiting("embedding memories", asked)
        for hit in hits:
            if as_json:
                output.json_value(hit)
            else:
                _show(hit)
        if not hits and not as_json:
            output.note("nothing is remembered that fits")

    session.run(work())


def _show(hit: Hit) -> None:
    facts = {"source": hit.source, "context": hit.context, **hit.metadata}
    about = ", ".join(
        f"{key} {value if isinstance(value, str) else output.compact(value)}"
        for key, value in facts.items()
        if value not in (None, {})
    )
    output.styled(f"{hit.score:.2f}  {hit.text}", "bold")
    if about:
        output.line(f"      {output.safe(about)}")
    time = hit.time.isoformat(timespec="seconds").replace("+00:00", "Z")
    output.line(f"      {hit.agent}@{hit.sequence}, {time}, id {output.safe(hit.id)}")
    output.line(f"      {hit.explain()}")
