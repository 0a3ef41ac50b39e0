"""The commands that look at agents: what they print for people, and for programs."""

import asyncio
import os
import pty
import re

import msgspec
import pytest
from tests.unit.cli import environment, filled, process, runner

import perdure
from perdure.model.state import decode, encode


@pytest.fixture
def mia(tmp_path):
    """The state of the one agent of a store."""
    return filled(tmp_path / "store")


@pytest.fixture
def run(mia, capsys, tmp_path):
    """Runs a command on that store."""
    return runner(capsys, tmp_path / "store")


def test_agents_are_listed_by_prefix(run):
    """`agents` names each agent that starts with the prefix, and no other."""
    run("fork", "airline/mia", "--at", "2", "--name", "hotel/zoe")
    assert [line["agent"] for line in run("agents", "--json").json_lines()] == [
        "airline/mia",
        "hotel/zoe",
    ]
    listed = run("agents", "hotel/")
    assert "hotel/zoe" in listed.out
    assert "airline/mia@2" in listed.out
    assert len(listed.out.splitlines()) == 2
    assert run("agents", "zoo/").err == "no agent starts with zoo/\n"


def test_events_as_json_are_cloudevents(run):
    """`events --json` prints each event as a CloudEvent, a line each, in order."""
    events = run("events", "airline/mia", "--json").json_lines()
    assert [event["type"] for event in events] == [
        "message.added",
        "tool.called",
        "tool.executed",
        "decision.made",
        "record.put",
        "memory.stored",
        "memory.stored",
        "checkpoint.saved",
    ]
    assert {event["specversion"] for event in events} == {"1.0"}
    assert [int(event["sequence"]) for event in events] == [*range(1, 9)]


@pytest.mark.parametrize(
    ("options", "sequences"),
    [
        (["--first", "3", "--last", "4"], [3, 4]),
        (["--type", "tool.*"], [2, 3]),
        (["--type", "tool.called", "--type", "decision.made"], [2, 4]),
        (["--since", "2999-01-01T00:00Z"], []),
        (["--until", "2999-01-01T00:00Z", "--last", "1"], [1]),
    ],
)
def test_events_are_filtered(run, options, sequences):
    """Sequence, type and time choose events, and all of them must hold."""
    events = run("events", "airline/mia", "--json", *options).json_lines()
    assert [int(event["sequence"]) for event in events] == sequences


def test_events_are_one_line_each_when_piped(run):
    """Plain text has the whole data on the event's line, and no colour."""
    lines = run("events", "airline/mia").out.splitlines()
    assert len(lines) == 8
    assert lines[0].split()[2:] == ["message.added", *'{"role":"user","content":"a seat, please"}'.split()]  # fmt: skip  # noqa: E501, SIM905
    assert "\x1b" not in "".join(lines)


def test_state_as_json_is_the_state(run, mia):
    """`state --json` is one document, the very bytes that the model encodes."""
    printed = run("state", "airline/mia", "--json").out
    assert printed.encode() == encode(mia) + b"\n"
    assert decode(printed.encode()) == mia


def test_state_at_a_sequence_and_at_a_time(run):
    """`--at` takes a sequence, or a time with a zone."""
    assert run("state", "airline/mia", "--at", "4", "--json").json()["records"] == {}
    assert run("state", "airline/mia", "--at", "5", "--json").json()["records"] != {}
    fifth = run("events", "airline/mia", "--first", "5", "--last", "5", "--json").json()["time"]
    assert run("state", "airline/mia", "--at", fifth, "--json").json()["sequence"] >= 5
    assert (
        run("state", "airline/mia", "--at", "2000-01-01T00:00Z", "--json").json()["sequence"] == 0
    )


def test_state_for_people_says_what_there_is(run):
    """Each part of the state is named, with what is newest in it."""
    shown = run("state", "airline/mia").out
    for part in ("airline/mia", "a seat, please", "refund", '{"tier":"gold"}', "policy", "1 call"):
        assert part in shown


def test_diff_tells_what_changed(run):
    """`diff` names each path that is different, one a line."""
    differences = run("diff", "airline/mia", "4", "5", "--json").json_lines()
    assert {"path": "records.profile", "kind": "added", "before": None, "after": {"tier": "gold"}} in differences  # fmt: skip  # noqa: E501
    assert 'records.profile: + {"tier":"gold"}' in run("diff", "airline/mia", "4", "5").out
    same = run("diff", "airline/mia", "4", "4")
    assert (same.out, same.err) == ("", "the two states are equal\n")


