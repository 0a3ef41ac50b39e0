"""Whatever is here runs on the real engines."""

from pathlib import Path

from tests.stack.fixtures import STACK

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder, so that they can be left out."""
    for item in items:
        if HERE in item.path.parents:
            for mark in STACK:
                item.add_marker(mark)
