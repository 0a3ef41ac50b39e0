"""`perdure recall` among messages: what somebody tries first finds something."""

import asyncio

import msgspec
import pytest
from tests.unit.cli import runner

import perdure
from perdure.cli import recall as command
from perdure.embedded import folder
from perdure.embedded.database import Database
from perdure.embedded.schema import MIGRATIONS
from perdure.memorizer import message_search

MESSAGES = [
    {"role": "system", "content": "You are an airline agent. Luggage rules: none."},
    {"role": "user", "content": "How much luggage may I bring?"},
    {"role": "assistant", "content": "Two bags of 23 kg each are free.", "tool_calls": []},
    {"role": "user", "content": "Thanks. And I want to pay with my credit card."},
]


@pytest.fixture
def run(capsys, tmp_path):
    """Runs commands on a store into which one run was imported."""
    run = runner(capsys, tmp_path / "store")
    runs = tmp_path / "runs.jsonl"
    runs.write_bytes(msgspec.json.encode({"task_id": 0, "trial": 0, "messages": MESSAGES}) + b"\n")
    assert run("import", str(runs), "--namespace", "airline").status == 0
    return run


def remember(tmp_path, text):
    """Give the agent a memory."""

    async def work():
        async with perdure.connect(tmp_path / "store") as store:
            await store.emit("airline/0.0", "memory.stored", {"text": text})

    asyncio.run(work())


def test_an_imported_run_is_searched_for_what_was_said(run):
    """Without memories the messages are searched, and one line on standard error says so."""
    ran = run("recall", "airline/0.0", "what baggage?", "--json")
    hits = ran.json_lines()
    assert {hit["sequence"] for hit in hits[:2]} == {2, 3}
    assert {hit["source"] for hit in hits} == {"user", "assistant"}
    assert ran.err == "airline/0.0 has no memories: searching its messages\n"
    shown = run("recall", "airline/0.0", "what baggage?", "-k", "1")
    assert "airline/0.0@" in shown.out
    assert "cosine" in shown.out


def test_an_agent_with_memories_is_asked_for_them(run, tmp_path):
    """Memories are the default where there is one, even where none of them fits."""
    remember(tmp_path, "prefers aisle seats")
    ran = run("recall", "airline/0.0", "seats", "--json")
    assert [hit["text"] for hit in ran.json_lines()] == ["prefers aisle seats"]
    assert ran.err == ""
    ran = run("recall", "airline/0.0", "seats", "--source", "nobody")
    assert (ran.out, ran.err) == ("", "nothing is remembered that fits\n")
    ran = run("recall", "airline/0.0", "luggage", "--as-of", "3", "--json")
    assert {hit["source"] for hit in ran.json_lines()} == {"user", "assistant"}
    assert ran.err == "airline/0.0 has no memories as of 3: searching its messages\n"


def test_what_is_searched_can_be_chosen(run, tmp_path):
    """`--among` searches what it says and nothing else, without a word on it."""
    ran = run("recall", "airline/0.0", "luggage", "--among", "memories")
    assert (ran.status, ran.out, ran.err) == (0, "", "nothing is remembered that fits\n")
    remember(tmp_path, "has much luggage")
    ran = run("recall", "airline/0.0", "luggage", "--among", "messages", "-k", "9", "--json")
    assert sorted(hit["sequence"] for hit in ran.json_lines()) == [2, 3, 4]
    assert ran.err == ""
    assert run("recall", "airline/0.0", "luggage", "--among", "both").status == 2


def test_messages_are_filtered_by_role(run):
    """`--source` chooses a role; where nothing was said that fits, that is said."""
    options = ("--among", "messages", "--source")
    hits = run("recall", "airline/0.0", "luggage", *options, "assistant", "--json").json_lines()
    assert [hit["sequence"] for hit in hits] == [3]
    ran = run("recall", "airline/0.0", "luggage", *options, "system")
    assert (ran.status, ran.out, ran.err) == (0, "", "nothing was said that fits\n")


def test_a_cut_is_told(run, monkeypatch):
    """Where only the newest messages are searched, one line says how many of how many."""
    for module in (message_search, command):
        monkeypatch.setattr(module, "MESSAGES_MAX", 2)
    ran = run("recall", "airline/0.0", "luggage", "--among", "messages", "-k", "9", "--json")
    assert sorted(hit["sequence"] for hit in ran.json_lines()) == [3, 4]
    assert ran.err == "searching the newest 2 of 3 messages\n"


def test_a_long_message_is_shown_shortened(run, tmp_path):
    """On the screen a message of pages takes a few lines; in JSON it is whole."""

    async def work():
        async with perdure.connect(tmp_path / "store") as store:
            data = {"role": "tool", "content": "luggage " * 1000}
            await store.emit("airline/0.0", "message.added", data)

    asyncio.run(work())
    options = ("airline/0.0", "luggage", "--source", "tool")
    assert max(map(len, run("recall", *options).out.splitlines())) < 500
    assert len(run("recall", *options, "--json").json()["text"]) == 8000


def test_a_store_that_cannot_be_written_is_searched(run, tmp_path, monkeypatch):
    """Messages are found in a store that is opened for reading only, and no file is made."""

    def read_only(path):
        return Database(path, MIGRATIONS, writable=False)

    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    monkeypatch.setattr(folder, "_opened", read_only)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    hits = run("recall", "airline/0.0", "what baggage?", "--json").json_lines()
    assert {hit["sequence"] for hit in hits[:2]} == {2, 3}
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
