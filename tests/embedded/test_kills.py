"""SIGKILL in the middle of everything: guarantee 1, judged by the writers' own reports."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.embedded.forks import Forks, seeded, spin
from tests.embedded.judge import Journal

import perdure
from perdure import Event, Verification

AGENT = "kills/one"


async def look(folder: Path, agent: str = AGENT) -> tuple[list[Event], Verification]:
    """All events of an agent and what `verify` says, by a process that has just connected."""
    async with perdure.connect(folder) as store:
        view = store.view(agent)
        return [event async for event in view.events()], await view.verify()


async def judge(journal: Journal, folder: Path, agent: str = AGENT) -> list[Event]:
    """The judge's verdict on what is in the folder now."""
    events, verification = await look(folder, agent)
    journal.check(events)
    assert verification.findings == []
    assert len(events) == verification.events
    return events


def run_and_kill(
    forks: Forks, rng: random.Random, folder: Path, life: str, journal: Journal, **more: Any
) -> None:
    """One life of a writer: killed a moment after some acknowledgement, or before it is open."""
    child = forks.start(
        "work",
        folder=str(folder),
        agent=AGENT,
        life=life,
        seed=rng.randrange(1 << 32),
        again=list(journal.repeatable),
        **more,
    )
    reports = []
    acknowledgements = rng.choice([0, 1, 2, 3, 5, 8, 13, 21])
    while acknowledgements and (report := child.report()) is not None:
        reports.append(report)
        acknowledgements -= report[0] == "ack"
    spin(rng.random() * (0.002 if reports else 0.02))
    journal.take(life, reports + child.kill())


@pytest.mark.parametrize("part", range(2))
async def test_a_killed_writer_loses_doubles_and_reorders_nothing(forks, tmp_path, part):
    """Whatever an agent was writing when it was killed: what it was answered is there, once."""
    rng = seeded(f"one writer, part {part}")
    journal = Journal()
    folder = tmp_path / "store"
    for life in range(40):
        run_and_kill(forks, rng, folder, str(life), journal)
        # In half of the cases the next writer is the first to open what was left.
        if rng.random() < 0.5 and journal.acknowledged:
            await judge(journal, folder)
    events = await judge(journal, folder)
    assert len(events) > 25
    async with perdure.connect(folder) as store:
        agent = await store.agent(AGENT)
        assert journal.record(events) == agent.state.records.get("only")
        for token, saved in agent.state.checkpoints.items():
            assert saved.sequence <= len(events)
            assert (await agent.restore(token))["token"] == token


async def test_a_writer_killed_inside_a_statement_leaves_nothing_half_done(forks, tmp_path):
    """A kill at any step of SQLite's machine, sealing included, is as if the write never began."""
    rng = seeded("steps")
    journal = Journal()
    folder = tmp_path / "store"
    for life in range(25):
        child = forks.start(
            "work",
            folder=str(folder),
            agent=AGENT,
            life=str(life),
            seed=rng.randrange(1 << 32),
            again=list(journal.repeatable),
            die_at_step=rng.randrange(400, 12_000),
        )
        journal.take(str(life), child.reports())
    assert len(await judge(journal, folder)) > 25


async def test_two_writers_killed_on_one_folder_disturb_nobody(forks, tmp_path):
    """Of two owners and a guest killed on one folder, each has all that it was answered, once."""
    rng = seeded("two writers")
    folder = tmp_path / "store"
    names = ["kills/one", "kills/two"]
    journals = {name: Journal() for name in [*names, "kills/shared"]}
    for life in range(10):
        owners = {
            name: forks.start(
                "work",
                folder=str(folder),
                agent=name,
                life=f"{name} {life}",
                seed=rng.randrange(1 << 32),
                again=list(journals[name].repeatable),
            )
            for name in names
        }
        guest = forks.start(
            "contribute", folder=str(folder), agent="kills/shared", life=str(life), count=0
        )
        heard: dict[str, list[Any]] = {name: [] for name in names}
        for _ in range(rng.randrange(1, 30)):
            for name, child in owners.items():
                report = child.report()
                assert report is not None, heard[name][-1:]
                heard[name].append(report)
        first, second = rng.sample(names, 2)
        journals[first].take(f"{first} {life}", heard[first] + owners[first].kill())
        spin(rng.random() * 0.003)
        journals[second].take(f"{second} {life}", heard[second] + owners[second].kill())
        journals["kills/shared"].take(life, guest.kill())
        if life % 3 == 2:
            for name in names:
                await judge(journals[name], folder, name)
    for name, journal in journals.items():
        if journal.acknowledged:
            await judge(journal, folder, name)
    assert sum(len(journal.acknowledged) for journal in journals.values()) > 100


async def test_a_process_killed_while_it_makes_the_store_leaves_a_place_to_start(forks, tmp_path):
    """A store that was half made is none, or a whole one: the next process opens it and writes."""
    rng = seeded("creation")
    for attempt in range(15):
        folder = tmp_path / str(attempt)
        child = forks.start(
            "work",
            folder=str(folder),
            agent=AGENT,
            life="first",
            seed=attempt,
            again=[],
            die_at_step=rng.randrange(1, 2500),
        )
        journal = Journal()
        journal.take("first", child.reports())
        async with perdure.connect(folder) as store:
            agent = await store.agent(AGENT)
            journal.check([event async for event in agent.events()])
            before = await agent.sequence()
            assert before + 1 == (await agent.emit("note", {"token": "after"})).sequence
            assert (await agent.verify()).sound


async def test_a_process_killed_while_it_closes_loses_nothing(forks, tmp_path):
    """Closing seals and tidies up: killed in the middle of that, everything is still there."""
    rng = seeded("close")
    journal = Journal()
    for life in range(12):
        child = forks.start(
            "close",
            folder=str(tmp_path),
            agent=AGENT,
            life=str(life),
            die_at_step=rng.randrange(1, 1500),
        )
        journal.take(str(life), child.reports())
        if life % 2:
            await judge(journal, tmp_path)
    events = await judge(journal, tmp_path)
    assert 12 * 20 == len(events) == len(journal.acknowledged)


async def test_a_killed_import_goes_on_where_it_was(forks, tmp_path):
    """An import that was killed anywhere and done again gives what it gives without the kills."""
    rng = seeded("import")
    runs = [
        {
            "task_id": task,
            "trial": 0,
            "messages": [
                {"role": rng.choice(["user", "assistant"]), "content": f"{task} {n} " * 30}
                for n in range(40)
            ],
        }
        for task in range(12)
    ]
    file = tmp_path / "runs.jsonl"
    file.write_bytes(b"\n".join(msgspec.json.encode(run) for run in runs) + b"\n")
    folders = {name: tmp_path / name for name in ("killed", "whole")}
    for _ in range(10):
        steps = rng.randrange(500, 9000)
        child = forks.start(
            "bring_in", file=str(file), folder=str(folders["killed"]), die_at_step=steps
        )
        assert [report for report in child.reports() if report[0] == "error"] == []
    found = {}
    for name, folder in folders.items():
        child = forks.start("bring_in", file=str(file), folder=str(folder), die_at_step=0)
        assert child.until("done") == ["done", 0]
        async with perdure.connect(folder) as store:
            found[name] = {}
            for run in runs:
                view = store.view(f"runs/{run['task_id']}.0")
                assert run["messages"] == (await view.state_at()).messages
                assert (await view.verify()).sound
                found[name][view.name] = [
                    (event.sequence, event.type, event.data) async for event in view.events()
                ]
    assert found["whole"] == found["killed"]
