"""The command `perdure`: its commands, and what errors look like.

Invariants:
- Errors of perdure are one line `error: …` and one `hint: …` on standard error, exit status 1;
  what was typed wrongly is exit status 2, Ctrl-C 130, a reader that went away 141 without a word.
- `perdure --help` imports nothing that takes long.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from perdure.cli import (
    agents,
    checkpoints,
    doctor,
    events,
    importing,
    output,
    recall,
    state,
    timelines,
    verify,
)
from perdure.errors import NotFound, PerdureError
from perdure.version import __version__

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 128 + 2  # as a shell says it of a process that SIGINT ended
PIPE_CLOSED: Final = 128 + 13  # the same of SIGPIPE

CLUSTER: Final = "cluster"

# Commands whose modules are imported when they are called: name, module, help, and the extra with
# the packages they need.
_LATER: Final = (
    (
        "demo",
        "perdure.cli.demo.command",
        "Watch an agent being killed and losing nothing.",
        "",
    ),
    ("bench", "perdure.cli.bench.command", "Measure perdure beside raw SQLite and its peers.", ""),
    ("serve", "perdure.cli.serve.command", "Run a service of a cluster, or all of them.", CLUSTER),
    (
        "replay",
        "perdure.cli.replay.command",
        "Build a cluster's tables anew from its log.",
        CLUSTER,
    ),
    ("archive", "perdure.cli.archive.command", "Keep a cluster's log in zstd files.", CLUSTER),
    (
        "dead-letters",
        "perdure.cli.dead_letters.command",
        "Records that could not be recorded: list, show, send again.",
        CLUSTER,
    ),
)


def _plain_app() -> typer.Typer:
    return typer.Typer(
        # Plain help: as readable in a pipe and in the reference as on a terminal, and fast.
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 100},
    )


app = _plain_app()


def _print_version(wanted: bool) -> None:
    if wanted:
        output.line(f"perdure {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def perdure(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit"
        ),
    ] = False,
) -> None:
    """Durable state for AI agents: look at, go back to and check what agents did.

    The store is a folder, or a cluster behind perdure://host:port: --store, else $PERDURE_STORE,
    else ./.perdure. Commands that read never disturb a running agent. Every command has --help
    with examples.
    """
    if context.invoked_subcommand is None:
        output.line(context.get_help())


def _later(module: str, name: str, extra: str) -> Callable[[typer.Context], None]:
    """A command that imports what it does when it is called."""

    def call(context: typer.Context) -> None:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not extra or (error.name or "").startswith("perdure"):
                raise
            raise NotFound(
                f"the package {error.name} is not installed, which `perdure {name}` needs",
                hint=f"pip install 'perdure[{extra}]'",
            ) from error
        function: Callable[..., None] | typer.Typer = getattr(found, _python_name(name))
        if isinstance(function, typer.Typer):
            own = function  # it has commands of its own
        else:
            own = _plain_app()
            own.command(name=name, epilog=getattr(found, "EXAMPLES", None))(function)
        code = typer.main.get_command(own).main(
            args=context.args, prog_name=f"perdure {name}", standalone_mode=False
        )
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    return call


def _python_name(name: str) -> str:
    return name.replace("-", "_")


for _name, _module, _help, _extra in _LATER:
    if (Path(__file__).parent / _python_name(_name) / "command.py").is_file():
        app.command(
            _name,
            help=_help,
            add_help_option=False,  # it has its own
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )(_later(_module, _name, _extra))

app.command("import", epilog=importing.EXAMPLES)(importing.import_runs)
app.command("agents", epilog=agents.EXAMPLES)(agents.agents)
app.command("events", epilog=events.EXAMPLES)(events.events)
app.command("state", epilog=state.STATE_EXAMPLES)(state.state)
app.command("diff", epilog=state.DIFF_EXAMPLES)(state.diff)
app.command("fork", epilog=timelines.FORK_EXAMPLES)(timelines.fork)
app.command("revert", epilog=timelines.REVERT_EXAMPLES)(timelines.revert)
app.command("recall", epilog=recall.EXAMPLES)(recall.recall)
app.command("checkpoints", epilog=checkpoints.EXAMPLES)(checkpoints.checkpoints)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)

# The base of typer's errors about what was typed; it has no name of its own in typer.
_Typed: Final[type[Exception]] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    >>> main(["--version"])
    perdure ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        # Text of a store may hold what the terminal's encoding hasn't: shown as an escape.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = typer.main.get_command(app).main(
            args=None if args is None else list(args), prog_name="perdure", standalone_mode=False
        )
        sys.stdout.flush()
    except PerdureError as problem:
        output.error(problem)
        return FAILED
    except (output.ReaderGoneError, BrokenPipeError):
        # Python flushes standard output once more at its end, and would complain.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except _Typed as problem:
        return _mistyped(problem)
    except OSError as problem:
        output.failure(str(problem))
        return FAILED
    if code == INTERRUPTED:
        output.note("interrupted")
    return code if isinstance(code, int) else 0


def _mistyped(problem: Exception) -> int:
    context = getattr(problem, "ctx", None)
    message = getattr(problem, "format_message", lambda: str(problem))()
    command = context.command_path if context is not None else "perdure"
    output.failure(message.rstrip("."), f"see {command} --help")
    return int(getattr(problem, "exit_code", USAGE))
