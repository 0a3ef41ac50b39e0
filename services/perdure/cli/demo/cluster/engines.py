"""What lies in the engines themselves, read past perdure: rows, objects, and how far who is.

These are the demo's witnesses: they ask Cassandra, Weaviate and Kafka, and none of the services.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from perdure.cassandra import schema
from perdure.cassandra.session import Session
from perdure.cli.demo.cluster.results import Collection, HeadRow, Rows
from perdure.errors import Unreachable
from perdure.kafka.topics import KINDS
from perdure.kafka.wire import DEFAULT_STORE
from perdure.settings import Cluster
from perdure.weaviate.schema import Collections
from perdure.weaviate.session import Session as Weaviate

READERS: Final = {
    # Who reads which topic; its committed position says how far it is.
    "recorder": "events",
    "checkpointer": "journal",
    "memorizer": "journal",
    "projector": "journal",
}

_TABLES: Final = {
    # Of a generation, the ones worth showing, and a column that every row of them has.
    "events": ("sequence", "the agents' events; the head of each agent beside them"),
    "events_by_type": ("sequence", "the same by type and time"),
    "event_ids": ("id", "to know an event that comes again"),
    "states": ("slot", "saved states, to fold from"),
    "agents": ("agent", "by namespace"),
}


class Engines:
    """Connections to Kafka, Cassandra and Weaviate. `opened` gives them."""

    def __init__(
        self,
        cassandra: Session,
        weaviate: Weaviate,
        admin: AIOKafkaAdminClient,
        consumer: AIOKafkaConsumer,
    ) -> None:
        self._cassandra = cassandra
        self._weaviate = weaviate
        self._admin = admin
        self._consumer = consumer

    async def lag(self, cluster: Cluster) -> dict[str, int]:
        """How many records of its topic each service has not committed.

        Raises:
            Unreachable: Kafka doesn't answer.
        """
        behind = {}
        with _kafka(cluster):
            for service, kind in READERS.items():
                partitions = [
                    TopicPartition(cluster.topic(kind), number)
                    for number in range(cluster.partitions)
                ]
                ends = await self._consumer.end_offsets(partitions)
                committed = await self._admin.list_consumer_group_offsets(
                    cluster.group(service), partitions=partitions
                )
                behind[service] = sum(
                    end - max(0, committed[part].offset if part in committed else 0)
                    for part, end in ends.items()
                )
        return behind

    async def rows(self, cluster: Cluster, generation: int) -> list[Rows]:
        """How many rows the tables of a generation hold."""
        keyspace = cluster.keyspace(generation)
        return [
            Rows(f"{keyspace}.{table}", await self._count(f"{keyspace}.{table}", column), holds)
            for table, (column, holds) in _TABLES.items()
        ]

    async def manifest(self, cluster: Cluster) -> Rows:
        """How many objects are noted to be in checkpoint storage, whatever the generation."""
        table = f"{schema.control_keyspace(cluster)}.objects"
        count = await self._count(table, "digest")
        return Rows(table, count, "the manifest of checkpoint storage")

    async def head(self, cluster: Cluster, generation: int, agent: str) -> HeadRow:
        """The head of an agent that fits into one bucket, as it stands in its row; 0 without."""
        statement = await self._cassandra.prepare(
            "SELECT DISTINCT last, epoch, position, chain, bucket_bytes"  # noqa: S608 - constants
            f" FROM {cluster.keyspace(generation)}.events"
            " WHERE store = ? AND agent = ? AND bucket = 0"
        )
        rows = await self._cassandra.execute(statement, (DEFAULT_STORE, agent))
        if not rows:
            return HeadRow(agent, 0, 0, -1, "", 0)
        [(last, epoch, position, chain, size)] = rows
        return HeadRow(agent, last, epoch, position, chain.hex(), size)

    async def collections(self, cluster: Cluster, generation: int) -> list[Collection]:
        """The collections of a generation in Weaviate, and how many objects are in each tenant."""
        prefix = f"Perdure_{cluster.keyspace(generation)}__"
        found = []
        async with self._weaviate.calling("counting objects"):
            collections = self._weaviate.client.collections
            for name in sorted(await collections.list_all(simple=True)):
                if not name.startswith(prefix):
                    continue
                tenants = {}
                for tenant in sorted(await collections.use(name).tenants.get()):
                    part = collections.use(name).with_tenant(tenant)
                    counted = await part.aggregate.over_all(total_count=True)
                    tenants[tenant] = counted.total_count or 0
                found.append(Collection(name, tenants))
        return found

    async def agents(self, cluster: Cluster) -> list[str]:
        """The agents of a cluster, of whatever store; none where it isn't any more."""
        found: set[str] = set()
        for keyspace in await self._keyspaces(cluster):
            if keyspace != cluster.name:
                query = f"SELECT agent FROM {keyspace}.agents"  # noqa: S608 - a keyspace there is
                rows = await self._cassandra.execute(query)
                found |= {agent for (agent,) in rows}
        return sorted(found)

    async def drop(self, cluster: Cluster) -> None:
        """Drop all that a cluster has in the engines. Nothing happens where it has nothing."""
        keyspaces = await self._keyspaces(cluster)
        collections = Collections(self._weaviate)
        for keyspace in keyspaces:
            await collections.drop(keyspace)
        # The control keyspace goes last: it says what the others were.
        await self._cassandra.run_schema(
            f"DROP KEYSPACE IF EXISTS {name}" for name in sorted(keyspaces, reverse=True)
        )
        with _kafka(cluster):
            there = set(await self._admin.list_topics())
            topics = [name for kind in KINDS if (name := cluster.topic(kind)) in there]
            if topics:
                await self._admin.delete_topics(topics)

    async def _count(self, table: str, column: str) -> int:
        # Of a column: a partition that holds nothing but its static columns is no row.
        query = f"SELECT count({column}) FROM {table}"  # noqa: S608 - constants
        [(count,)] = await self._cassandra.execute(query)
        return int(count)

    async def _keyspaces(self, cluster: Cluster) -> list[str]:
        control = schema.control_keyspace(cluster)
        rows = await self._cassandra.execute("SELECT keyspace_name FROM system_schema.keyspaces")
        return [name for (name,) in rows if name == control or name.startswith(f"{control}_g")]


@contextlib.asynccontextmanager
async def opened(cluster: Cluster) -> AsyncIterator[Engines]:
    """The engines of a cluster, for as long as the context lasts.

    Raises:
        Unreachable: one of them doesn't answer.
    """
    async with contextlib.AsyncExitStack() as stack:
        with _kafka(cluster):
            admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
            stack.push_async_callback(admin.close)
            await admin.start()
            consumer = AIOKafkaConsumer(bootstrap_servers=cluster.kafka, enable_auto_commit=False)
            stack.push_async_callback(consumer.stop)
            await consumer.start()
        cassandra = await Session.connect(cluster)
        stack.push_async_callback(cassandra.close)
        weaviate = await Weaviate.connect(cluster)
        stack.push_async_callback(weaviate.close)
        yield Engines(cassandra, weaviate, admin, consumer)


@contextlib.contextmanager
def _kafka(cluster: Cluster) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unreachable(
            f"Kafka at {cluster.kafka} does not answer: {error}", hint="`make stack` starts it"
        ) from error
