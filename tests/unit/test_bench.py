"""`perdure bench`, at sizes of a few seconds: that everything runs and that its numbers agree.

Nothing here says how fast anything must be: that is for the benchmark itself to show.
"""

import asyncio
import json
import sqlite3

import pytest
from typer.testing import CliRunner

from perdure.cli.bench import command, memory, peers, show
from perdure.cli.bench.raw import RawSqlite, check_durable
from perdure.cli.bench.result import Curve, Measurement, Ratio, Series
from perdure.cli.bench.rounds import Work, side_by_side
from perdure.cli.bench.workbench import SHIPPED, Scale, Workbench, load_runs
from perdure.cli.main import app
from perdure.errors import InvalidInput, NotFound, PerdureError
from perdure.settings import Cluster

TINY = Scale(rounds=2, slices=1, emits=8, burst=200, fold=50, lengths=(30, 60), memory=60)


async def _measured(name, folder):
    """One measurement at tiny size, and how its progress went."""
    begun, ticks = [], []

    def begin(what, total):
        begun.append((what, total))
        ticks.append(0)

        def tick():
            ticks[-1] += 1

        return tick

    bench = Workbench(folder, load_runs(SHIPPED)[:3], TINY, begin)
    return await command.MEASUREMENTS[name](bench), begun, ticks


def _consistent(measurement):
    """Each ratio is what its two series give, and its verdict what its target gives."""
    for ratio in measurement.ratios:
        of, to = measurement.find(ratio.of), measurement.find(ratio.to)
        assert [a / b for a, b in zip(of.rounds, to.rounds, strict=True)] == ratio.rounds
        assert ratio.low <= ratio.median <= ratio.high
        if ratio.target is None:
            assert ratio.met is None
        elif ratio.bound == "at least":
            assert ratio.met == (ratio.median >= ratio.target)
        else:
            assert ratio.met == (ratio.median <= ratio.target)
        assert set(ratio.peers) <= {series.who for series in measurement.series}
    for series in measurement.series:
        assert 0 < series.low <= series.median <= series.high


@pytest.mark.parametrize("name", command.MEASUREMENTS)
async def test_every_measurement_runs_and_its_numbers_agree(name, tmp_path):
    """A measurement gives positive numbers of every contender, and ratios that follow."""
    measurement, begun, ticks = await _measured(name, tmp_path)
    assert measurement.name == name
    assert measurement.series
    _consistent(measurement)
    assert show.rows([measurement])
    # No bar that goes on after its end, or stops far before it.
    assert [done <= total for (_, total), done in zip(begun, ticks, strict=True)]
    assert all(ticks)


async def test_measurements_without_peers_say_how_to_get_them(tmp_path, monkeypatch):
    """Where no peer is installed everything of perdure's own is still measured, and it is said."""
    monkeypatch.setattr(peers, "has_eventsourcing", lambda: False)
    monkeypatch.setattr(peers, "has_langgraph", lambda: False)
    for name in ("one", "burst", "fold", "middle", "size"):
        measurement, _, _ = await _measured(name, tmp_path / name)
        who = {series.who for series in measurement.series}
        assert not who & {peers.EVENTSOURCING, peers.SQLITE_SAVER, peers.LANGGRAPH}
        assert any(one.startswith("perdure") for one in who)
        _consistent(measurement)
    assert peers.missing() == [
        "eventsourcing not installed: pip install 'perdure[bench]'",
        "LangGraph not installed: pip install 'perdure[bench]'",
    ]


async def test_contenders_take_turns_and_what_they_did_is_added_up():
    """Slices alternate in order, the warm-up doesn't count, and each round has all of them."""
    order = []

    def contender(name, seconds):
        async def work():
            await asyncio.sleep(0)
            order.append(name)
            return Work(2, seconds)

        return work

    done = await side_by_side(
        {"a": contender("a", 0.5), "b": contender("b", 1.0)},
        rounds=1,
        slices=2,
        tick=lambda: None,
    )
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert done == {"a": [Work(4, 1.0)], "b": [Work(4, 2.0)]}


def test_raw_engine_writes_what_perdure_would(tmp_path):
    """The baseline holds each message's bytes, in a file as durable as perdure's."""
    raw = RawSqlite(tmp_path / "raw.db", [b'{"a":1}', b'{"b":2}'])
    assert raw.one_by_one(3).count == 3
    assert raw.hundreds(200).count == 200
    raw.close()
    connection = sqlite3.connect(tmp_path / "raw.db")
    rows = connection.execute("SELECT sequence, body FROM events ORDER BY sequence").fetchall()
    connection.close()
    assert [sequence for sequence, _ in rows] == list(range(1, 204))
    assert [body for _, body in rows[:3]] == [b'{"a":1}', b'{"b":2}', b'{"a":1}']


