"""What the engines run from: fetched once, kept in a cache outside the project.

A folder of the cache is complete or absent: it is made under another name and renamed when it is
done. Its name holds the version and a digest of how it is made, so that a changed recipe never
finds what the old one made.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ops.stack import versions
from ops.stack.locks import locked

from perdure.errors import Unavailable

_log = logging.getLogger(__name__)

CACHE_VARIABLE = "PERDURE_STACK_CACHE"
"""Names the folder of the cache; by default `perdure/stack` in the user's cache folder."""
_TAIL_LINES = 15


def cache() -> Path:
    """The folder of the cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "perdure" / "stack"


def maven(name: str, version: str, dependencies: Sequence[str]) -> Path:
    """The folder with the jars of the dependencies (`group:artifact:version`) and all of theirs.

    Raises `Unavailable` when Maven is missing or fails.
    """
    plugin = versions.MAVEN_DEPENDENCY_PLUGIN
    pom = _pom(name, dependencies)

    def make(folder: Path) -> None:
        (folder / "pom.xml").write_text(pom)
        goal = f"org.apache.maven.plugins:maven-dependency-plugin:{plugin}:copy-dependencies"
        command = [
            _tool("mvn", "install Maven 3.8 or later"),
            "--batch-mode",
            f"--file={folder / 'pom.xml'}",
            goal,
            "-DincludeScope=runtime",
            f"-DoutputDirectory={folder / 'libs'}",
        ]
        _run(command, dict(os.environ), folder / "build.log")

    return _made(f"{name}-{version}", f"{plugin}\n{pom}", make) / "libs"


def go(name: str, version: str, package: str) -> Path:
    """The program that `go install` makes of a package at a version.

    Raises `Unavailable` when Go is missing or fails.
    """
    program = package.rpartition("/")[2]

    def make(folder: Path) -> None:
        command = [_tool("go", "install Go 1.25 or later"), "install", f"{package}@v{version}"]
        _run(command, {**os.environ, "GOBIN": str(folder)}, folder / "build.log")

    return _made(f"{name}-{version}", package, make) / program


def java() -> str:
    """The path of a Java of the version that is needed.

    Looks at `JAVA_HOME`, the path and the usual folders; raises `Unavailable` when none fits.
    """
    home = os.environ.get("JAVA_HOME")
    candidates = [
        *([Path(home) / "bin" / "java"] if home else []),
        *([Path(found)] if (found := shutil.which("java")) else []),
        *sorted(Path("/usr/lib/jvm").glob(f"*{versions.JAVA}*/bin/java")),
        *sorted(Path("/Library/Java/JavaVirtualMachines").glob("*/Contents/Home/bin/java")),
    ]
    for candidate in candidates:
        if candidate.exists() and _java_version(candidate) == versions.JAVA:
            return str(candidate)
    raise Unavailable(
        f"Java {versions.JAVA} was not found", hint="install it, or name it with JAVA_HOME"
    )


def _java_version(program: Path) -> str:
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    # openjdk version "17.0.15" 2025-04-15
    return said.stderr.partition('"')[2].partition(".")[0]


def _pom(name: str, dependencies: Sequence[str]) -> str:
    listed = ""
    for dependency in dependencies:
        group, artifact, version = dependency.split(":")
        listed += (
            f"    <dependency>\n      <groupId>{group}</groupId>\n"
            f"      <artifactId>{artifact}</artifactId>\n"
            f"      <version>{version}</version>\n    </dependency>\n"
        )
    return (
        "<project>\n  <modelVersion>4.0.0</modelVersion>\n  <groupId>perdure.stack</groupId>\n"
        f"  <artifactId>{name}</artifactId>\n  <version>1</version>\n"
        "  <packaging>pom</packaging>\n  <dependencies>\n"
        f"{listed}  </dependencies>\n</project>\n"
    )


def _made(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """The folder of the cache with this name and recipe; `make` fills it when it is not there."""
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = cache() / f"{name}-{digest}"
    if folder.exists():
        return folder
    with locked(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():  # whoever held the lock made it
            return folder
        _log.info("fetching %s into %s: some minutes, once", name, folder.parent)
        for left in folder.parent.glob(f"{folder.name}.making-*"):
            shutil.rmtree(left)  # by one that was killed: whoever works holds the lock
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
        try:
            make(made)
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return folder


def _tool(name: str, hint: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} was not found on the path", hint=hint)
    return found


def _run(command: Sequence[str], environment: dict[str, str], log: Path) -> None:
    with log.open("w") as output:
        ended = subprocess.run(
            command,
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise Unavailable(
            f"{' '.join(command)} ended with {ended.returncode}:\n{last}",
            hint="it needs a package registry the first time; later runs take what is cached",
        )
