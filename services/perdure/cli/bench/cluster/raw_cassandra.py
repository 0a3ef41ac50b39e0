"""Cassandra with the plain driver: the same rows in the same tables, written the way it offers.

LOCAL_QUORUM and compression as perdure has them, statements prepared, many requests under way.
Rows are ready made: nothing is timed but the driver and the tables.
"""

import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

from cassandra import ConsistencyLevel  # type: ignore[import-untyped]
from cassandra.cluster import (  # type: ignore[import-untyped]
    EXEC_PROFILE_DEFAULT,
    ExecutionProfile,
)
from cassandra.cluster import Cluster as Driver
from cassandra.policies import (  # type: ignore[import-untyped]
    DCAwareRoundRobinPolicy,
    TokenAwarePolicy,
)
from cassandra.query import (  # type: ignore[import-untyped]
    BatchStatement,
    BatchType,
    tuple_factory,
)

from perdure.cassandra import schema
from perdure.cassandra.cells import microseconds
from perdure.cassandra.session import PORT, PROTOCOL
from perdure.cassandra.tables import STATEMENTS
from perdure.cli.bench.cluster.workbench import STORE, WRITER
from perdure.cli.bench.rounds import Work
from perdure.errors import PerdureError
from perdure.model.sequencing import Recorded
from perdure.settings import Cluster, addresses

ROWS_A_BATCH: Final = 128
"""Events in one batch: of 32 to 512, where the driver is fastest with these rows."""

UNDER_WAY: Final = 32
"""Requests under way at once, of batches and of single rows alike."""

SECONDS: Final = 60.0
"""What a request may take: this is no test of patience."""


class RawCassandra:
    """A keyspace with perdure's tables, and a connection of the plain driver to it."""

    def __init__(self, cluster: Cluster, *, no_delay: bool) -> None:
        self._keyspace = f"{cluster.name}_raw{int(no_delay)}"
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(
                DCAwareRoundRobinPolicy(local_dc=cluster.datacenter)
            ),
            consistency_level=ConsistencyLevel.LOCAL_QUORUM,
            row_factory=tuple_factory,
            request_timeout=SECONDS,
        )
        self._driver = Driver(
            contact_points=addresses(cluster.cassandra, port=PORT),
            protocol_version=PROTOCOL,
            compression=True,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            connect_timeout=SECONDS,
            control_connection_timeout=SECONDS,
            sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)] if no_delay else None,
        )
        self._session = self._driver.connect()
        for statement in schema.statements(self._keyspace, schema.GENERATION, cluster.replication):
            self._session.execute(statement, timeout=SECONDS)
        prepared = {
            # The plain client lets the server choose the time of a write.
            name: self._session.prepare(
                STATEMENTS[name].replace("{}", self._keyspace).replace(_STAMP, "")
            )
            for name in ("insert_event", "insert_type", "insert_id", "update_head")
        }
        self._event, self._type = prepared["insert_event"], prepared["insert_type"]
        self._id, self._head = prepared["insert_id"], prepared["update_head"]
        self._one = self._session.prepare(_ROW.replace("{}", self._keyspace) + " AND sequence = ?")

    def close(self) -> None:
        """Disconnect."""
        self._driver.shutdown()

    def batches(self, streams: Sequence[tuple[str, int, Sequence[Recorded]]]) -> Work:
        """Write events of agents and buckets with their indexes and heads, in batches."""
        requests = [
            (agent, bucket, rows[at : at + ROWS_A_BATCH])
            for at in range(0, max(len(rows) for _, _, rows in streams), ROWS_A_BATCH)
            for agent, bucket, rows in streams
            if rows[at : at + ROWS_A_BATCH]
        ]
        started = time.perf_counter()
        self._run(self._batch(*request) for request in requests)
        return Work(sum(len(rows) for _, _, rows in requests), time.perf_counter() - started)

    def one_by_one(self, stream: tuple[str, int, Sequence[Recorded]]) -> Work:
        """Write each event by itself: one insert, many under way."""
        agent, bucket, rows = stream
        started = time.perf_counter()
        self._run(
            self._event.bind((STORE, agent, bucket, event.sequence, event.type, data))
            for event, data, _ in rows
        )
        return Work(len(rows), time.perf_counter() - started)

    def write(self, agent: str, bucket: int, row: Recorded) -> float:
        """Seconds that one insert takes."""
        event, data, _ = row
        started = time.perf_counter()
        self._session.execute(self._event, (STORE, agent, bucket, event.sequence, event.type, data))
        return time.perf_counter() - started

    def read(self, agent: str, bucket: int, sequence: int) -> float:
        """Seconds that reading one row takes."""
        started = time.perf_counter()
        found = list(self._session.execute(self._one, (STORE, agent, bucket, sequence)))
        seconds = time.perf_counter() - started
        if len(found) != 1:
            raise PerdureError(f"{agent}@{sequence} is not there", hint="report this")
        return seconds

    def read_all(self, keyspace: str, agent: str, buckets: int) -> Work:
        """Read the rows of all events of an agent from the tables of perdure."""
        select = self._session.prepare(_ROW.replace("{}", keyspace))
        started = time.perf_counter()
        count = 0
        for bucket in range(buckets):
            for _ in self._session.execute(select, (STORE, agent, bucket)):
                count += 1
        return Work(count, time.perf_counter() - started)

    def _batch(self, agent: str, bucket: int, rows: Sequence[Recorded]) -> BatchStatement:
        batch = BatchStatement(batch_type=BatchType.UNLOGGED)
        for event, data, _ in rows:
            batch.add(self._event, (STORE, agent, bucket, event.sequence, event.type, data))
            batch.add(
                self._type,
                (STORE, agent, bucket, event.type, microseconds(event.time), event.sequence),
            )
            batch.add(self._id, (STORE, agent, bucket, event.id, event.sequence))
        last = rows[-1]
        batch.add(
            self._head,
            (
                *(last.event.sequence, 1, last.event.sequence, last.chain),
                *(microseconds(last.event.time), len(rows), sum(len(row.data) for row in rows)),
                *({WRITER: last.event.writer_sequence}, None, 1, last.chain),
                *(STORE, agent, bucket),
            ),
        )
        return batch

    def _run(self, statements: "Iterator[Any]") -> None:
        """Run statements, `UNDER_WAY` of them at a time, until all are answered."""
        free = threading.Semaphore(UNDER_WAY)
        failures: list[BaseException] = []

        def done(_: object) -> None:
            free.release()

        def failed(error: BaseException) -> None:
            failures.append(error)
            free.release()

        for statement in statements:
            free.acquire()
            self._session.execute_async(statement).add_callbacks(done, failed)
        for _ in itertools.repeat(None, UNDER_WAY):
            free.acquire()
        if failures:
            raise PerdureError(f"the plain driver failed: {failures[0]!r}", hint="try again")


_ROW: Final = "SELECT event FROM {}.events WHERE store = ? AND agent = ? AND bucket = ?"
_STAMP: Final = " USING TIMESTAMP ?"


@contextmanager
def connected(cluster: Cluster) -> "Iterator[tuple[RawCassandra, RawCassandra]]":
    """Two connections: as the driver makes them, and sending at once (TCP_NODELAY)."""
    with (
        closing(RawCassandra(cluster, no_delay=False)) as plain,
        closing(RawCassandra(cluster, no_delay=True)) as at_once,
    ):
        yield plain, at_once
