"""`perdure demo`: what it claims is what the folder says, read here without the demo's own code."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib import resources

import msgspec
import pytest

import perdure
from perdure.cli.demo.cluster.services import running
from perdure.cli.demo.journal import Acknowledged
from perdure.cli.demo.judge import judged, lost
from perdure.cli.demo.results import Results
from perdure.cli.demo.script import agent_of, shipped_runs, turns
from perdure.cli.main import main
from perdure.errors import Unavailable
from perdure.settings import Cluster

RUNS, KILLS = 3, 3


def _perdure(*arguments, cwd, **options):
    """The command line in a process of its own, its output piped."""
    code = "import sys; from perdure.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def _journal(folder):
    return [json.loads(line) for line in (folder / "acknowledged.jsonl").read_text().splitlines()]


def _recordings():
    lines = resources.files("perdure.cli").joinpath("data", "airline-runs.jsonl").read_text()
    runs = [json.loads(line) for line in lines.splitlines()]
    return {f"demo/{run['task_id']}.{run['trial']}": run["messages"] for run in runs}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One demo of few runs and kills: its results, and the folder that it left."""
    folder = tmp_path_factory.mktemp("demo")
    done = _perdure(
        "demo", "--json", "--seed", 3, "--runs", RUNS, "--kills", KILLS, "--store", "left",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder / "left"


async def test_every_acknowledged_event_is_in_the_folder(shown):
    """What the killed processes noted as acknowledged is in the store, there and nowhere else."""
    results, folder = shown
    journal = _journal(folder)
    async with perdure.connect(folder, create=False) as store:
        for agent in _recordings():
            said = [line for line in journal if line["agent"] == agent]
            events = [event async for event in store.view(agent).events()] if said else []
            for line in said:
                event = events[line["sequence"] - 1]
                assert event.sequence == line["sequence"]
                assert line.get("id", event.id) == event.id
                assert line.get("digest") == (
                    event.data["digest"] if event.type == "checkpoint.saved" else None
                )
            assert [n for n, count in Counter(e.id for e in events).items() if count > 1] == []
    assert results["tally"]["lost"] == 0
    assert results["tally"]["acknowledged"] == len({(e["agent"], e["sequence"]) for e in journal})
    assert results["tally"]["asked_again"] == len(journal) - results["tally"]["acknowledged"]


async def test_conversations_are_those_of_the_recordings(shown):
    """After the crashes each agent's messages are the recorded ones, and counted as claimed."""
    results, folder = shown
    recordings = _recordings()
    assert len(results["agents"]) == RUNS
    async with perdure.connect(folder, create=False) as store:
        for claim in results["agents"]:
            state = await store.view(claim["agent"]).state_at()
            assert state.messages.to_list() == recordings[claim["agent"]]
            assert claim["messages"] == len(recordings[claim["agent"]])
            assert claim["events"] == state.sequence
            assert claim["state_equal"]
            assert claim["messages_equal"]
    assert results["tally"]["recorded"] == sum(claim["events"] for claim in results["agents"])


def test_processes_were_really_killed(shown):
    """Each kill cut off a process at work: the journal names one more process than kills."""
    results, folder = shown
    processes = {line["process"] for line in _journal(folder)}
    assert len(results["crashes"]["kills"]) == KILLS
    assert processes == set(range(1, KILLS + 2))
    assert all(kill["lost"] == 0 for kill in results["crashes"]["kills"])
    assert all(kill["runs_cut_short"] > 0 for kill in results["crashes"]["kills"])


async def test_past_fork_and_memory_are_as_claimed(shown):
    """The states, the other timeline and the memory that the demo shows are in the folder."""
    results, folder = shown
    past, fork, recall = results["past"], results["fork"], results["recall"]
    async with perdure.connect(folder, create=False) as store:
        view, other = store.view(past["agent"]), store.view(fork["fork"])
        then = await view.state_at(past["then"])
        assert {row[0]: row[1] for row in past["fields"]}["messages"] == str(len(then.messages))
        assert past["changes"] == [
            change if len(change) <= 300 else f"{change[:299]}…"
            for change in map(str, await view.diff(past["then"], past["until"]))
        ]
        assert past["states"] == past["states_equal"] == results["tally"]["recorded"]
        shared = (await view.state_at(fork["at"])).messages.to_list()
        assert (await other.state_at()).messages.to_list()[: len(shared)] == shared
        assert (await other.state_at()).messages != (await view.state_at()).messages
        best = recall["hits"][0]
        [event] = [event async for event in view.events(best["sequence"], best["sequence"])]
        assert event.data["text"] == best["text"]
        assert all(hit["sequence"] <= recall["as_of"] for hit in recall["hits_as_of"])
        assert results["verified"]["findings"] == []


def test_sizes_are_measured(shown):
    """The messages take as many bytes as claimed, and the store is on disk."""
    results, _ = shown
    sizes = results["sizes"]
    messages = [_recordings()[claim["agent"]] for claim in results["agents"]]
    encoded = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in messages]
    assert sizes["messages_json"] == sum(len(each.encode()) for each in encoded)
    assert sizes["store"] > sizes["objects_stored"] > 0
    assert sizes["snapshots"] > sizes["messages_json"]


def test_every_command_it_names_works(shown):
    """Each line of "look further" runs in the folder as it is left."""
    results, folder = shown
    assert len(results["commands"]) > 5
    for name, *arguments in results["commands"]:
        assert name == "perdure"
        done = _perdure(*arguments, cwd=folder.parent)
        assert done.returncode == 0, (arguments, done.stderr)
        assert done.stdout, arguments