def test_fork_goes_its_own_way(run):
    """A fork has the parent's state at its point, and the parent stays as it was."""
    forked = run("fork", "airline/mia", "--at", "4", "--name", "airline/if", "--json").json()
    assert forked == {
        "agent": "airline/if",
        "sequence": 5,
        "parent": "airline/mia",
        "forked_at": 4,
    }
    assert run("state", "airline/if", "--json").json()["records"] == {}
    assert run("state", "airline/mia", "--json").json()["sequence"] == 8
    again = run("fork", "airline/mia", "--name", "airline/if")
    assert again.status == 1
    assert "there is an agent airline/if already" in again.err


def test_revert_undoes_and_can_be_undone(run):
    """After `revert` the state is as then; what touched the outside is told; undoing undoes it."""
    undone = run("revert", "airline/mia", "--to", "1", "--json")
    assert [event["type"] for event in undone.json()["effects"]] == ["tool.called", "tool.executed"]
    assert run("state", "airline/mia", "--json").json()["decisions"] == []
    back = run("revert", "airline/mia", "--to", "8")
    assert back.status == 0
    assert "can't write to it any more" in back.err
    assert run("state", "airline/mia", "--json").json()["decisions"] == [{"choice": "refund"}]


def test_revert_takes_over_no_agent_when_it_can_not_revert(run, tmp_path):
    """A sequence that isn't there is refused before the agent is taken from whoever has it."""
    before = run("agents", "--json").json()["epoch"]
    refused = run("revert", "airline/mia", "--to", "99")
    assert refused.status == 1
    assert "no sequence 99" in refused.err
    assert run("revert", "airline/nobody", "--to", "0").status == 1
    (after,) = run("agents", "--json").json_lines()
    assert after["epoch"] == before


def test_reading_disturbs_no_running_agent(run, tmp_path):
    """An agent that is open goes on writing after every command that reads."""

    async def work():
        async with perdure.connect(tmp_path / "store") as store:
            agent = await store.agent("airline/mia")
            for command in (
                ["events", "airline/mia"],
                ["state", "airline/mia"],
                ["diff", "airline/mia", "1", "2"],
                ["checkpoints", "airline/mia"],
                ["verify", "airline/mia"],
                ["doctor"],
                ["fork", "airline/mia", "--name", "airline/twin"],
            ):
                assert (await asyncio.to_thread(run, *command)).status == 0
            return (await agent.emit("decision.made", {"choice": "go on"})).epoch

    assert asyncio.run(work()) == 2


def test_recall_finds_by_meaning_and_explains(run):
    """`recall` gives the memory that fits first, with where it comes from and its score's parts."""
    hits = run("recall", "airline/mia", "where does she like to sit?", "--json").json_lines()
    assert hits[0]["text"] == "prefers aisle seats"
    assert hits[0]["source"] == "chat"
    shown = run("recall", "airline/mia", "seats", "-k", "1").out
    assert "prefers aisle seats" in shown
    assert "context.task" in shown or '"task":"t-7"' in shown
    assert "cosine" in shown


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--source", "form"], ["is called Mia"]),
        (["--where", "context.task=t-7"], ["prefers aisle seats"]),
        (["--where", "weight=3"], ["prefers aisle seats"]),
        (["--where", 'weight="3"'], []),
        (["--as-of", "6"], ["prefers aisle seats"]),
        (["--as-of", "5", "--among", "memories"], []),
    ],
)
def test_recall_is_filtered(run, options, texts):
    """Source, fields and a past sequence choose what is asked."""
    hits = run("recall", "airline/mia", "seats or name", "--json", *options).json_lines()
    assert [hit["text"] for hit in hits] == texts


def test_checkpoints_are_listed(run):
    """`checkpoints` names each saved object with its sizes; none at a sequence before it."""
    (saved,) = run("checkpoints", "airline/mia", "--json").json_lines()
    assert (saved["name"], saved["sequence"]) == ("policy", 8)
    assert saved["stored"] < saved["size"]
    assert "policy" in run("checkpoints", "airline/mia").out
    assert run("checkpoints", "airline/mia", "--as-of", "7", "--json").out == ""


