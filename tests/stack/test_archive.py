"""The archive of the log on a real Kafka: whole, resumable, and safe to write twice at once."""

import asyncio
import os
import sys
import uuid

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from tests.stack.test_blobs_s3 import s3_server as s3_server  # noqa: PLC0414 - a fixture

from perdure.errors import Incompatible
from perdure.kafka import topics
from perdure.replay.archive import Archive, opened
from perdure.replay.archiving import Archiver, Missing, gaps
from perdure.replay.segments import as_logged
from perdure.replay.topic import reading

pytestmark = pytest.mark.stack


async def produce(cluster, count, *, size=50, start=0):
    """Send records with every kind of header, key and value; how many each partition got."""
    producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka, acks="all")
    await producer.start()
    try:
        sent = [
            await producer.send(
                cluster.topic("events"),
                value=os.urandom(size) if number % 5 else b"",
                key=f"a/{number}".encode() if number % 7 else None,
                partition=number % cluster.partitions,
                timestamp_ms=1_700_000_000_000 - number,
                headers=[("ce_id", b"%d" % number), ("twice", b""), ("twice", b"\xff")],
            )
            for number in range(start, start + count)
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def everything(cluster):
    """All records of the topic, as they are in Kafka, by partition."""
    found = {partition: [] for partition in range(cluster.partitions)}
    async with reading(cluster, "events") as reader:
        bounds = await reader.bounds(list(found))
        reader.start({partition: bound.first for partition, bound in bounds.items()})
        while any(
            bound.first + len(found[partition]) < bound.end for partition, bound in bounds.items()
        ):
            for partition, records in (await reader.fetch()).items():
                found[partition] += [as_logged(record) for record in records]
    return found


async def archived(cluster, **options):
    """Archive what there is; the segments that were added and what was missing."""
    added, missing = [], []
    async with (
        opened(cluster.archive, cluster.topic("events")) as archive,
        reading(cluster, "events") as reader,
    ):
        archiver = Archiver(
            archive,
            reader,
            range(cluster.partitions),
            added=added.append,
            missing=missing.append,
            **options,
        )
        await archiver.copy(lambda _: None)
    return added, missing


async def contents(cluster):
    """All records of the archive, by partition."""
    archive = Archive(cluster.archive, cluster.topic("events"))
    found = {}
    for partition in range(cluster.partitions):
        segments = await archive.segments(partition)
        assert gaps(partition, segments) == []
        found[partition] = [
            record
            for segment in segments
            async for batch in archive.read(segment)
            for record in batch
        ]
    await archive.close()
    return found


async def delete_before(cluster, partition, offset):
    """Delete the head of a partition, as retention would."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    try:
        await admin.delete_records(
            {TopicPartition(cluster.topic("events"), partition): RecordsToDelete(offset)}
        )
    finally:
        await admin.close()


async def command(cluster, *arguments):
    """`perdure archive` in a process of its own."""
    values = msgspec.to_builtins(cluster)
    environment = {f"PERDURE_{name.upper()}": str(value) for name, value in values.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "perdure", "archive", *arguments),
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process):
    """The exit status of a process, and what it printed."""
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output, errors


async def test_the_archive_is_the_topic(cluster):
    """Keys, values, headers, times and offsets; a second run adds only what is new."""
    await topics.ensure(cluster)
    await produce(cluster, 500)
    added, missing = await archived(cluster)
    assert missing == []
    assert {segment.partition for segment in added} == set(range(cluster.partitions))
    assert await contents(cluster) == await everything(cluster)
    assert await archived(cluster) == ([], [])
    await produce(cluster, 41, start=500)
    added, _ = await archived(cluster)
    assert sum(segment.count for segment in added) == 41
    assert await contents(cluster) == await everything(cluster)


async def test_segments_are_bounded(cluster, monkeypatch):
    """A segment is complete at its size, and the next one goes on at the following offset."""
    monkeypatch.setattr("perdure.replay.segments.SEGMENT_BYTES", 1_000_000)
    await topics.ensure(cluster)
    await produce(cluster, 1200, size=5000)
    added, _ = await archived(cluster)
    assert len(added) > cluster.partitions
    assert await contents(cluster) == await everything(cluster)


async def test_archivers_at_once_make_one_archive(cluster, monkeypatch):
    """Three at once, in small segments: no record twice, none left out."""
    monkeypatch.setattr("perdure.replay.segments.SEGMENT_BYTES", 100_000)
    await topics.ensure(cluster)
    await produce(cluster, 3000, size=500)
    await asyncio.gather(*(archived(cluster) for _ in range(3)))
    assert await contents(cluster) == await everything(cluster)


async def test_what_was_deleted_too_early_is_told(cluster):
    """Offsets that retention took before they were archived are named; the rest is archived."""
    await topics.ensure(cluster)
    await produce(cluster, 40)
    await archived(cluster)
    await produce(cluster, 40, start=40)
    await delete_before(cluster, 1, 15)
    _, missing = await archived(cluster)
    assert missing == [Missing(1, 10, 14)]
    archive = Archive(cluster.archive, cluster.topic("events"))
    segments = await archive.segments(1)
    await archive.close()
    assert gaps(1, segments) == missing
    assert segments[-1].last == 19


async def test_the_archive_of_another_topic_is_refused(cluster):
    """A topic that is shorter than its archive is another one: nothing is mixed."""
    await topics.ensure(cluster)
    await produce(cluster, 40)
    await archived(cluster)
    other = msgspec.structs.replace(cluster, name=f"t{uuid.uuid4().hex[:12]}")
    await topics.ensure(other)
    async with (
        opened(cluster.archive, cluster.topic("events")) as archive,
        reading(other, "events") as reader,
    ):
        archiver = Archiver(archive, reader, range(4), added=lambda _: None, missing=lambda _: None)
        with pytest.raises(Incompatible, match="another"):
            await archiver.copy(lambda _: None)
    admin = AIOKafkaAdminClient(bootstrap_servers=other.kafka)
    await admin.start()
    await admin.delete_topics([other.topic(kind) for kind in topics.KINDS])
    await admin.close()


@pytest.mark.slow
async def test_following_survives_kills(cluster):
    """An archiver that follows is killed at any moment and started again: nothing is missing."""
    await topics.ensure(cluster)
    for round_number in range(3):
        process = await command(cluster, "--follow")
        await process.stderr.readline()
        await produce(cluster, 400, size=2000, start=400 * round_number)
        process.kill()
        await ended(process)
    process = await command(cluster, "--follow")
    await process.stderr.readline()
    await produce(cluster, 100, start=1200)
    process.terminate()
    status, _, errors = await ended(process)
    assert (status, b"archived" in errors) == (0, True)
    await archived(cluster)
    assert await contents(cluster) == await everything(cluster)


@pytest.mark.slow
async def test_the_command_shows_what_there_is(cluster):
    """`perdure archive`, --list and --verify, as people and as programs read them."""
    await topics.ensure(cluster)
    await produce(cluster, 80)
    status, printed, errors = await ended(await command(cluster))
    assert status == 0, errors
    assert b"80 records archived in 4 segments" in printed
    status, printed, _ = await ended(await command(cluster, "--list", "--json"))
    lines = [msgspec.json.decode(line) for line in printed.splitlines()]
    assert [(line["partition"], line["first"], line["last"]) for line in lines] == [
        (partition, 0, 19) for partition in range(4)
    ]
    status, printed, _ = await ended(await command(cluster, "--verify"))
    assert (status, b"as it was written" in printed) == (0, True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_archive_in_s3(cluster, s3_server, monkeypatch):
    """The same in an object store: a line of the index is written by one archiver alone."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"archive-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3")
    await asyncio.to_thread(client.create_bucket, Bucket=bucket)
    client.close()
    there = msgspec.structs.replace(cluster, archive=f"s3://{bucket}/archive")
    await topics.ensure(there)
    await produce(there, 200)
    await asyncio.gather(archived(there), archived(there))
    assert await contents(there) == await everything(there)
