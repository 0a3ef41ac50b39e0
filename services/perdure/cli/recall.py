"""`perdure recall`: what an agent remembers, or was told, about something."""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
import typer

from perdure.cli import options, output, session
from perdure.memorizer.memory import Hit, Scalar
from perdure.memorizer.messages import MESSAGES_MAX, text_of
from perdure.model.state import State

EXAMPLES = """\b
Examples:
  perdure recall airline/mia 'where does she like to sit?'
  perdure recall airline/mia refunds -k 3 --source chat --where context.task=t-7
  perdure recall airline/mia seats --as-of 42 --json | jq .text
  perdure recall airline/0.0 'what baggage?' --among messages --source user

--where compares with JSON: count=3 is the number, count='"3"' the text, and anything that is
no JSON is text.
"""


_MESSAGE_CHARS: Final = 400
"""How much of a message is shown: an answer of a tool can be pages long."""


class Among(StrEnum):
    """What is searched."""

    MEMORIES = "memories"
    MESSAGES = "messages"


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
    among: Annotated[
        Among | None,
        typer.Option(
            help="What to search. Default: memories, or messages where the agent has no memories",
            show_default=False,
        ),
    ] = None,
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
        typer.Option(
            metavar="SOURCE",
            help="Only memories from there, or messages of that role",
            show_default=False,
        ),
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
    """Find the memories, or messages, that fit a query, by meaning and by words.

    An agent that remembers nothing is searched for what was said: its newest 5,000 messages,
    without system prompts. What is searched is embedded first: memories once, messages each time.
    With --json, a hit a line, best first, with its score and the parts of the score.
    """
    conditions = dict(condition(text) for text in where or ())

    async def work() -> None:
        async with session.opened(store) as opened:
            view = opened.view(agent)

            async def asked(searched: Among) -> list[Hit]:
                with output.progress(f"embedding {searched}", None) as done:
                    return await view.recall(
                        query,
                        k,
                        among=searched.value,
                        seq=as_of,
                        source=source,
                        where=conditions,
                        progress=done,
                    )

            searched = among or Among.MEMORIES
            hits = [] if among is Among.MESSAGES else await asked(Among.MEMORIES)
            if not hits and among is not Among.MEMORIES:
                state = await view.state_at(as_of)
                if among is None and state.memories.count == 0:
                    searched = Among.MESSAGES
                    output.note(f"{agent} has no memories{_then(as_of)}: searching its messages")
                if searched is Among.MESSAGES:
                    _note_cut(state)
                    hits = await asked(Among.MESSAGES)
        for hit in hits:
            if as_json:
                output.json_value(hit)
            else:
                _show(hit, searched)
        if not hits and not as_json:
            output.note(_NOTHING[searched])

    session.run(work())


_NOTHING: Final = {
    Among.MEMORIES: "nothing is remembered that fits",
    Among.MESSAGES: "nothing was said that fits",
}


def _then(as_of: int | None) -> str:
    return "" if as_of is None else f" as of {as_of}"


def _note_cut(state: State) -> None:
    """Tell where there are more messages than are searched."""
    if len(state.messages) > MESSAGES_MAX:
        found = sum(text_of(message) is not None for message in state.messages)
        if found > MESSAGES_MAX:
            output.note(f"searching the newest {MESSAGES_MAX:,} of {found:,} messages")


def _show(hit: Hit, searched: Among) -> None:
    facts = {"source": hit.source, "context": hit.context, **hit.metadata}
    about = ", ".join(
        f"{key} {value if isinstance(value, str) else output.compact(value)}"
        for key, value in facts.items()
        if value not in (None, {})
    )
    text = hit.text
    if searched is Among.MESSAGES:
        text, about = (output.shortened(each, _MESSAGE_CHARS) for each in (text, about))
    output.styled(f"{hit.score:.2f}  {text}", "bold", indent=6)
    if about:
        output.line(f"      {output.safe(about)}")
    time = hit.time.isoformat(timespec="seconds").replace("+00:00", "Z")
    output.line(f"      {hit.agent}@{hit.sequence}, {time}, id {output.safe(hit.id)}")
    output.line(f"      {hit.explain()}")
