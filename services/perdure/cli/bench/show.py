"""The benchmark's results for people: a table, the curves, the notes."""

from collections.abc import Sequence
from typing import Final

from perdure.cli import output
from perdure.cli.bench.machine import Machine
from perdure.cli.bench.result import Curve, Measurement, Ratio, Series

HEADERS: Final = ("measured", "perdure", "beside it", "ratio", "min–max", "target", "peers", "")
RIGHT: Final = "lrrrrrlr"
COLUMNS: Final = 60
"""Of a curve."""
_LEVELS: Final = "▁▂▃▄▅▆▇█"


def show(machine: Machine, measurements: Sequence[Measurement]) -> None:
    """Print everything that was measured."""
    output.fields(
        [
            ("machine", f"{machine.system}, {machine.processors} processors, load {machine.load}"),
            ("software", ", ".join(_software(machine))),
            ("folder on", machine.filesystem),
            *machine.peers.items(),
        ]
    )
    output.line()
    output.table(HEADERS, rows(measurements), right=RIGHT)
    for measurement in measurements:
        for curve in measurement.curves:
            output.line()
            for text in drawn(curve):
                output.line(text)
    output.line()
    for measurement in measurements:
        for note in measurement.notes:
            output.line(f"{measurement.name}: {note}")


def _software(machine: Machine) -> list[str]:
    engine = [f"SQLite {machine.sqlite}"] if machine.sqlite else []
    return [machine.python, *engine, f"perdure {machine.perdure}"]


def rows(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """The cells of the table, a row a ratio."""
    return [
        (
            ratio.label,
            number(measurement.find(ratio.of)),
            number(measurement.find(ratio.to)),
            f"{ratio.median:.2f}",
            "" if len(ratio.rounds) == 1 else f"{ratio.low:.2f}–{ratio.high:.2f}",
            _target(ratio),
            ", ".join(f"{who} {value:.2f}" for who, value in ratio.peers.items()),
            {True: "met", False: "MISSED", None: ""}[ratio.met],
        )
        for measurement in measurements
        for ratio in measurement.ratios
    ]


def number(series: Series) -> str:
    """A series' median with its unit.

    >>> number(Series.of("perdure", "events/s", [123456.7])), number(Series.of("a", "ms", [0.5]))
    ('123,457/s', '0.50 ms')
    """
    if series.unit == "bytes":
        return output.size(series.median)
    if series.unit == "ms":
        return f"{series.median:.2f} ms"
    return f"{series.median:,.0f}{series.unit.removeprefix('events')}"


def drawn(curve: Curve) -> list[str]:
    """A curve as lines of text: a bar chart from zero to the peak.

    >>> for line in drawn(Curve("reading", 10, 40, 1000, [0.0, 0.1], [20, 40])):
    ...     print(line)
    memory while reading (40 B at most, 30 B over an idle process, for 1.0 kB of work)
      ▄█  0.1 s
    """
    looks = curve.resident
    width = min(COLUMNS, len(looks))
    bins = [looks[at * len(looks) // width : (at + 1) * len(looks) // width] for at in range(width)]
    top = max(1, curve.peak)
    bars = "".join(_LEVELS[max(0, -(-max(part) * len(_LEVELS) // top) - 1)] for part in bins)
    over = output.size(max(0, curve.peak - curve.base))
    sizes = f"{output.size(curve.peak)} at most, {over} over an idle process"
    return [
        f"memory while {curve.who} ({sizes}, for {output.size(curve.handled)} of work)",
        f"  {bars}  {curve.seconds[-1]:.1f} s",
    ]


def _target(ratio: Ratio) -> str:
    if ratio.target is None:
        return ""
    return f"{'≥' if ratio.bound == 'at least' else '≤'} {ratio.target:g}"
