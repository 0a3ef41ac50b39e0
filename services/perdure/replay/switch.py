"""Switching over: each partition at a place in its log, while agents write and read.

A record is put into each partition of the events. What builds the generation comes to it and notes
that everything before it is in; the recorder comes to it, waits for that note, and goes on in the
new generation. So nothing is between the two, and whoever crashes where, the next recorder comes to
the same record and does the same.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Final

import uuid_utils
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition
from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from perdure.cassandra.catalog import Placed
from perdure.errors import Refused, Unreachable
from perdure.kafka.switching import encode
from perdure.replay.engines import Engines
from perdure.replay.topic import reachable
from perdure.replay.verdicts import Verdicts, decided, following
from perdure.settings import Cluster

TRIES: Final = 3
"""How often a partition is asked to switch."""

KNOWN_SECONDS: Final = 0.2
"""How often it is looked whether a partition was switched."""

LOOK_SECONDS: Final = 5.0
"""How often it is looked whether the recorder goes on."""

IDLE_LOOKS: Final = 6
"""After so many looks at which the recorder has not moved, it is not running."""


async def switch_over(engines: Engines, generation: int) -> None:
    """Have all partitions read from a generation, whose building goes on meanwhile.

    Raises:
        Unreachable: the recorder does not come to it: it isn't running.
        Refused: the recorder didn't switch: the generation wasn't caught up in time.
    """
    problem = ""
    for _ in range(TRIES):
        waiting = [p for p, g in (await engines.catalog.placement()).items() if g != generation]
        if not waiting:
            return
        async with following(engines.cluster) as verdicts:
            sent = await _send(engines.cluster, generation, waiting)
            problem = await _outcome(engines.cluster, verdicts, sent)
    waiting = [p for p, g in (await engines.catalog.placement()).items() if g != generation]
    if waiting:
        raise Refused(
            f"partitions {', '.join(map(str, sorted(waiting)))} were not switched to generation"
            f" {generation}: {problem}",
            hint="everything is as it was; run perdure replay again to go on",
        )


async def switched_at(engines: Engines, generation: int, partition: int, offset: int) -> bool:
    """Whether a partition was switched to a generation by the record at an offset.

    Waits until the recorder has decided about it. Raises Unavailable.
    """

    async def known() -> Placed:
        return await engines.catalog.placed(partition)

    found: Placed = await AsyncRetrying(
        retry=retry_if_result(lambda placed: placed.position < offset),
        wait=wait_fixed(KNOWN_SECONDS),
    )(known)
    return found.generation == generation


async def committed(cluster: Cluster) -> dict[int, int]:
    """The offset of each partition of the events before which the recorder has decided everything.

    Raises:
        Unreachable: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    topic = cluster.topic("events")
    with reachable(cluster):
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(
                cluster.group("recorder"),
                partitions=[TopicPartition(topic, each) for each in range(cluster.partitions)],
            )
        finally:
            await admin.close()
    return {where.partition: max(0, found.offset) for where, found in offsets.items()}


async def _send(cluster: Cluster, generation: int, partitions: list[int]) -> dict[int, int]:
    """Put the record into partitions; at which offset of each it is."""
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.kafka, acks="all", enable_idempotence=True
    )
    with reachable(cluster):
        try:
            await producer.start()
            sent: dict[int, int] = {}
            for partition in sorted(partitions):
                value, headers = encode(
                    generation,
                    id=str(uuid_utils.uuid7()),
                    time=dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
                )
                found = await producer.send_and_wait(
                    cluster.topic("events"), value, partition=partition, headers=headers
                )
                sent[partition] = found.offset
        finally:
            await producer.stop()
    return sent


async def _outcome(cluster: Cluster, verdicts: Verdicts, sent: Mapping[int, int]) -> str:
    """Wait until the recorder has decided about all; why one was not switched, if one was not."""
    waiting = set(sent.items())
    problem, before, idle = "", await committed(cluster), 0
    while waiting:
        for where, entry in (await decided(verdicts, waiting, LOOK_SECONDS)).items():
            waiting.discard(where)
            if entry.error is not None:
                problem = entry.error.message
        now = await committed(cluster)
        # Of those that are waited for: others move as long as anybody writes.
        idle = 0 if any(now[part] != before[part] for part, _ in waiting) else idle + 1
        if waiting and idle >= IDLE_LOOKS:
            raise Unreachable(
                f"the recorder does not come to partitions"
                f" {', '.join(str(partition) for partition, _ in sorted(waiting))}",
                hint="start it, it switches when it comes there; then run perdure replay again",
            )
        before = now
    return problem
