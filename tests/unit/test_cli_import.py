"""`perdure import`: recorded runs go in whole, once, whatever else the file holds."""

import asyncio
import io
from pathlib import Path

import msgspec
import pytest
from tests.unit.cli import process, runner

import perdure
from perdure.cli import lines, recorded_runs
from perdure.model.runs import parse_run, run_events

RUNS = Path(perdure.__file__).parent / "cli/data/airline-runs.jsonl"


@pytest.fixture
def run(capsys, tmp_path):
    """Runs a command on a store of this test."""
    return runner(capsys, tmp_path / "store")


def _file(tmp_path, *runs):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"".join(run if isinstance(run, bytes) else _line(run) for run in runs))
    return str(path)


def _line(run):
    return msgspec.json.encode(run) + b"\n"


def _run(count, *, task=7, text="message"):
    messages = [{"role": "user", "content": f"{text} {number}"} for number in range(count)]
    return {"task_id": task, "trial": 0, "messages": messages}


def test_messages_of_each_run_are_the_messages_of_its_agent(run):
    """Every run of the shipped file becomes an agent whose state holds exactly its messages."""
    summary = run("import", str(RUNS), "--namespace", "airline", "--json").json()
    runs = [msgspec.json.decode(line) for line in RUNS.read_bytes().splitlines()]
    assert (summary["runs"], summary["malformed"], summary["conflicts"]) == (len(runs), 0, 0)
    assert summary["bytes"] == RUNS.stat().st_size
    for recorded in runs:
        name = f"airline/{recorded['task_id']}.{recorded['trial']}"
        state = run("state", name, "--json").json()
        assert state["messages"] == recorded["messages"]


def test_importing_again_adds_nothing_and_says_so(run):
    """The second import of a file finds every event there."""
    first = run("import", str(RUNS), "--json").json()
    before = run("verify", "--json").out
    again = run("import", str(RUNS), "--json")
    assert again.status == 0
    assert again.json()["new_events"] == 0
    assert again.json()["present_events"] == first["new_events"]
    assert run("verify", "--json").out == before
    assert "nothing was added" in run("import", str(RUNS)).err


def test_malformed_lines_are_told_and_the_rest_goes_in(run, tmp_path):
    """Each bad line is named with its number and reason; the good ones are there; status 1."""
    file = _file(tmp_path, _run(2), b"{oops\n", b"\n", b"[]\n", _run(2, task=8), b'{"messages": 1}')
    told = run("import", file, "--namespace", "ns", "--json")
    assert told.status == 1
    assert told.json()["malformed"] == 3
    for number in (2, 4, 6):
        assert f"error: line {number}: " in told.err
    agents = run("agents", "--json").json_lines()
    assert [agent["agent"] for agent in agents] == ["ns/7.0", "ns/8.0"]


def test_longer_version_of_a_run_adds_what_is_new(run, tmp_path):
    """A run that went on is continued; an older, shorter version of it adds nothing."""
    run("import", _file(tmp_path, _run(2)))
    grown = run("import", _file(tmp_path, _run(5)), "--json").json()
    assert grown["new_events"] == 3
    state = run("state", "imported/7.0", "--json").json()
    assert state["messages"] == _run(5)["messages"]
    shorter = run("import", _file(tmp_path, _run(2)), "--json")
    assert (shorter.status, shorter.json()["new_events"]) == (0, 0)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_other_run_of_the_same_name_is_a_conflict(run, tmp_path, count):
    """A different run never goes into an agent that is there: it is told, and nothing changes."""
    run("import", _file(tmp_path, _run(3)))
    before = run("events", "imported/7.0", "--json").out
    told = run("import", _file(tmp_path, _run(1, task=1), _run(count, text="other")), "--json")
    assert told.status == 1
    assert told.json()["conflicts"] == 1
    assert "error: line 2: agent imported/7.0 is there already, from another run" in told.err
    assert run("events", "imported/7.0", "--json").out == before
    assert run("state", "imported/1.0").status == 0


def test_two_runs_of_one_name_in_a_file(run, tmp_path):
    """The first one counts; the same again adds nothing, another is a conflict."""
    told = run("import", _file(tmp_path, _run(3), _run(3), _run(3, text="other")), "--json")
    assert (told.status, told.json()["conflicts"], told.json()["added_runs"]) == (1, 1, 1)


def test_agent_that_was_not_imported_is_left_alone(run, tmp_path):
    """An agent of somebody's own is never mixed with a run."""

    async def work():
        async with perdure.connect(tmp_path / "store") as store:
            await store.emit("imported/7.0", "decision.made", {"choice": "mine"})

    asyncio.run(work())
    told = run("import", _file(tmp_path, _run(3)))
    assert told.status == 1
    assert "was not imported" in told.err


