"""Whatever is here runs on the real engines."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder, so that they can be left out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.stack)
