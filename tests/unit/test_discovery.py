"""Finding users' projections: by module, by file, by entry point."""

import importlib
import sys

import pytest

from perdure import InvalidInput
from perdure.agent import discovery


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a distribution with an entry point; gives a function that writes its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "crew-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crew\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[perdure.projections]\ncrew = crew_projections\n")
    importlib.invalidate_caches()
    yield (tmp_path / "crew_projections.py").write_text
    sys.modules.pop("crew_projections", None)


def test_entry_points_are_imported(package):
    """What a package offers in the group is imported, so that it registers itself."""
    package("registered = True")
    assert "crew" in discovery.load_entry_points()
    assert sys.modules["crew_projections"].registered


def test_broken_entry_point_names_its_package(package):
    """A package that can't be imported is named, with the reason."""
    package("raise ValueError('crew is ill')")
    with pytest.raises(InvalidInput, match=r"of crew can't be loaded.*crew is ill"):
        discovery.load_entry_points()


def test_file_is_loaded_once(tmp_path):
    """Loading a file again doesn't run it again."""
    file = tmp_path / "counting.py"
    file.write_text("import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\n")
    try:
        discovery.load([str(file), str(file)])
        assert sys.counted == 1
    finally:
        del sys.counted


def test_module_that_lacks_a_dependency_says_which(tmp_path, monkeypatch):
    """A missing import inside the module isn't taken for a missing module."""
    (tmp_path / "needs_more.py").write_text("import no_such_dependency_of_mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidInput, match=r"'needs_more' can't be loaded.*no_such_dependency"):
        discovery.load(["needs_more"])


@pytest.mark.parametrize("name", ["no/such.py", "no_such_module_of_mine", "tests"])
def test_what_is_not_there_is_named(name, tmp_path, monkeypatch):
    """A module or file that isn't there is an error with its name; a package can be loaded."""
    monkeypatch.chdir(tmp_path)
    if name == "tests":
        discovery.load(["json.decoder"])
        return
    with pytest.raises(InvalidInput, match=name):
        discovery.load([name])