def test_imported_agent_that_went_on_is_still_the_run(run, tmp_path):
    """What was done with an imported agent since doesn't hinder importing it again."""
    run("import", _file(tmp_path, _run(3)))

    async def work():
        async with perdure.connect(tmp_path / "store") as store:
            agent = await store.agent("imported/7.0")
            await agent.emit("decision.made", {"choice": "go on"})
            await agent.close()

    asyncio.run(work())
    again = run("import", _file(tmp_path, _run(3)), "--json")
    assert (again.status, again.json()["new_events"]) == (0, 0)


def test_agents_of_unnamed_runs_have_their_line_number(run, tmp_path):
    """Without task and trial, the agent is named by its line."""
    messages = {"messages": [{"role": "user", "content": "hello"}]}
    run("import", _file(tmp_path, messages, messages), "--namespace", "ns")
    agents = run("agents", "--json").json_lines()
    assert [agent["agent"] for agent in agents] == ["ns/1", "ns/2"]


def test_long_run_is_recorded_in_pieces_and_goes_on_where_it_stopped(run, tmp_path):
    """A run of many events goes in whole; one that was cut off is completed."""
    count = 2 * recorded_runs.EVENTS_AT_ONCE + 500
    events = run_events(parse_run(_line(_run(count)), 1))
    cut = recorded_runs.EVENTS_AT_ONCE

    async def interrupted():
        async with perdure.connect(tmp_path / "store") as store:
            await recorded_runs.add(store, "imported/7.0", events[:cut])

    asyncio.run(interrupted())
    summary = run("import", _file(tmp_path, _run(count)), "--json").json()
    assert summary["present_events"] == cut
    assert len(run("state", "imported/7.0", "--json").json()["messages"]) == count


def test_two_imports_at_once_add_each_run_once(run, tmp_path):
    """Importing the same file from two processes at the same time is as importing it once."""
    store = str(tmp_path / "store")
    run("agents")  # not there yet, and still not made
    both = [process("import", str(RUNS), "--store", store, "--json") for _ in range(2)]
    summaries = [msgspec.json.decode(started.communicate()[0]) for started in both]
    assert [started.returncode for started in both] == [0, 0]
    events = sum(agent["sequence"] for agent in run("agents", "--json").json_lines())
    assert sum(summary["new_events"] for summary in summaries) == events
    assert summaries[0]["new_events"] + summaries[0]["present_events"] == events
    assert run("verify").status == 0


def test_adding_a_long_run_twice_at_once_counts_each_event_once(tmp_path):
    """Of two that add a run of several writes, each counts as new what it has added itself."""
    count = 12 * recorded_runs.EVENTS_AT_ONCE
    events = run_events(parse_run(_line(_run(count)), 1))

    async def both():
        one, other = perdure.connect(tmp_path / "store"), perdure.connect(tmp_path / "store")
        async with one as first, other as second:
            added = await asyncio.gather(
                *(recorded_runs.add(store, "imported/7.0", events) for store in (first, second))
            )
            return added, await first.view("imported/7.0").sequence()

    added, sequence = asyncio.run(both())
    assert sequence == len(events)
    assert sum(run.new for run in added) == len(events)
    assert all(run.new + run.present == len(events) for run in added)


def test_standard_input_is_read(run, tmp_path, monkeypatch):
    """`-` imports what is piped in."""
    source = io.TextIOWrapper(io.BytesIO(RUNS.read_bytes()))
    monkeypatch.setattr("sys.stdin", source)
    assert run("import", "-", "--json").json()["new_events"] > 0


def test_line_over_the_limit_is_an_error_of_that_line(run, tmp_path, monkeypatch):
    """A line that is too long is told with its number, and those after it go in."""
    long = _run(200)
    file = _file(tmp_path, _run(1, task=1), long, _run(1, task=2))
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 1000)
    monkeypatch.setattr(lines.lines, "__kwdefaults__", {"bytes_max": 1000})
    told = run("import", file, "--json")
    assert (told.status, told.json()["malformed"]) == (1, 1)
    assert "error: line 2: it is longer than" in told.err
    assert [agent["agent"] for agent in run("agents", "--json").json_lines()] == [
        "imported/1.0",
        "imported/2.0",
    ]


@pytest.mark.parametrize("size", [998, 999, 1000, 1001, 1_050_000, 2_500_000])
def test_lines_of_every_length_keep_their_numbers(size):
    """Long lines are passed over and nothing after them is lost or counted twice."""
    data = b"a\n" + b"x" * size + b"\nb\n" + b"y" * size
    found = [(line.number, line.data) for line in lines.lines(io.BytesIO(data), bytes_max=1000)]
    long = None if size > 1000 else b"x" * size
    assert found == [(1, b"a"), (2, long), (3, b"b"), (4, long and b"y" * size)]
