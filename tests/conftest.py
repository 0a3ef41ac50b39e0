"""What every test has: a clean environment, and Hypothesis settings for a noisy machine."""

import os

import pytest
from hypothesis import settings
from tests.conformance.ran import summary

pytest_plugins = ("tests.stack.fixtures",)

# No deadlines: a shared machine may stop for a second anywhere. In CI the examples are a function
# of the test alone, so that a failure there is the same failure here.
settings.register_profile("here", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """No test sees the store or the settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("PERDURE_")]:
        monkeypatch.delenv(name)


def pytest_terminal_summary(terminalreporter):
    """Say on which stores the conformance suite ran: here, where every kind of run comes by."""
    summary(terminalreporter)
