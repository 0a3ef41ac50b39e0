"""Whatever the driver can raise leaves as an error of perdure that says whether a retry helps."""

import inspect

import cassandra
import pytest
from cassandra import cluster, connection, pool, protocol

from perdure.cassandra import failures
from perdure.errors import Incompatible, PerdureError, Unavailable, Unreachable

NOT_RAISED_BY_REQUESTS = {
    # Bases, which are never raised themselves.
    "DriverException",
    "ErrorMessage",
    "ErrorMessageSub",
    # Of parts that are not used: user types, blocking paging, missing extensions of the driver.
    "UserTypeDoesNotExist",
    "QueryExhausted",
    "DependencyException",
}


def kinds():
    """Every class of error that the driver defines."""
    for module in (cassandra, cluster, connection, pool, protocol):
        for name, kind in vars(module).items():
            if (
                inspect.isclass(kind)
                and issubclass(kind, Exception)
                and kind.__module__ == module.__name__
                and name not in NOT_RAISED_BY_REQUESTS
            ):
                yield pytest.param(kind, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_error_of_the_driver_is_mapped(kind):
    """A class that a newer driver brings is noticed here."""
    error = kind.__new__(kind)
    if kind is cluster.NoHostAvailable:
        error.errors = {}
    if isinstance(error, protocol.ErrorMessage):
        error.code, error.message, error.info = 0, "", None
    mapped = failures.translated(error, "node:9042")
    assert isinstance(mapped, PerdureError)
    assert "node:9042" in mapped.message
    assert mapped.hint


@pytest.mark.parametrize(
    ("error", "expected", "retriable"),
    [
        (cassandra.OperationTimedOut(), Unreachable, True),
        (cassandra.ReadTimeout("late"), Unreachable, True),
        (cassandra.Unavailable("too few"), Unreachable, True),
        (cassandra.InvalidRequest("no such table"), Incompatible, False),
        (cassandra.AuthenticationFailed("who?"), Unavailable, False),
        (cluster.NoHostAvailable("none", {"h": cassandra.AuthenticationFailed("who?")}),
         Unavailable, False),
        (cluster.NoHostAvailable("none", {"h": connection.ConnectionShutdown("gone")}),
         Unreachable, True),
    ],
)  # fmt: skip
def test_only_what_can_go_through_later_is_retriable(error, expected, retriable):
    """A node that is away may come back; a wrong account or table doesn't mend itself."""
    mapped = failures.translated(error, "node:9042")
    assert type(mapped) is expected
    assert mapped.retriable is retriable


def test_an_error_of_our_own_stays():
    """What is no error of the driver is not dressed up as one."""
    error = ZeroDivisionError()
    assert failures.translated(error, "node:9042") is error


def test_busy_is_only_what_waiting_mends():
    """All nodes busy is busy; one that is away is not."""
    busy, gone = connection.ConnectionBusy("full"), connection.ConnectionShutdown("gone")
    assert failures.is_busy(busy)
    assert failures.is_busy(cluster.NoHostAvailable("none", {"a": busy}))
    assert not failures.is_busy(cluster.NoHostAvailable("none", {"a": busy, "b": gone}))
    assert not failures.is_busy(cluster.NoHostAvailable("none", {}))
