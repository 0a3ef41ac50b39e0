"""What the tests of the embedded store share: processes that are cheap to start and to kill."""

import pytest

from tests.embedded.forks import Forks


@pytest.fixture(scope="session")
def forks():
    """Starts processes: `forks.start("function of lives", …)`."""
    server = Forks()
    yield server
    server.close()
