"""`perdure bench --cluster` on the real engines: that everything runs and its numbers agree.

Nothing here says how fast anything must be: that is for the benchmark itself to show.
"""

import asyncio
import json
import os
import subprocess
import sys

import msgspec
import pytest

from perdure.cassandra.session import Session
from perdure.cli.bench.cluster import run
from perdure.cli.bench.command import OF_CLUSTER

pytestmark = [pytest.mark.stack, pytest.mark.slow]

SECONDS = 900


def _benched(engines, folder, *arguments):
    """One run of the command on these engines."""
    values = msgspec.to_builtins(engines)
    variables = {f"PERDURE_{key.upper()}": str(value) for key, value in values.items()}
    return subprocess.run(
        [sys.executable, "-m", "perdure", "bench", "--cluster", "--quick", *arguments],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_quick_run_ends_with_every_row_and_leaves_nothing(engines, tmp_path):
    """Everything is measured, each ratio is what its series give, and the tables are gone."""
    done = _benched(engines, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [measurement["name"] for measurement in report["measurements"]] == list(OF_CLUSTER)
    assert {"Kafka", "Cassandra", "aiokafka", "cassandra-driver"} == set(report["machine"]["peers"])
    for measurement in report["measurements"]:
        assert measurement["ratios"]
        series = {one["who"]: one["rounds"] for one in measurement["series"]}
        for ratio in measurement["ratios"]:
            pairs = zip(series[ratio["of"]], series[ratio["to"]], strict=True)
            assert [a / b for a, b in pairs] == ratio["rounds"]
            assert ratio["low"] > 0
    assert not asyncio.run(_left(engines))


def test_table_of_one_measurement_shows_what_was_compared(engines, tmp_path):
    """A person sees both numbers, the ratio and its target, and how it was measured."""
    done = _benched(engines, tmp_path, "--only", "latency")
    assert done.returncode == 0, done.stderr
    assert "emit to readable state" in done.stdout
    assert "≤ 3" in done.stdout
    assert "latency: " in done.stdout


def test_names_in_the_help_are_those_that_are_measured():
    """What `--only` offers is what there is."""
    assert list(run.MEASUREMENTS) == list(OF_CLUSTER)


async def _left(engines):
    """The keyspaces of benchmarks that are still there."""
    session = await Session.connect(engines)
    try:
        rows = await session.execute("SELECT keyspace_name FROM system_schema.keyspaces")
        return [name for (name,) in rows if name.startswith("bench_")]
    finally:
        await session.close()
