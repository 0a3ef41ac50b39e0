"""Packages of Node for the tests, from the lock file beside the programs that use them.

They are installed once for each lock file, into the cache folder that the engines' parts are in.
Where Node is missing, tests that need it are skipped, and say so; in CI they fail instead.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from ops.stack.artifacts import cache
from ops.stack.locks import locked

PROGRAMS = Path(__file__).parent / "stack" / "kafkajs"
# Read before any test starts: tests may be given another environment.
IN_CI = bool(os.environ.get("CI"))
INSTALL = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def modules() -> Path:
    """The folder `node_modules` with what the lock file names."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            missing(tool)
    lock = (PROGRAMS / "package-lock.json").read_bytes()
    folder = cache() / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
            for name in ("package.json", "package-lock.json"):
                shutil.copy(PROGRAMS / name, made)
            subprocess.run(["npm", *INSTALL], cwd=made, check=True)
            made.rename(folder)
    return folder / "node_modules"


def missing(tool: str) -> None:
    """Skip what needs a tool, or fail in CI."""
    reason = f"PRODUCERS IN ANOTHER LANGUAGE ARE NOT TESTED: {tool} is missing here"
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)
