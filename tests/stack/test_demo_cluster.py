"""`perdure demo --cluster`: what it claims is what the engines hold, read without its own code."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
from rich.console import Console
from tests.stack.fixtures import drop

import perdure
from perdure.cassandra.session import Session
from perdure.cli.demo.cluster import engines as demo_engines
from perdure.cli.demo.cluster import place
from perdure.cli.demo.cluster.printing import ClusterPrinted
from perdure.cli.demo.cluster.results import ClusterResults
from perdure.cli.demo.cluster.services import NAMES
from perdure.cli.demo.script import shipped_runs
from perdure.errors import InvalidInput
from perdure.settings import load

RUNS, KILLS = 2, 1
DEMO_SECONDS = 240
COMMAND_SECONDS = 60


def _command(*arguments):
    code = "import sys; from perdure.cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)]


async def _run(*arguments, **options):
    return await asyncio.to_thread(
        subprocess.run, _command(*arguments), capture_output=True, text=True,
        timeout=DEMO_SECONDS, check=False, **options,
    )  # fmt: skip


def _at(engines):
    """The engines as variables."""
    names = ("kafka", "cassandra", "weaviate", "weaviate_grpc")
    return os.environ | {f"PERDURE_{name.upper()}": getattr(engines, name) for name in names}


@pytest.mark.slow
async def test_what_the_demo_claims_is_what_the_engines_hold(engines, tmp_path):
    """After kills of agents and services each acknowledged event is there once, rebuilt as well."""
    folder = tmp_path / "left"
    shown = await _run(
        "demo", "--cluster", "--json", "--seed", 3, "--runs", RUNS, "--kills", KILLS,
        "--store", "left", cwd=tmp_path, env=_at(engines),
    )  # fmt: skip
    cluster = load(folder / "perdure.toml", environment={})
    try:
        assert shown.returncode == 0, shown.stderr
        results = msgspec.json.decode(shown.stdout, type=ClusterResults)
        assert results.held
        _everybody_was_killed(results, folder)
        _lag_rose_and_fell(results)
        live = await _stored(cluster, 1)
        _acknowledged_are_there_once(folder, live)
        _conversations_are_the_recordings(live)
        rebuilt = await _stored(cluster, results.replayed.generation)
        assert live == rebuilt
        _what_is_printed_says_so(results)
        await _commands_work(results, tmp_path)
        await _cleared_when_it_may_be(engines, folder, live, cluster)
    finally:
        await drop(cluster)


def _everybody_was_killed(results, folder):
    """Each service once, the agents as often as asked, and each was started again."""
    victims = Counter(kill.victim for kill in results.work.kills)
    assert victims == {"agents": KILLS, **dict.fromkeys(NAMES, 1)}
    said = [json.loads(line) for line in (folder / "acknowledged.jsonl").read_text().splitlines()]
    assert {line["process"] for line in said} == set(range(1, KILLS + 2))
    for name in NAMES:
        log = (folder / "logs" / f"{name}.log").read_text()
        assert log.count('"event":"started"') == 2, name


def _lag_rose_and_fell(results):
    """While the recorder was away records waited for it; in the end nobody lacked any."""
    assert max(sample.behind["recorder"] for sample in results.work.lag) > 0
    assert set(results.work.lag[-1].behind.values()) == {0}


def _acknowledged_are_there_once(folder, stored):
    """What the killed processes noted is in the tables, each once, numbered 1, 2, 3 …."""
    for line in map(json.loads, (folder / "acknowledged.jsonl").read_text().splitlines()):
        events = stored[line["agent"]]
        found = [
            event
            for event in events
            if (event["id"] == line["id"] if "id" in line else _digest(event) == line["digest"])
        ]
        assert len(found) == 1, line
    for agent, events in stored.items():
        numbers = [int(event["sequence"]) for event in events]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), agent


def _digest(event):
    return event["data"]["digest"] if event["type"] == "checkpoint.saved" else None


def _conversations_are_the_recordings(stored):
    """The messages in the tables are those of the recorded runs."""
    for run in shipped_runs(RUNS):
        events = stored[f"demo/{run.name}"]
        said = [event["data"] for event in events if event["type"] == "message.added"]
        assert said == list(run.messages)


def _what_is_printed_says_so(results):
    """The page names what was found, and a claim that doesn't hold as such."""
    claim = next(iter(results.checks))
    wrong = msgspec.structs.replace(results, checks={**results.checks, claim: False})
    written = io.StringIO()
    page = ClusterPrinted(Console(file=written, width=100))
    page.work(results.work)
    page.events(results.work, results.tally, results.agents)
    page.stored(results.stored)
    page.replayed(results.replayed, results.stored)
    page.ends(wrong, kept=False)
    text = written.getvalue()
    assert "█" in text
    assert f"✗ NOT SO: {claim}" in text
    assert "perdure serve all --config left/perdure.toml" in text
    for chains in results.replayed.chains:
        assert text.count(f"{chains.live.chain[:16]}…") >= 2


async def _commands_work(results, cwd):
    """What the demo names to look further works once the services run again, as it says."""
    serving = await asyncio.create_subprocess_exec(
        *_command("serve", "all", "--config", "left/perdure.toml"),
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for name, *arguments in results.commands:
            assert name == "perdure"
            done = await _run(*arguments, cwd=cwd)
            assert done.returncode == 0, (arguments, done.stderr)
            assert done.stdout, arguments
        async with perdure.connect(cwd / "left" / "perdure.toml") as store:
            assert await store.view(results.agents[0].agent).sequence() == results.agents[0].events
    finally:
        serving.terminate()
        assert await asyncio.wait_for(serving.wait(), COMMAND_SECONDS) == 0


async def _cleared_when_it_may_be(engines, folder, stored, cluster):
    """The next demo drops all of it, but not somebody's own agents without being asked."""
    marker = (folder / "demo.json").read_bytes()
    async with demo_engines.opened(engines) as opened:
        (folder / "demo.json").write_text('{"made_by": "perdure", "agents": []}')
        with pytest.raises(InvalidInput, match=min(stored)):
            await place.clear(folder, opened, [], fresh=False)
        assert (folder / "perdure.toml").exists()
        (folder / "demo.json").write_bytes(marker)
        assert await place.clear(folder, opened, [], fresh=False)
        assert not await place.clear(folder, opened, [], fresh=False)
    session = await Session.connect(cluster)
    rows = await session.execute("SELECT keyspace_name FROM system_schema.keyspaces")
    await session.close()
    assert [name for (name,) in rows if name.startswith(cluster.name)] == []
    assert {path.name for path in folder.iterdir()} == {"demo.json"}


async def _stored(cluster, generation):
    """The events of each agent in a generation's tables."""
    session = await Session.connect(cluster)
    keyspace = cluster.keyspace(generation)
    found = {}
    for agent, event in sorted(
        await session.execute(
            f"SELECT agent, event FROM {keyspace}.events WHERE sequence > 0 ALLOW FILTERING"
        ),
        key=lambda row: row[0],
    ):
        found.setdefault(agent, []).append(json.loads(event))
    await session.close()
    return {
        agent: sorted(events, key=lambda e: int(e["sequence"])) for agent, events in found.items()
    }
