"""A connection to Cassandra that is awaited. Nobody else talks to the driver.

Invariants:
- The driver's callbacks come from its own thread and touch nothing but a queue; futures are settled
  on the event loop, in one hop for all that are done by then.
- What is under way is bounded, in requests and in bytes of batches.
- Whatever the driver raises leaves as one of `perdure.errors`.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any, Final, TypeAlias

import tenacity
from cassandra import ConsistencyLevel, DependencyException  # type: ignore[import-untyped]
from cassandra.cluster import (  # type: ignore[import-untyped]
    EXEC_PROFILE_DEFAULT,
    ExecutionProfile,
)
from cassandra.cluster import Cluster as Driver
from cassandra.policies import (  # type: ignore[import-untyped]
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    RetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import (  # type: ignore[import-untyped]
    BatchStatement,
    BatchType,
    PreparedStatement,
    SimpleStatement,
    tuple_factory,
)

from perdure.cassandra.failures import is_busy, translated
from perdure.cassandra.packing import Protocol, Rows
from perdure.errors import PerdureError, StoreClosed, Unreachable
from perdure.settings import Cluster, addresses

PORT: Final = 9042

PROTOCOL: Final = 5
"""Native protocol of Cassandra 4.0 and later: each of its segments has a checksum."""

REQUESTS_MAX: Final = 256
"""Requests under way at once, of all callers: enough to keep a ring busy."""

BATCH_BYTES_MAX: Final = 4_000_000
"""Bytes of batches under way at once (or a single batch): the driver refuses work when a socket
takes no more."""

AT_ONCE: Final = 32
"""Requests under way at once of one `execute_many`."""

TIMEOUT: Final = 10.0
"""Seconds until a request counts as unanswered."""

BUSY_TIMEOUT: Final = 10.0
"""Seconds for which a request is offered again to a connection whose socket takes no more."""

Row: TypeAlias = "tuple[Any, ...]"
"""A row as the driver decodes it: the types of its columns are in the schema."""


class Statement:
    """A prepared statement. `id` is what a batch names it by."""

    __slots__ = ("id", "prepared")

    def __init__(self, prepared: PreparedStatement) -> None:
        self.prepared = prepared
        self.id: bytes = prepared.query_id


class Batch:
    """Writes to one partition, which are one mutation: all of them happen, or none.

    The driver's own way to fill a batch looks at each value's type and computes the partition's key
    again for each row. Here values come as bytes in the protocol's form, and the key once: a
    quarter of the time.
    """

    __slots__ = ("_size", "rows", "statement")

    def __init__(self, keyspace: str, key: Sequence[bytes]) -> None:
        self.statement = BatchStatement(batch_type=BatchType.UNLOGGED)
        self.statement.is_idempotent = True
        self.statement.keyspace = keyspace
        self.statement.routing_key = list(key)
        self.rows = Rows()
        self.statement._statements_and_parameters = self.rows  # noqa: SLF001 - see above
        self._size = 0

    def add(self, statement: Statement, *values: bytes | None) -> None:
        """Add one write; None leaves a column as it is."""
        self.rows.add(statement.id, *values)

    def weigh(self, size: int) -> None:
        """Say how many bytes it has, about: it waits until so many may be under way."""
        self._size = size

    @property
    def size(self) -> int:
        """Bytes that count as under way."""
        return min(self._size, BATCH_BYTES_MAX)


class _EveryNode(RetryPolicy):  # type: ignore[misc] # it has no types
    """A node that sees too few others has done nothing: each other one is asked, once.

    The driver's own policy asks one more; the next two may both be behind in what they know of the
    others, after some were killed and started again.
    """

    def on_unavailable(
        self,
        query: object,  # noqa: ARG002
        consistency: int,  # noqa: ARG002
        required_replicas: int,  # noqa: ARG002
        alive_replicas: int,  # noqa: ARG002
        retry_num: int,  # noqa: ARG002
    ) -> tuple[int, None]:
        return self.RETRY_NEXT_HOST, None


class Session:
    """Requests to Cassandra from one event loop, read and written at LOCAL_QUORUM."""

    def __init__(self, driver: Driver, session: Any, place: str) -> None:  # noqa: ANN401
        self._driver = driver
        self._session = session
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._requests = asyncio.Semaphore(REQUESTS_MAX)
        self._bytes = 0
        self._room = asyncio.Condition()
        self._done: deque[tuple[asyncio.Future[Any], object, BaseException | None]] = deque()
        self._waking = False
        self._closed = False

    @classmethod
    async def connect(cls, cluster: Cluster) -> "Session":
        """Connect to the nodes of a cluster's data centre.

        Raises:
            Unreachable: no node answers.
        """
        hosts = addresses(cluster.cassandra, port=PORT)
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(
                DCAwareRoundRobinPolicy(local_dc=cluster.datacenter)
            ),
            # With a quorum of both sides, whatever was acknowledged is read, from any node.
            consistency_level=ConsistencyLevel.LOCAL_QUORUM,
            serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
            row_factory=tuple_factory,
            request_timeout=TIMEOUT,
            retry_policy=_EveryNode(),
        )
        driver = Driver(
            contact_points=hosts,
            protocol_version=PROTOCOL,
            connection_class=_connection_class(),
            compression=True,  # lz4, where both sides have it
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            reconnection_policy=ExponentialReconnectionPolicy(0.2, 5.0, max_attempts=None),
            max_schema_agreement_wait=0,  # `run_schema` waits once, for all its statements
            connect_timeout=TIMEOUT,
            control_connection_timeout=TIMEOUT,
            # Without it a larger batch waits for the acknowledgement of its first part: 40 ms.
            sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            monitor_reporting_enabled=False,
            application_name="perdure",
        )
        try:
            session = await asyncio.to_thread(driver.connect)
        except Exception as error:
            await asyncio.to_thread(driver.shutdown)
            hint = f"check the address, and that its data centre is {cluster.datacenter}"
            raise translated(error, cluster.cassandra, hint=hint) from error
        session.client_protocol_handler = Protocol
        return cls(driver, session, cluster.cassandra)

    async def close(self) -> None:
        """Close all connections; what is under way raises. Harmless when it is closed."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._driver.shutdown)

    async def prepare(self, cql: str) -> Statement:
        """Prepare a statement; it must be one that may be run twice.

        Raises:
            Unreachable: no node answers.
        """
        self._check_open()
        try:
            prepared = await asyncio.to_thread(self._session.prepare, cql)
        except Exception as error:
            raise self._translated(error) from error
        prepared.is_idempotent = True
        prepared.fetch_size = None
        return Statement(prepared)

    async def execute(
        self, statement: Statement | Batch | str, parameters: Sequence[object] = ()
    ) -> list[Row]:
        """Run a statement and give all its rows; for an answer of many rows there is `pages`.

        Raises:
            Unreachable: not enough nodes answered in time; whether a write took place is open.
        """
        rows: list[Row]
        if isinstance(statement, Batch):
            async with self._bytes_free(statement.size):
                rows = await self._requested(statement.statement)
        else:
            rows = await self._requested(_bound(statement, parameters))
        return rows

    async def execute_many(
        self, requests: Iterable[tuple[Statement, Sequence[object]]], *, at_once: int = AT_ONCE
    ) -> list[list[Row]]:
        """Run statements, `at_once` of them at a time, and give the rows of each in their order.

        Raises as `execute` does; the rest is not waited for.
        """
        waiting: deque[asyncio.Task[list[Row]]] = deque()
        results: list[list[Row]] = []
        try:
            for statement, parameters in requests:
                if len(waiting) >= at_once:
                    results.append(await waiting.popleft())
                waiting.append(self._loop.create_task(self.execute(statement, parameters)))
            while waiting:
                results.append(await waiting.popleft())
        finally:
            for task in waiting:
                task.cancel()
        return results

    async def pages(
        self, statement: Statement, parameters: Sequence[object], *, rows: int
    ) -> AsyncGenerator[list[Row], None]:
        """The rows of a statement in pages of so many; the next is fetched while one is worked on.

        Raises as `execute` does.
        """
        state: bytes | None = None
        coming = self._next_page(statement, parameters, rows, state)
        try:
            while True:
                page, state = await coming
                if state is None:
                    yield page
                    return
                coming = self._next_page(statement, parameters, rows, state)
                yield page
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, PerdureError):
                await coming

    async def run_schema(self, statements: Iterable[str]) -> None:
        """Run statements that change the schema, and wait until all nodes have it.

        All of them go through the same node, whoever runs them: nodes that are asked to make the
        same table at once each make their own.

        Raises:
            Unreachable: not enough nodes answered in time.
        """
        self._check_open()
        hosts = [host for host in self._driver.metadata.all_hosts() if host.is_up]
        host = min(hosts, key=lambda host: str(host.host_id), default=None)
        for cql in statements:
            await self._requested(SimpleStatement(cql), host=host)
        agreed = await asyncio.to_thread(
            self._driver.control_connection.wait_for_schema_agreement, wait_time=TIMEOUT
        )
        if not agreed:
            raise Unreachable(
                f"Cassandra's nodes at {self._place} do not agree on the schema",
                hint="`nodetool describecluster` shows which node differs; try again",
            )

    def _next_page(
        self, statement: Statement, parameters: Sequence[object], rows: int, state: bytes | None
    ) -> "asyncio.Task[tuple[list[Row], bytes | None]]":
        bound = _bound(statement, parameters)
        bound.fetch_size = rows
        return self._loop.create_task(self._requested(bound, state=state, paged=True))

    async def _requested(
        self,
        query: Any,  # noqa: ANN401 - one of the driver's statements
        *,
        host: object = None,
        state: bytes | None = None,
        paged: bool = False,
    ) -> Any:  # noqa: ANN401
        """The rows of a request; with `paged`, and where the next page starts."""
        self._check_open()
        async with self._requests:
            try:
                return await self._submitted(query, host, state, paged=paged)
            except Exception as error:
                if not is_busy(error):
                    raise self._translated(error) from error
            offered = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(is_busy),
                # The socket empties in milliseconds, and the driver doesn't tell when.
                wait=tenacity.wait_random_exponential(multiplier=0.002, max=0.1),
                stop=tenacity.stop_after_delay(BUSY_TIMEOUT),
                reraise=True,
            )
            try:
                return await offered(self._submitted, query, host, state, paged=paged)
            except Exception as error:
                raise self._translated(error) from error

    async def _submitted(
        self,
        query: Any,  # noqa: ANN401
        host: object,
        state: bytes | None,
        *,
        paged: bool,
    ) -> Any:  # noqa: ANN401
        future: asyncio.Future[Any] = self._loop.create_future()
        response = self._session.execute_async(query, paging_state=state, host=host)

        def succeed(rows: object) -> None:
            rows = [] if rows is None else rows
            # The driver's public name for the state of paging belongs to its blocking results.
            self._settle(future, (rows, response._paging_state) if paged else rows, None)  # noqa: SLF001

        def fail(error: BaseException) -> None:
            self._settle(future, None, error)

        response.add_callbacks(succeed, fail)
        try:
            return await future
        finally:
            # These name the response, and it names them: request and rows would stay in memory
            # until somebody looks for garbage.
            response.clear_callbacks()
            if not future.cancelled():  # then the driver is through with it
                response._timer = None  # noqa: SLF001

    def _settle(
        self, future: "asyncio.Future[Any]", result: object, error: BaseException | None
    ) -> None:
        """From the driver's thread: hand a result over to the event loop."""
        self._done.append((future, result, error))
        if not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                self._loop.call_soon_threadsafe(self._settle_all)

    def _settle_all(self) -> None:
        self._waking = False  # Before looking: what comes in from here on wakes the loop again.
        while self._done:
            future, result, error = self._done.popleft()
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    @contextlib.asynccontextmanager
    async def _bytes_free(self, size: int) -> AsyncIterator[None]:
        async with self._room:
            await self._room.wait_for(lambda: self._bytes + size <= BATCH_BYTES_MAX)
            self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size
            async with self._room:
                self._room.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(
                f"the connection to Cassandra at {self._place} is closed", hint="connect again"
            )

    def _translated(self, error: Exception) -> Exception:
        if self._closed:
            return StoreClosed(
                f"the connection to Cassandra at {self._place} was closed", hint="connect again"
            )
        return translated(error, self._place)


def _connection_class() -> type | None:
    """What connections are made of; None for what the driver chooses where it has no libev."""
    try:
        from perdure.cassandra.prompt import PromptConnection
    except DependencyException:
        return None
    return PromptConnection


def _bound(statement: Statement | str, parameters: Sequence[object]) -> Any:  # noqa: ANN401
    if isinstance(statement, Statement):
        return statement.prepared.bind(parameters)
    return SimpleStatement(statement)
