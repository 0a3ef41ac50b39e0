"""Writes `docs/cli.md` from what `perdure --help` says. `make docs` runs it.

The reference is what the installed command prints, at a fixed width, and nothing that was typed by
hand but the lines at its top.
"""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COLUMNS = 100

_TOP = """\
# The command line

Every command finds its store by `--store PATH_OR_URL`, else by the variable `PERDURE_STORE`, else
in `./.perdure`. `--json` prints one value as one JSON document and lists as JSON lines on standard
output; everything else goes to standard error. Commands that read never disturb a running agent.

Exit status: 0 when it went well, 1 when it didn't (`error: …` and `hint: …` on standard error, or a
report that found something), 2 when it was typed wrongly, 130 after Ctrl-C, 141 when whoever read
the output stopped.

Written by `make docs` from `--help`.
"""


def reference() -> str:
    """The page: the help of `perdure` and of each of its commands."""
    overview = _help()
    commands = [
        line.split()[0] for line in overview.partition("Commands:\n")[2].splitlines() if line
    ]
    sections = [f"```\n{overview}```\n"]
    sections += [f"## perdure {name}\n\n```\n{_help(name)}```\n" for name in commands]
    return "\n".join([_TOP, *sections])


def _help(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": f"{COLUMNS}", "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run(
        [sys.executable, "-m", "perdure", *command, "--help"],
        env=environment,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    return "\n".join(line.rstrip() for line in ran.stdout.splitlines()) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
