"""What an agent process has to know of the cluster, and what becomes of its writes."""

from typing import Annotated, Final

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from perdure.errors import InvalidInput, NotFound
from perdure.gateway.messages import (
    ChangesBody,
    ClusterBody,
    VerdictBody,
    VerdictsQuestion,
)
from perdure.gateway.service import POLL_SECONDS_MAX, Gateway
from perdure.kafka.wire import RECORD_BYTES_MAX, store_name
from perdure.model.event import EVENT_BYTES_MAX
from perdure.version import __version__

RECORDS_MAX: Final = 10_000
"""The most records of one question."""

TOPICS: Final = ("events", "journal", "chunks", "state", "dead-letters")


class ClusterRoutes(Controller):
    """The cluster, and the verdicts on what was written."""

    path = "/v1"

    @get("/cluster", summary="What a client has to know to write")
    async def cluster(self, *, gateway: NamedDependency[Gateway]) -> ClusterBody:
        """Kafka's addresses, the topics, the number of partitions, and limits."""
        cluster = gateway.cluster
        return ClusterBody(
            version=__version__,
            kafka=cluster.kafka,
            topics={kind: cluster.topic(kind) for kind in TOPICS},
            partitions=cluster.partitions,
            event_bytes_max=EVENT_BYTES_MAX,
            record_bytes_max=RECORD_BYTES_MAX,
        )

    @post("/verdicts", status_code=200, summary="What became of some records")
    async def verdicts(
        self, *, gateway: NamedDependency[Gateway], data: JSONBody[VerdictsQuestion]
    ) -> list[VerdictBody]:
        """Of those that are decided; waits until one is, at most `timeout` seconds."""
        if not 0 < len(data.records) <= RECORDS_MAX or not 0 <= data.timeout <= POLL_SECONDS_MAX:
            raise InvalidInput(
                f"{len(data.records)} records, and a timeout of {data.timeout} s",
                hint=f"ask for 1 to {RECORDS_MAX}, and wait at most {POLL_SECONDS_MAX} s",
            )
        records = [(record.partition, record.offset) for record in data.records]
        found = await gateway.journal.decided(records, data.timeout)
        return [VerdictBody(verdict.partition, verdict.entry) for verdict in found]

    @get("/verdicts/{partition:int}/{offset:int}", summary="What became of a record")
    async def verdict(
        self,
        *,
        gateway: NamedDependency[Gateway],
        partition: FromPath[int],
        offset: FromPath[int],
        wait: Annotated[float, QueryParameter(name="timeout", ge=0, le=POLL_SECONDS_MAX)] = 30.0,
    ) -> VerdictBody:
        """Waits for it at most `timeout` seconds; not found where it isn't decided by then."""
        found = await gateway.journal.decided([(partition, offset)], wait)
        if not found:
            raise NotFound(
                f"record {partition}:{offset} of {gateway.cluster.topic('events')} "
                "is not decided yet",
                hint="ask again",
            )
        return VerdictBody(partition, found[0].entry)

    @get("/stores/{store:str}/changes", summary="Wait until something of a store is recorded")
    async def changes(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        after: FromQuery[int] = 0,
        wait: Annotated[float, QueryParameter(name="timeout", ge=0, le=POLL_SECONDS_MAX)] = 30.0,
    ) -> ChangesBody:
        """The store's version, as soon as it isn't `after`; at the latest after `timeout` s."""
        verdicts = gateway.journal.verdicts
        return ChangesBody(await verdicts.changed(store_name(store), after, wait))
