"""What is installed: the wheel's contents, the version, and locks that fit the project."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = PROJECT["project"]["dependencies"]
DEVELOPMENT = [
    *RUNTIME,
    *PROJECT["project"]["optional-dependencies"]["bench"],
    *PROJECT["dependency-groups"]["dev"],
]


def _version():
    text = (ROOT / "services/perdure/version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def _locked(name):
    """The versions that a lock holds of each package (several where they differ by Python)."""
    versions = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        pin = re.match(r"([a-z0-9-]+)==([^ ]+)", line)
        if pin:
            versions.setdefault(pin[1], set()).add(pin[2])
    return versions


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [("requirements.lock", RUNTIME), ("requirements-dev.lock", DEVELOPMENT)],
)
def test_lock_holds_what_the_project_requires(lock, requirements):
    """Each requirement of pyproject.toml is locked, at versions that it allows."""
    locked = _locked(lock)
    wrong = [
        text
        for text in requirements
        for requirement in [Requirement(text)]
        for versions in [locked.get(canonicalize_name(requirement.name), set())]
        if not versions or not all(map(requirement.specifier.contains, versions))
    ]
    assert wrong == []


def test_both_locks_agree():
    """What is tested is what the demo and users get: the same versions in both locks."""
    runtime, development = _locked("requirements.lock"), _locked("requirements-dev.lock")
    different = {name for name, versions in runtime.items() if development.get(name) != versions}
    assert different == set()


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_lock_has_a_hash_for_each_package_and_no_address(lock):
    """A lock says what to install and not from where."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    pins = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    options = re.findall(r"^ *--(?!hash=).*", text, re.MULTILINE)
    assert options == []
    assert "://" not in text


def test_changelog_opens_with_the_version():
    """The newest entry of the changelog is about the version that is being built."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] == _version()


def test_wheel_holds_the_whole_package_and_nothing_else(tmp_path):
    """Modules, type marker, shipped data and licences are installed; tests are not."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"perdure-{_version()}.dist-info"
    package = {
        str(path.relative_to(ROOT / "services"))
        for path in (ROOT / "services/perdure").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(info)} == package
    assert "perdure/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
