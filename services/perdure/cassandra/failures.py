"""What the driver raises, as errors of perdure: one table."""

from typing import Final

import cassandra  # type: ignore[import-untyped]
from cassandra import connection, pool, protocol
from cassandra.cluster import NoHostAvailable  # type: ignore[import-untyped]

from perdure.errors import Incompatible, PerdureError, Unavailable, Unreachable

BUSY: Final = (connection.ConnectionBusy, pool.NoConnectionsAvailable)
"""All connections have enough to do just now."""

UNANSWERED: Final = (
    NoHostAvailable,
    cassandra.OperationTimedOut,
    cassandra.RequestExecutionException,
    cassandra.UnresolvableContactPoints,
    connection.ConnectionException,
    connection.ProtocolError,
    *BUSY,
    protocol.InternalError,
    protocol.RequestExecutionException,
    # What a node says that can't do its part just now; they share no base but the message's.
    protocol.OverloadedErrorMessage,
    protocol.IsBootstrappingErrorMessage,
    protocol.TruncateError,
    protocol.ServerError,
)
"""The same request can go through later."""

REFUSED: Final = (
    cassandra.AuthenticationFailed,
    cassandra.Unauthorized,
    protocol.BadCredentials,
    protocol.UnauthorizedErrorMessage,
)
"""This account may not do it."""

NONSENSE: Final = (
    cassandra.RequestValidationException,
    cassandra.UnsupportedOperation,
    protocol.NotSupportedError,
    protocol.ProtocolException,
    protocol.RequestValidationException,
)
"""The request doesn't fit the tables or the server, all of them: no row of one agent does this."""


def is_busy(error: BaseException) -> bool:
    """Whether all that is wrong is that every connection has enough to do just now."""
    if isinstance(error, NoHostAvailable):
        errors = _of_hosts(error)
        return bool(errors) and all(isinstance(each, BUSY) for each in errors.values())
    return isinstance(error, BUSY)


def translated(error: Exception, place: str, *, hint: str = "") -> Exception:
    """One of our errors for one of the driver's; any other is given back as it is.

    `place` is where Cassandra is; `hint` is for one that doesn't answer.
    """
    if isinstance(error, NoHostAvailable):
        for each in _of_hosts(error).values():
            if isinstance(each, REFUSED):
                return _refused(each, place)
    if isinstance(error, REFUSED):
        return _refused(error, place)
    if isinstance(error, NONSENSE):
        return Incompatible(
            f"Cassandra at {place} can't run a request: {error}",
            hint="its tables are not those of schemas/cassandra.cql, were dropped meanwhile, or a "
            "node lags behind with them (`nodetool describecluster` shows which)",
        )
    if isinstance(error, UNANSWERED):
        return Unreachable(
            f"Cassandra at {place} does not answer: {_reason(error)}",
            hint=hint or "check that its nodes are up, and try again",
        )
    return error


def _refused(error: BaseException, place: str) -> PerdureError:
    return Unavailable(
        f"Cassandra at {place} refuses this account: {error}", hint="check its name and rights"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, NoHostAvailable):
        errors = _of_hosts(error)
        return "; ".join(f"{host}: {each}" for host, each in errors.items()) or "no node is up"
    return str(error) or type(error).__name__


def _of_hosts(error: NoHostAvailable) -> dict[object, BaseException]:
    """What went wrong with each node."""
    return error.errors if isinstance(error.errors, dict) else {}