def test_contender_of_lesser_durability_is_refused():
    """A comparison with a program that doesn't sync is an error, not a number."""
    answers = {"PRAGMA journal_mode": "wal", "PRAGMA synchronous": 1}
    with pytest.raises(PerdureError, match="synchronous 1"):
        check_durable(answers.get)


async def test_long_agents_have_one_size_of_state_at_every_length(tmp_path):
    """The longer agent has the same records as the shorter, so that only its length differs."""
    bench = Workbench(tmp_path, load_runs(SHIPPED)[:1], TINY, lambda what, total: lambda: None)
    folder, short = await bench.long_agent(1_000)
    _, long = await bench.long_agent(2_000)
    from perdure import connect

    async with connect(folder) as store:
        states = [await store.view(name).state_at() for name in (short, long)]
    assert [state.sequence for state in states] == [1_000, 2_000]
    assert list(states[0].records) == list(states[1].records)
    assert len(states[1].records) == 1_000


def test_growing_memory_is_told_from_flat(tmp_path):
    """The quarters that are compared leave out the start-up and see growth at the end."""
    assert memory._quarters([1, 2, 8, 8, 8, 8, 8, 8]) == (8.0, 8.0)
    assert memory._quarters([1, 2, 3, 4, 5, 6, 7, 8]) == (3.5, 7.5)


def test_process_that_fails_is_an_error_with_what_it_said(tmp_path):
    """A watched process that ends badly is never taken for a measurement."""
    with pytest.raises(PerdureError, match="no agent"):
        asyncio.run(
            memory._watched(
                "reading", ["-c", "import sys; sys.exit('there is no agent')"], handled=1, base=1
            )
        )


def test_report_is_one_json_document():
    """`--json` prints one document: machine, software, and each measurement with its rounds."""
    done = CliRunner().invoke(app, ["bench", "--quick", "--only", "size", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {"date", "processors", "python", "sqlite", "filesystem", "peers"} <= set(
        report["machine"]
    )
    [measurement] = report["measurements"]
    assert measurement["name"] == "size"
    assert measurement["ratios"][0]["rounds"] == [measurement["ratios"][0]["median"]]


def test_table_shows_ratio_target_and_verdict():
    """A row says what was measured, both numbers, their ratio and range, and the verdict."""
    ours = Series.of("perdure", "events/s", [50, 60, 70])
    raw = Series.of("raw SQLite", "events/s", [100, 100, 100])
    ratio = Ratio.between(ours, raw, label="one", bound="at least", target=0.75, peers=[raw])
    measurement = Measurement("one", "one", [ours, raw], [ratio])
    assert show.rows([measurement]) == [
        ("one", "60/s", "100/s", "0.60", "0.50–0.70", "≥ 0.75", "raw SQLite 1.00", "MISSED")
    ]


def test_curve_is_drawn_up_to_its_peak():
    """The highest look at memory is the highest bar, however many looks there were."""
    looks = [*range(1, 200), 50]
    curve = Curve("reading", 1, max(looks), 10, [0.1 * n for n in range(200)], looks)
    bars = show.drawn(curve)[1].split()[0]
    assert len(bars) == show.COLUMNS
    assert bars.count("█") > 0
    assert bars[0] == "▁"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), (b'{"messages": []}\n', "no run"), (b"nonsense\n", "line 1")],
)
def test_runs_that_are_none_are_refused(content, message, tmp_path):
    """A file that is missing, empty of messages or malformed is a clear error."""
    file = tmp_path / "runs.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        load_runs(file)


def test_unknown_measurement_is_a_usage_error():
    """`--only` with a name that isn't there lists those that are."""
    done = CliRunner().invoke(app, ["bench", "--only", "speed"])
    assert done.exit_code == 2
    assert "burst" in done.output


def test_measurements_of_a_cluster_are_other_ones():
    """With `--cluster` the names are those of the cluster's measurements."""
    done = CliRunner().invoke(app, ["bench", "--cluster", "--only", "burst"])
    assert done.exit_code == 2
    assert "recorder" in done.output


def test_cluster_without_its_packages_is_an_error_with_the_way_out(monkeypatch):
    """Where the cluster's packages are missing it is said how to get them."""

    def missing(name):
        raise ModuleNotFoundError(name, name="aiokafka")

    monkeypatch.setattr(command.importlib, "import_module", missing)
    with pytest.raises(NotFound, match="aiokafka") as raised:
        asyncio.run(command.measured_cluster(Cluster(), SHIPPED, [], quick=True))
    assert "perdure[cluster]" in raised.value.hint