def test_own_projection_from_a_file_and_a_module(run, tmp_path, monkeypatch):
    """`--load` registers a projection of the user's; without it, the error says what is known."""
    source = (
        "import perdure\n"
        "@perdure.projection('calls_{0}', initial=lambda: 0)\n"
        "def calls(state, event):\n"
        "    return state + (event.type == 'tool.called')\n"
    )
    (tmp_path / "by_file.py").write_text(source.format("by_file"))
    (tmp_path / "by_module.py").write_text(source.format("by_module"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for load, name in (("./by_file.py", "calls_by_file"), ("by_module", "calls_by_module")):
        unknown = run("state", "airline/mia", "--projection", name)
        assert unknown.status == 1
        assert f"no projection '{name}'" in unknown.err
        told = run("state", "airline/mia", "--projection", name, "--load", load, "--json")
        assert told.json() == 1


def test_broken_projection_file_is_named(run, tmp_path):
    """A file that raises when it is loaded is an error that names the file and the reason."""
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('not today')")
    told = run("state", "airline/mia", "--load", str(broken))
    assert told.status == 1
    assert "broken.py" in told.err
    assert "not today" in told.err


def test_verify_says_what_it_looked_at(run):
    """A sound store verifies with what was counted, for all agents or one."""
    assert run("verify").out == "1 agent, 8 events, 1 checkpoint looked at: all as it was written\n"
    found = run("verify", "airline/mia", "--json").json()
    assert (found["events"], found["checkpoints"], found["findings"]) == (8, 1, [])


def test_verify_names_a_damaged_checkpoint(run, tmp_path):
    """A flipped byte in an object is found, named with its event, and is exit status 1."""
    (path,) = (path for path in (tmp_path / "store/checkpoints").rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    told = run("verify")
    assert told.status == 1
    assert "'policy' of airline/mia@8" in told.out
    assert "hint:" in told.out
    assert run("verify", "--json").json()["findings"]


def test_hostile_text_does_not_reach_the_terminal(run, tmp_path):
    """Control characters that a store holds are shown as escapes, never sent."""

    async def write():
        async with perdure.connect(tmp_path / "store") as store:
            await store.emit(
                "airline/mia", "message.added", {"role": "user", "content": "\x1b[2J\x9b31m\u202e"}
            )

    asyncio.run(write())
    for command in (["state", "airline/mia"], ["events", "airline/mia"]):
        shown = run(*command).out
        assert not {"\x1b", "\x9b", "\u202e"} & set(shown)
    content = run("state", "airline/mia", "--json").json()["messages"][-1]["content"]
    assert content == "\x1b[2J\x9b31m\u202e"


def _on_a_terminal(*args, typed=b"", status=0, **variables):
    """What a command shows on a terminal, escapes included."""
    ours, theirs = pty.openpty()
    started = process(
        *args,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color", **variables),
    )
    os.close(theirs)
    os.write(ours, typed)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert started.wait() == status
    return shown.decode()


@pytest.mark.parametrize(
    ("typed", "status", "epoch"), [(b"n\n", 1, 1), (b"\n", 1, 1), (b"y\n", 0, 2)]
)
def test_revert_asks_on_a_terminal(run, tmp_path, typed, status, epoch):
    """Without --yes a person is asked first; anything but yes leaves the agent to who has it."""
    store = str(tmp_path / "store")
    shown = _on_a_terminal(
        "revert", "airline/mia", "--to", "1", "--store", store, typed=typed, status=status
    )
    assert "undo airline/mia from 8 back to 1?" in shown
    assert run("agents", "--json").json()["epoch"] == epoch


def test_colours_are_for_terminals_and_can_be_refused(mia, tmp_path):
    """A terminal gets colours and lines of its width, unless NO_COLOR says not to."""
    store = str(tmp_path / "store")
    coloured = _on_a_terminal("events", "airline/mia", "--store", store, COLUMNS="60")
    assert "36m" in coloured
    plain = _on_a_terminal("events", "airline/mia", "--store", store, COLUMNS="60", NO_COLOR="1")
    assert "36m" not in plain
    assert "…" in plain
    listed = _on_a_terminal("agents", "--store", store)
    assert "airline/mia" in listed
    assert "─" in listed


def test_a_terminal_breaks_long_lines_between_words(run, tmp_path):
    """What is longer than a terminal is wide goes on below, indented, with its words whole."""
    text = "a row at the window please and if there is none then one at the aisle"
    asyncio.run(_emit_one(tmp_path / "store", text))
    store = ("--store", str(tmp_path / "store"))
    shown = _on_a_terminal("diff", "airline/wordy", "0", "1", *store, COLUMNS="40", NO_COLOR="1")
    lines = shown.splitlines()
    assert any(line.startswith("  ") for line in lines)
    assert max(len(line) for line in lines) <= 40
    assert set(text.split()) <= set(re.findall("[a-z]+", shown))


async def _emit_one(path, text):
    async with perdure.connect(path) as store:
        await store.emit("airline/wordy", "message.added", {"role": "user", "content": text})


def test_json_is_the_same_on_a_terminal(mia, tmp_path):
    """--json prints no colour and no ornament, wherever it goes."""
    shown = _on_a_terminal("state", "airline/mia", "--json", "--store", str(tmp_path / "store"))
    assert msgspec.json.decode(shown) == msgspec.json.decode(encode(mia))
