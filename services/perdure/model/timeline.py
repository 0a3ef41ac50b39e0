"""Which events a state is made of: forks and undo, as spans of streams.

Invariants:
- A fork's own events go on counting from its parent's: its first has the sequence after the fork.
- The history of an agent at `n` is every event up to `n`, undone or not, its parents' included.
- The timeline of an agent at `n` is what counts at `n`: after `agent.reverted` to `k`, the timeline
  at `k`, then the reverting event and what came after it.
- The timeline at any point that lies in a timeline is a prefix of it, so a state saved there is a
  state of it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Events `first` to `last`, both included, of one agent's own stream."""

    agent: str
    first: int
    last: int


class Revert(NamedTuple):
    """An `agent.reverted` event: where it stands, and the sequence it went back to."""

    sequence: int
    to: int


class Stream(NamedTuple):
    """What there is of an agent: where it was forked from and what was undone.

    `forked_at` is the parent's sequence of the fork, 0 for an agent without parent; `reverts`
    are in order of their sequence; `sequence` is the last recorded one.
    """

    agent: str
    sequence: int
    parent: str | None = None
    forked_at: int = 0
    reverts: tuple[Revert, ...] = ()


Lineage = Sequence[Stream]
"""An agent's stream, then its parent's, then its parent's parent's, and so on."""


def history(lineage: Lineage, at: int) -> list[Span]:
    """The spans of all events up to `at`, oldest first, undone ones included.

    >>> mia = Stream("a/mia", 9)
    >>> history([Stream("a/twin", 7, "a/mia", 4), mia], 6)
    [Span(agent='a/mia', first=1, last=4), Span(agent='a/twin', first=5, last=6)]
    """
    spans = []
    for stream in lineage:
        if at > stream.forked_at:
            spans.append(Span(stream.agent, stream.forked_at + 1, at))
        at = min(at, stream.forked_at)
    return spans[::-1]


def timeline(lineage: Lineage, at: int) -> list[Span]:
    """The spans of the events that count at `at`, oldest first.

    >>> timeline([Stream("a/mia", 9, reverts=(Revert(6, 2),))], 8)
    [Span(agent='a/mia', first=1, last=2), Span(agent='a/mia', first=6, last=8)]
    """
    spans = []
    for stream in lineage:
        for revert in reversed(stream.reverts):
            if revert.sequence <= at:
                spans.append(Span(stream.agent, revert.sequence, at))
                at = revert.to
        if at > stream.forked_at:
            spans.append(Span(stream.agent, stream.forked_at + 1, at))
            at = stream.forked_at
    return spans[::-1]


def undone(lineage: Lineage, at: int, to: int) -> list[Span]:
    """The spans that count at `at` and no longer count after going back to `to`.

    >>> undone([Stream("a/mia", 9)], 9, 4)
    [Span(agent='a/mia', first=5, last=9)]
    """
    kept = {(span.agent, span.first): span.last for span in timeline(lineage, to)}
    lost = []
    for span in timeline(lineage, at):
        last = kept.get((span.agent, span.first), span.first - 1)
        if last < span.last:
            lost.append(Span(span.agent, last + 1, span.last))
    return lost


def after(spans: Iterable[Span], agent: str, sequence: int) -> list[Span] | None:
    """What is left of `spans` after an event of theirs; None where the event is not in them.

    >>> after([Span("a/b", 1, 9)], "a/b", 4)
    [Span(agent='a/b', first=5, last=9)]
    """
    rest: list[Span] | None = None
    for span in spans:
        if rest is not None:
            rest.append(span)
        elif span.agent == agent and span.first <= sequence <= span.last:
            rest = [] if sequence == span.last else [Span(agent, sequence + 1, span.last)]
    return rest


def onward(spans: Iterable[Span], first: int) -> list[Span]:
    """What of `spans` has a sequence from `first` on.

    >>> onward([Span("a/b", 1, 4), Span("a/c", 5, 9)], 7)
    [Span(agent='a/c', first=7, last=9)]
    """
    return [
        Span(span.agent, max(span.first, first), span.last) for span in spans if span.last >= first
    ]
