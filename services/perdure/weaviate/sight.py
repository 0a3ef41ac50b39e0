"""Which memories a search may see: spans of sequences, as filters and as a check.

A filter of Weaviate takes about a millisecond for each range of sequences, and spans can be
thousands (undone often). So a filter covers the spans with a few ranges at the most, which may let
pass what lies between them, and what is found is checked against the spans themselves.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from weaviate.classes.query import Filter as Where
from weaviate.collections.classes.filters import FilterReturn

from perdure.memorizer.memory import Filter
from perdure.model.event import NUMBER_MAX
from perdure.model.timeline import Span
from perdure.weaviate.facts import MANY, wanted
from perdure.weaviate.objects import NEVER, microseconds

Place: TypeAlias = tuple[str, int]
"""Agent and sequence of a memory."""

RANGES_MAX: Final = 8
"""The most ranges in one filter."""

_EXACT: Final = 2**53
"""Up to here a number passes protocol buffers' JSON values as it is."""


class Sight:
    """What some spans see, of whichever agents; of equals, what lies later in them comes first.

    >>> sight = Sight([Span("a/mia", 1, 4), Span("a/twin", 5, 9)])
    >>> sight.sees("a/mia", 4), sight.sees("a/mia", 5), sight.sees("a/twin", 5)
    (True, False, True)
    >>> sight.place("a/mia", 4) < sight.place("a/twin", 5)
    True
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        ranges: dict[str, list[tuple[int, int]]] = {}
        for agent, first, last in spans:
            if (low := max(first, 1)) <= (high := min(last, NUMBER_MAX)):
                ranges.setdefault(agent, []).append((low, high))
        self._ranges = {agent: _merged(own) for agent, own in ranges.items()}
        self._firsts = {agent: [low for low, _ in own] for agent, own in self._ranges.items()}
        self._numbers = {agent: number for number, agent in enumerate(self._ranges)}

    @property
    def agents(self) -> list[str]:
        """The agents of the spans, in their order there."""
        return list(self._ranges)

    def spans(self, agent: str) -> list[Span]:
        """The spans of one agent, in order and apart from each other."""
        return [Span(agent, *bounds) for bounds in self._ranges.get(agent, ())]

    def sees(self, agent: str, sequence: int) -> bool:
        """Whether the event lies in one of the spans."""
        index = bisect_right(self._firsts.get(agent, ()), sequence) - 1
        return index >= 0 and sequence <= self._ranges[agent][index][1]

    def place(self, agent: str, sequence: int) -> int:
        """A number for an event in the spans, that is larger for later ones."""
        return self._numbers[agent] * (NUMBER_MAX + 1) + sequence


def cover(spans: Sequence[Span], ranges_max: int = RANGES_MAX) -> list[Span]:
    """At most so many spans (one an agent at least) that hold all of these, and little else.

    >>> cover([Span("a/b", 1, 2), Span("a/b", 4, 5), Span("a/b", 90, 99)], 2)
    [Span(agent='a/b', first=1, last=5), Span(agent='a/b', first=90, last=99)]
    """
    gaps = sorted(
        (after.first - before.last, index)
        for index, (before, after) in enumerate(itertools.pairwise(spans))
        if before.agent == after.agent
    )
    closed = {index for _, index in gaps[: max(0, len(spans) - ranges_max)]}
    covered: list[Span] = []
    for index, span in enumerate(spans):
        if index - 1 in closed:
            covered[-1] = Span(span.agent, covered[-1].first, span.last)
        else:
            covered.append(span)
    return covered


def halves(spans: Sequence[Span]) -> tuple[list[Span], list[Span]] | None:
    """The same spans in two parts; None where there is one event only.

    >>> halves([Span("a/b", 1, 5)])
    ([Span(agent='a/b', first=1, last=3)], [Span(agent='a/b', first=4, last=5)])
    """
    if len(spans) > 1:
        middle = len(spans) // 2
        return list(spans[:middle]), list(spans[middle:])
    [(agent, first, last)] = spans
    if first == last:
        return None
    middle = (first + last) // 2
    return [Span(agent, first, middle)], [Span(agent, middle + 1, last)]


def within(
    spans: Sequence[Span], ends: Mapping[str, int], forgotten: Mapping[str, Sequence[int]]
) -> FilterReturn:
    """The condition that covers spans (at least one): memories in them, and few others.

    `ends` says of each agent up to where it has memories, so that a bound that leaves nothing out
    is spared; `forgotten` at which sequences it forgot some.
    """
    conditions = []
    covered = cover(spans)
    for agent in dict.fromkeys(span.agent for span in spans):
        own = [span for span in covered if span.agent == agent]
        condition: list[FilterReturn] = [Where.by_property("agent").equal(agent)]
        ranges = [_range("sequence", span.first, span.last, ends[agent]) for span in own]
        if None not in ranges:
            condition.append(Where.any_of([each for each in ranges if each is not None]))
        exact = [span for span in spans if span.agent == agent]
        condition += _not_forgotten(exact, forgotten.get(agent, ()))
        conditions.append(Where.all_of(condition))
    return Where.any_of(conditions)


def _not_forgotten(spans: Sequence[Span], forgotten: Sequence[int]) -> list[FilterReturn]:
    """Leave out what the agent itself forgot within its spans, where that is said briefly.

    What it forgot in a gap between them (undone) or after them is seen again.
    """
    if not forgotten:
        return []
    gaps = [(before.last + 1, after.first - 1) for before, after in itertools.pairwise(spans)]
    gaps.insert(0, (1, spans[0].first - 1))
    used = [
        (first, last)
        for first, last in gaps
        if bisect_right(forgotten, last) > bisect_right(forgotten, first - 1)
    ]
    if len(used) >= RANGES_MAX:
        return []
    # After the spans there may be forgettings that only others know of yet.
    used.append((min(spans[-1].last + 1, NEVER), NEVER))
    ranges = [_range("until", first, last, NEVER) for first, last in used]
    return [Where.any_of([each for each in ranges if each is not None])]


def passing(filter: Filter) -> list[FilterReturn]:
    """Conditions that all memories meet which a filter accepts, and hardly any others."""
    conditions: list[FilterReturn] = []
    time = Where.by_property("microseconds")
    if filter.since is not None:
        conditions.append(time.greater_or_equal(_rounded(microseconds(filter.since), -1)))
    if filter.until is not None:
        conditions.append(time.less_or_equal(_rounded(microseconds(filter.until), 1)))
    if terms := wanted(filter):
        facts = Where.by_property("facts")
        conditions.append(Where.any_of([facts.contains_all(terms), facts.contains_any([MANY])]))
    return conditions


def _rounded(number: int, direction: int) -> int:
    # Beyond 53 bits a number was rounded to a neighbour at most 64 away when it was written.
    return number if abs(number) < _EXACT else number + 128 * direction


def _range(name: str, first: int, last: int, end: int) -> FilterReturn | None:
    """A property within bounds, those left out that leave nothing out; None where none is left."""
    bounds: list[FilterReturn] = []
    if first > 1:
        bounds.append(Where.by_property(name).greater_or_equal(first))
    if last < end:
        bounds.append(Where.by_property(name).less_or_equal(last))
    return Where.all_of(bounds) if bounds else None


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
