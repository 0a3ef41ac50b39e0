"""`perdure import` through Kafka: every agent is what it is in one folder, byte for byte.

All recorded runs that are at hand are taken: the hundred beside the checkout, or else the ten that
the package ships.
"""

import datetime as dt
import time
import uuid
from pathlib import Path

import pytest
from tests.unit.cli import runner

import perdure
from perdure import NewEvent
from perdure.model.runs import parse_run, run_events

ROOT = Path(__file__).parents[2]
BESIDE = ROOT.parent / "shared" / "data" / "airline-runs.jsonl"
SHIPPED = Path(perdure.__file__).parent / "cli" / "data" / "airline-runs.jsonl"
RUNS = BESIDE if BESIDE.exists() else SHIPPED
LINES = RUNS.read_bytes().splitlines()


@pytest.fixture
def both(capsys, tmp_path, shared_services, store):
    """Runs a command on a folder, and on a store of the cluster."""
    run = runner(capsys, tmp_path / "store")
    url = shared_services.url(store)

    def ran(*args):
        return run(*args), run(*args, store=url)

    return ran


def test_imported_runs_are_the_same_agents_byte_for_byte(both, record_property):
    """What `perdure state --json` prints of each agent; imported again, nothing is added."""
    for new in (True, False):
        begun = time.perf_counter()
        here, there = [
            ran.json() for ran in both("import", str(RUNS), "--namespace", "airline", "--json")
        ]
        for summary in (here, there):
            seconds = summary.pop("seconds")
        record_property(f"seconds of import, new={new}", (seconds, time.perf_counter() - begun))
        assert here == there
        assert (here["runs"], here["malformed"], here["conflicts"]) == (len(LINES), 0, 0)
        assert (here["added_runs"] == len(LINES)) is new
        assert (here["new_events"] > 0) is new
    listed = [
        [(agent["agent"], agent["sequence"]) for agent in ran.json_lines()]
        for ran in both("agents", "airline/", "--json")
    ]
    assert listed[0] == listed[1]
    assert len(listed[0]) == len(LINES)
    for agent, sequence in listed[0]:
        here, there = both("state", agent, "--json")
        assert (here.status, there.status) == (0, 0)
        assert here.out.encode() == there.out.encode()
        assert here.json()["sequence"] == sequence
    for agent, sequence in listed[0][:: max(1, len(listed[0]) // 5)]:
        here, there = both("state", agent, "--at", str(sequence // 2), "--json")
        assert here.out.encode() == there.out.encode()
        assert here.json()["sequence"] == sequence // 2
        # An event has the id and the time that it got where it was sent; all else is the same.
        here, there = (
            [{**event, "id": "", "time": ""} for event in ran.json_lines()]
            for ran in both("events", agent, "--json")
        )
        assert here == there
        assert [ran.status for ran in both("verify", agent)] == [0, 0]


async def test_chains_are_the_same_where_ids_and_times_are(tmp_path, shared_services, store):
    """The stored bytes are: a chain is a hash over all of them, whoever recorded them."""
    heads = []
    for place in (tmp_path / "store", shared_services.url(store, ack="recorded")):
        async with perdure.connect(place) as connected:
            heads.append([await recorded(connected, line, n) for n, line in enumerate(LINES, 1)])
    assert heads[0] == heads[1]
    assert len({head.chain for head in heads[0]}) == len(LINES)


async def recorded(store, line, number):
    """An agent's head after a run was recorded whose events have ids and times of their own."""
    run = parse_run(line, number)
    agent = f"airline/{run.name}"
    begun = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    events = [
        NewEvent(
            type=event.type,
            data=event.data,
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{agent}@{at}")),
            time=begun + dt.timedelta(milliseconds=at),
            writer="recording",
            correlation_id=event.correlation_id,
        )
        for at, event in enumerate(run_events(run))
    ]
    answers = await store.emit_many(agent, events)
    assert [event.sequence for event in answers] == [*range(1, len(events) + 1)]
    return await store._backend.events.head(agent)
