"""The topics of a cluster: made with the settings that perdure relies on, and checked."""

import asyncio
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from perdure.errors import Incompatible, Unreachable
from perdure.settings import Cluster

KINDS: Final = ("events", "journal", "chunks", "state", "dead-letters")

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""The largest batch that the topics take; `wire.RECORD_BYTES_MAX` of one record fits."""

LETTER_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 64 * 1024
"""The same of dead letters, which say beside such a record what is wrong with it."""

READY_SECONDS: Final = 30.0
"""How long new topics may take until every one has its partitions."""


async def ensure(cluster: Cluster) -> None:
    """Make the cluster's topics where they are missing, and check those that are there.

    Several processes may do so at once. Retention is the brokers' default, but `state` is
    compacted: it keeps the newest of each agent. `events` must not lose what is neither recorded
    nor archived: `recorder.extent` notices when it did.

    Raises:
        Incompatible: a topic has another number of partitions than the cluster's settings say.
        Unreachable: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    try:
        try:
            await admin.start()
            await _make(admin, cluster)
            await _check(admin, cluster)
        finally:
            await admin.close()
    except (KafkaError, OSError) as error:
        raise Unreachable(
            f"Kafka at {cluster.kafka} could not make the topics {cluster.name}.…: {error}",
            hint="start it, or check its address",
        ) from error


async def _make(admin: AIOKafkaAdminClient, cluster: Cluster) -> None:
    there = set(await admin.list_topics())
    missing = [kind for kind in KINDS if cluster.topic(kind) not in there]
    if not missing:
        return
    response = await admin.create_topics(
        [
            NewTopic(
                name=cluster.topic(kind),
                num_partitions=cluster.partitions,
                replication_factor=cluster.replication,
                topic_configs=settings(kind, cluster.replication),
            )
            for kind in missing
        ]
    )
    for _, code, *_ in response.topic_errors:
        kind = for_code(code)
        if code and kind is not TopicAlreadyExistsError:
            raise kind(f"topics {', '.join(map(cluster.topic, missing))}")


def settings(kind: str, replication: int) -> dict[str, str]:
    """What a topic is made with, beside its partitions: Kafka's names and values.

    >>> settings("state", 3)["min.insync.replicas"]
    '2'
    """
    chosen = {
        "max.message.bytes": str(LETTER_BYTES_MAX if kind == "dead-letters" else MESSAGE_BYTES_MAX),
        # Acknowledged means: on the disks of a majority. One copy may be away.
        "min.insync.replicas": str(replication // 2 + 1),
        # When an upload is given up must not hang on the clock of the process that sends it.
        "message.timestamp.type": "LogAppendTime" if kind == "chunks" else "CreateTime",
    }
    if kind == "state":
        chosen["cleanup.policy"] = "compact"
    return chosen


async def _check(admin: AIOKafkaAdminClient, cluster: Cluster) -> None:
    """Wait until all topics have partitions, and compare how many."""
    names = [cluster.topic(kind) for kind in KINDS]
    async with asyncio.timeout(READY_SECONDS):
        while True:
            found = {
                topic["topic"]: len(topic["partitions"])
                for topic in await admin.describe_topics(names)
                if not topic["error_code"]
            }
            if all(found.get(name) for name in names):
                break
            await asyncio.sleep(0.05)
    for name, count in found.items():
        if count != cluster.partitions:
            raise Incompatible(
                f"the topic {name} has {count} partitions, and the cluster's settings say "
                f"{cluster.partitions}",
                hint=f"set partitions = {count}: an agent's order is kept in one partition, which "
                "another number would change",
            )
