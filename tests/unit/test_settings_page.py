"""`docs/settings.md` says what the settings are."""

import re
import tomllib
from pathlib import Path

import msgspec

from perdure.settings import Cluster

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")


def test_page_has_all_settings_with_their_defaults():
    """Nothing is missing, nothing is made up, and the defaults are those of the code."""
    found = {}
    for names, defaults in re.findall(r"^\| (`[^|]*`) \|([^|]*)\|", PAGE, re.MULTILINE):
        given = [value.strip("` ") for value in defaults.split(",")]
        found |= dict(zip(re.findall(r"`(\w+)`", names), given, strict=True))
    values = msgspec.to_builtins(Cluster()).items()
    home = Path.home().as_uri()
    own = {name: str(value).replace(home, "~") for name, value in values}
    assert found == own


def test_example_is_read():
    """The file that a reader copies is one of settings."""
    [example] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert msgspec.convert(tomllib.loads(example), Cluster).name == "staging"
