"""What the tests of the embedded store share: processes that are cheap to start and to kill."""

from collections.abc import Iterator

import pytest
from tests.embedded.forks import Forks


@pytest.fixture(scope="session")
def _server() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def forks(_server) -> Iterator[Forks]:
    """Starts processes: `forks.start("function of lives", …)`. None outlives its test."""
    yield _server
    _server.clear()