def test_piped_output_is_plain_and_a_second_demo_starts_clean(tmp_path):
    """Without a terminal there are no bars or colours, and the next demo clears the last one's."""
    for cleared in (False, True):
        done = _perdure("demo", "--runs", 1, "--kills", 1, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "✗ NOT SO" not in done.stdout
        assert "✓ no event was lost" in done.stdout
        assert ("is cleared" in done.stdout) is cleared
    assert {line["process"] for line in _journal(tmp_path / "perdure-demo")} == {1, 2}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    """A folder that no demo made is refused, cleared or not, and stays as it is."""
    (tmp_path / "letter.txt").write_text("dear Mia")
    for extra in ((), ("--fresh",)):
        done = _perdure("demo", "--store", tmp_path, *extra, cwd=tmp_path)
        assert done.returncode == 1
        assert "not a demo's" in done.stderr
        assert "hint:" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


async def test_somebodys_own_agents_are_not_cleared_by_the_way(tmp_path):
    """Agents added to a demo's folder are only deleted when that is asked for."""
    arguments = ("demo", "--runs", 1, "--kills", 0)
    assert _perdure(*arguments, cwd=tmp_path).returncode == 0
    async with perdure.connect(tmp_path / "perdure-demo") as store:
        await store.emit("mine/mia", "note", "keep this")
    refused = _perdure(*arguments, cwd=tmp_path)
    assert refused.returncode == 1
    assert "mine/mia" in refused.stderr
    async with perdure.connect(tmp_path / "perdure-demo", create=False) as store:
        assert await store.view("mine/mia").sequence() == 1
    assert _perdure(*arguments, "--fresh", cwd=tmp_path).returncode == 0
    async with perdure.connect(tmp_path / "perdure-demo", create=False) as store:
        assert "mine/mia" not in [line.agent async for line in store.agents()]


def test_ctrl_c_ends_the_agent_process_and_leaves_the_folder_sound(tmp_path):
    """Stopped in the middle, the demo leaves no process behind, and a store that is whole."""
    code = "import sys; from perdure.cli.main import main; sys.exit(main())"
    running = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "demo", "--kills", "100", "--seed", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in running.stdout:
        if line.strip().startswith("↻ started again"):
            break
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "is sound" in errors
    assert "Traceback" not in errors
    assert _perdure("verify", "--store", "perdure-demo", cwd=tmp_path).returncode == 0
    assert _at_work(tmp_path) == []


def _at_work(folder):
    """Agent processes of a demo in this folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [
        line
        for line in listed.stdout.splitlines()
        if "perdure.cli.demo.worker" in line and os.fspath(folder) in line
    ]


def test_a_lost_or_doubled_event_would_be_noticed():
    """The verdict can fail: taking an event away, or telling one twice, is counted."""
    events = [
        perdure.Event(
            id=f"e{number}", type="note", subject="demo/a", source="/", sequence=number,
            time="2026-01-01T00:00:00Z", writer="w", writer_sequence=number, data=number,
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    journal = [Acknowledged(1, "demo/a", event.sequence, id=event.id) for event in events]
    whole = {"demo/a": events}
    fine = judged(journal, whole, whole)
    assert (fine.lost, fine.missing, fine.doubled, fine.out_of_order) == (0, 0, 0, 0)
    short = judged(journal, {"demo/a": events[:2]}, whole)
    assert (short.lost, short.missing) == (1, 1)
    twice = judged(journal, {"demo/a": [*events, events[2]]}, whole)
    assert (twice.doubled, twice.out_of_order) == (1, 1)
    swapped = judged(journal, {"demo/a": [events[1], events[0], events[2]]}, whole)
    assert swapped.lost == 2
    assert swapped.out_of_order > 0
    assert lost(journal, {}) == {("demo/a", 1), ("demo/a", 2), ("demo/a", 3)}


def test_a_claim_that_does_not_hold_is_said_and_fails(shown, tmp_path, monkeypatch, capsys):
    """Where something is not equal, the demo says so in so many words and exits with 1."""
    results = msgspec.convert(shown[0], Results)
    claim = next(iter(results.checks))
    wrong = msgspec.structs.replace(results, checks={**results.checks, claim: False})

    async def conduct(path, *, audience, **_options):
        audience.ends(wrong)
        return wrong

    monkeypatch.setattr("perdure.cli.demo.conduct.conduct", conduct)
    assert main(["demo", "--store", str(tmp_path / "left")]) == 1
    assert f"✗ NOT SO: {claim}" in capsys.readouterr().out


def test_turns_are_the_same_every_time():
    """A run gives the same events with the same ids whenever it is asked, each id once."""
    for run in shipped_runs(10):
        first, second = turns(run), turns(run)
        assert first == second
        ids = [event.id for turn in first for event in turn.events]
        assert len(ids) == len(set(ids))
        assert [turn.message for turn in first] == list(run.messages)
        assert agent_of(run).startswith("demo/")


async def test_a_service_that_ends_by_itself_is_told_with_its_log(tmp_path):
    """A cluster's demo doesn't wait for a service that is gone: it names it, and where to look."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "perdure.toml").write_text('partitions = "some"\n')
    with pytest.raises(Unavailable, match="ended with status 1") as raised:
        async with running(tmp_path, Cluster(), lambda _: None):
            pytest.fail("they can't be ready")
    log = next(path for path in (tmp_path / "logs").iterdir() if str(path) in raised.value.hint)
    assert "partitions" in log.read_text()
