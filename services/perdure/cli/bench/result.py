"""What a benchmark gives: numbers round by round, and ratios of what was measured side by side.

Invariants:
- A ratio is taken within a round, then its median over the rounds: what drifts hits both sides.
- A target is met by the median; the lowest and the highest round stand beside it.
"""

import statistics
from collections.abc import Sequence
from typing import Literal, Self

import msgspec

Bound = Literal["at least", "at most"]


class Series(msgspec.Struct, frozen=True):
    """One contender's numbers, one a round, in `unit`; and their median, lowest and highest."""

    who: str
    unit: str
    median: float
    low: float
    high: float
    rounds: list[float]

    @classmethod
    def of(cls, who: str, unit: str, rounds: Sequence[float]) -> Self:
        """The series of a contender's rounds.

        >>> Series.of("perdure", "ms", [3.0, 1.0, 2.0]).median
        2.0
        """
        return cls(who, unit, statistics.median(rounds), min(rounds), max(rounds), list(rounds))


class Ratio(msgspec.Struct, frozen=True):
    """How one series stands to another, round by round, and whether that is what is wanted.

    `met` is None where nothing is wanted, or too little was measured to say. `peers` holds the
    median ratios of other programs to the same base.
    """

    label: str
    of: str
    to: str
    median: float
    low: float
    high: float
    rounds: list[float]
    bound: Bound | None = None
    target: float | None = None
    met: bool | None = None
    peers: dict[str, float] = {}

    @classmethod
    def between(
        cls,
        of: Series,
        to: Series,
        *,
        label: str,
        bound: Bound | None = None,
        target: float | None = None,
        peers: Sequence[Series] = (),
    ) -> Self:
        """The ratio of two series that were measured in the same rounds.

        >>> fast, slow = Series.of("a", "/s", [30, 50]), Series.of("b", "/s", [10, 10])
        >>> ratio = Ratio.between(fast, slow, label="a to b", bound="at least", target=3.0)
        >>> ratio.median, ratio.low, ratio.met
        (4.0, 3.0, True)
        """
        rounds = _quotients(of, to)
        median = statistics.median(rounds)
        return cls(
            label=label,
            of=of.who,
            to=to.who,
            median=median,
            low=min(rounds),
            high=max(rounds),
            rounds=rounds,
            bound=bound,
            target=target,
            met=met(median, bound, target),
            peers={peer.who: statistics.median(_quotients(peer, to)) for peer in peers},
        )


class Curve(msgspec.Struct, frozen=True):
    """Resident memory of a process while it works: bytes, at seconds since it began.

    `base` is what it had before the work, `peak` the most, `handled` the bytes it worked through.
    """

    who: str
    base: int
    peak: int
    handled: int
    seconds: list[float]
    resident: list[int]


class Measurement(msgspec.Struct, frozen=True):
    """One row of the table, with everything that led to it."""

    name: str
    title: str
    series: list[Series]
    ratios: list[Ratio]
    notes: list[str] = []
    curves: list[Curve] = []

    def find(self, who: str) -> Series:
        """The series of a contender."""
        return next(series for series in self.series if series.who == who)


def met(value: float, bound: Bound | None, target: float | None) -> bool | None:
    """Whether a value is within its target; None where there is none.

    >>> met(0.8, "at least", 0.75), met(0.8, "at most", 0.75), met(0.8, None, None)
    (True, False, None)
    """
    if target is None or bound is None:
        return None
    return value >= target if bound == "at least" else value <= target


def _quotients(of: Series, to: Series) -> list[float]:
    return [one / other for one, other in zip(of.rounds, to.rounds, strict=True)]
