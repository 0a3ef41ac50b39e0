"""What the command line says when something is wrong, and what it exits with."""

import signal
import subprocess
import sys
import time

import pytest
from tests.unit.cli import environment, filled, finished, process, runner

from perdure.version import __version__


@pytest.fixture
def run(capsys, tmp_path):
    """Runs a command on a sound store."""
    filled(tmp_path / "store")
    return runner(capsys, tmp_path / "store")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["state", "airline/nobody"], "there is no agent airline/nobody"),
        (["events", "../x"], "'..' has to start with a letter or digit"),
        (["state", "airline/mia", "--at", "99"], "no sequence 99: its last is 8"),
        (["state", "airline/mia", "--at", "-1"], "-1"),
        (["events", "airline/mia", "--first", "0"], "first"),
        (["recall", "airline/mia", " "], "blank"),
        (["recall", "airline/mia", "x", "-k", "0"], "k is 0"),
        (["recall", "airline/mia", "x", "--where", "a..b=1"], "a..b"),
        (["state", "airline/mia", "--projection", "none"], "no projection 'none'"),
        (["state", "airline/mia", "--load", "no_such_module"], "no_such_module"),
        (["import", __file__, "--namespace", "../x"], "namespace"),
    ],
)
def test_error_is_one_line_with_a_way_out(run, command, part):
    """An error is `error: …` and `hint: …` on standard error, nothing on the other, status 1."""
    told = run(*command)
    assert (told.status, told.out) == (1, "")
    error, hint = told.err.splitlines()
    assert error.startswith("error: ")
    assert part in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    "command",
    [
        ["frobnicate"],
        ["state"],
        ["state", "airline/mia", "--colour"],
        ["state", "airline/mia", "--at", "yesterday"],
        ["state", "airline/mia", "--at", "2026-11-01T10:00"],
        ["events", "airline/mia", "--since", "7"],
        ["diff", "airline/mia", "1"],
        ["recall", "airline/mia", "x", "--where", "no value"],
        ["import", "no-such-file.jsonl"],
        ["import", "."],
        ["revert", "airline/mia"],
    ],
)
def test_what_is_typed_wrongly_is_status_2(run, command):
    """A mistyped command says what is wrong and where its help is."""
    told = run(*command, store=None)
    assert (told.status, told.out) == (2, "")
    error, hint = told.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: see perdure")


@pytest.mark.parametrize(
    "command", [["agents"], ["verify"], ["state", "a/b"], ["recall", "a/b", "x"]]
)
def test_reading_makes_no_store(capsys, tmp_path, command):
    """A store that isn't there is an error, and still isn't there afterwards."""
    told = runner(capsys, tmp_path / "nowhere")(*command)
    assert told.status == 1
    assert "there is no store at" in told.err
    assert not (tmp_path / "nowhere").exists()


def test_store_comes_from_the_option_then_the_variable_then_here(
    run, capsys, tmp_path, monkeypatch
):
    """--store wins over PERDURE_STORE, which wins over ./.perdure."""
    monkeypatch.chdir(tmp_path)
    assert run("agents", store=None).status == 1
    monkeypatch.setenv("PERDURE_STORE", (tmp_path / "store").as_uri())
    assert run("agents", "--json", store=None).json()["agent"] == "airline/mia"
    assert run("agents", store=tmp_path / "other").status == 1
    monkeypatch.delenv("PERDURE_STORE")
    (tmp_path / "store").rename(tmp_path / ".perdure")
    assert run("agents", store=None).status == 0


def test_unknown_kind_of_url_is_an_error(run):
    """A URL of a kind that isn't known is refused, not taken for a folder."""
    assert "redis://" in run("agents", store="redis://localhost").err


def test_version_and_help(run):
    """--version names the version; no command at all shows what there is."""
    assert run("--version", store=None).out == f"perdure {__version__}\n"
    told = run(store=None)
    assert told.status == 0
    assert "import" in told.out
    assert "doctor" in told.out


@pytest.mark.parametrize("absent", ["drill", "ui", "step"])
def test_what_does_nothing_yet_is_absent(run, absent):
    """A command that does nothing here isn't offered."""
    assert run(absent, store=None).status == 2


def test_reader_that_goes_away_is_no_error(tmp_path):
    """`perdure events … | head -1` ends without a word."""
    lines = b'{"messages": [%s]}\n' % b", ".join(
        [b'{"role": "user", "content": "%s"}' % (b"x" * 1000)] * 500
    )
    file = tmp_path / "runs.jsonl"
    file.write_bytes(lines)
    store = str(tmp_path / "store")
    assert finished("import", str(file), "--store", store).status == 0
    started = process("events", "imported/1", "--store", store)
    started.stdout.readline()
    started.stdout.close()
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait() == 128 + signal.SIGPIPE


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    """SIGINT while it waits for input ends it at once, with status 130 and what was read kept."""
    store = tmp_path / "store"
    started = process("import", "-", "--store", str(store), stdin=subprocess.PIPE)
    started.stdin.write(b'{"messages": [{"role": "user"}]}\n' * 32)
    started.stdin.flush()
    ended_by = time.monotonic() + 30
    while not _recorded(store, 32):
        assert started.poll() is None
        assert time.monotonic() < ended_by
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 130
    assert err == b"interrupted\n"
    assert _recorded(store, 32)


def _recorded(store, count):
    return finished("agents", "--store", str(store), "--json").out.count(b"\n") == count


def test_text_that_the_terminal_has_not_is_escaped(tmp_path):
    """An encoding that lacks a character gets an escape, not a traceback."""
    file = tmp_path / "runs.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Zoë ✈"}]}\n', encoding="utf-8")
    store = str(tmp_path / "store")
    assert finished("import", str(file), "--store", store).status == 0
    shown = finished(
        "state", "imported/1", "--store", store, env=environment(PYTHONIOENCODING="ascii")
    )
    assert shown.status == 0, shown.err
    assert b"Zo\\xeb" in shown.out


def test_help_imports_nothing_heavy():
    """`perdure --help` waits for no terminal library and no model."""
    code = (
        "import sys\nfrom perdure.cli.main import main\nmain(['--help'])\n"
        "heavy = {'rich', 'numpy', 'onnxruntime', 'tokenizers', 'langgraph'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stderr == b"[]\n"
