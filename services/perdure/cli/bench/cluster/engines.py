"""The engines themselves: their versions, and taking away what a measurement left in them."""

import importlib.metadata
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient

from perdure.cassandra.session import Session
from perdure.settings import Cluster
from perdure.weaviate.session import Session as Weaviate

_CLIENTS: Final = ("aiokafka", "cassandra-driver")


async def versions(cluster: Cluster) -> dict[str, str]:
    """What runs where, and the clients that are compared.

    Raises:
        Unreachable: an engine doesn't answer.
    """
    session = await Session.connect(cluster)
    try:
        [[release]] = await session.execute("SELECT release_version FROM system.local")
    finally:
        await session.close()
    found = {"Kafka": cluster.kafka, "Cassandra": f"{release} at {cluster.cassandra}"}
    return found | {name: importlib.metadata.version(name) for name in _CLIENTS}


async def drop(cluster: Cluster) -> None:
    """Drop the topics, keyspaces and collections of a cluster, and those beside it."""
    session = await Session.connect(cluster)
    try:
        rows = await session.execute("SELECT keyspace_name FROM system_schema.keyspaces")
        mine = [n for (n,) in rows if n == cluster.name or n.startswith(f"{cluster.name}_")]
        await session.run_schema(f"DROP KEYSPACE IF EXISTS {name}" for name in mine)
    finally:
        await session.close()
    weaviate = await Weaviate.connect(cluster)
    try:
        for name in await weaviate.client.collections.list_all():
            if name.startswith(f"Perdure_{cluster.name}_"):
                await weaviate.client.collections.delete(name)
    finally:
        await weaviate.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    try:
        topics = [topic for topic in await admin.list_topics() if topic.startswith(cluster.name)]
        if topics:
            await admin.delete_topics(topics)
    finally:
        await admin.close()
