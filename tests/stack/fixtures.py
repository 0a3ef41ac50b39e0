"""The real engines for the tests: `cluster` is a place of its own on them, gone when it is done.

PERDURE_STACK=running takes the engines that run on the default ports (`make stack`). Otherwise
this run starts its own, natively, or by Docker where Java, Maven or Go is missing. Where neither
can be had the tests are skipped, and say so; in CI they fail instead.
"""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from ops.stack import Ports, Stack, artifacts, docker
from ops.stack.locks import locked
from tests.stack.services import Services

from perdure.cassandra.session import Session
from perdure.errors import Unavailable
from perdure.settings import Cluster
from perdure.weaviate.session import Session as Weaviate

STACK = (pytest.mark.stack, pytest.mark.flaky(reruns=1))
"""What a test on the real engines is marked with: on a machine that is busy with other things an
engine may not answer in time, so a test that fails is tried once more, and the report says so."""

# Read before any test starts: tests don't see such variables (tests/conftest.py).
RUNNING = os.environ.get("PERDURE_STACK") == "running"
IN_CI = bool(os.environ.get("CI"))
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex


@pytest.fixture(scope="session")
def engines() -> Iterator[Cluster]:
    """Where the engines are: the settings of a cluster whose name nobody should use."""
    if RUNNING:
        yield at(Ports())
        return
    missing = what_is_missing()
    if not missing:
        yield from native()
    elif docker.answers():
        docker.up()
        yield at(Ports())
    else:
        reason = f"THE REAL ENGINES ARE NOT TESTED: {missing}, and no Docker engine answers"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_cluster(engines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that all tests of this process share: each takes a store of its own on it."""
    yield from fresh(engines, tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def shared_services(
    shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """All services of the cluster that tests of this process share."""
    with Services(shared_cluster, tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture
def cluster(engines: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of the test's own: no topic, keyspace or collection has its name yet."""
    yield from fresh(engines, tmp_path)


@pytest.fixture
def store() -> str:
    """The name of a store that nobody has used."""
    return f"s{uuid.uuid4().hex[:12]}"


def fresh(engines: Cluster, folder: Path) -> Iterator[Cluster]:
    """A cluster of a new name; what it made in the engines is dropped after."""
    [gateway, health] = free_ports(2)
    made = msgspec.structs.replace(
        engines,
        name=f"t{uuid.uuid4().hex[:12]}",
        partitions=4,
        blobs=(folder / "blobs").as_uri(),
        archive=(folder / "archive").as_uri(),
        gateway_port=gateway,
        quiet_seconds=1,
        health_port=health,
    )
    yield made
    asyncio.run(drop(made))


async def drop(cluster: Cluster) -> None:
    """Drop the topics, keyspaces and collections of a cluster."""
    session = await Session.connect(cluster)
    try:
        rows = await session.execute("SELECT keyspace_name FROM system_schema.keyspaces")
        names = [name for (name,) in rows]
        mine = [n for n in names if n == cluster.name or n.startswith(f"{cluster.name}_g")]
        await session.run_schema(f"DROP KEYSPACE IF EXISTS {name}" for name in mine)
    finally:
        await session.close()
    weaviate = await Weaviate.connect(cluster)
    try:
        for name in await weaviate.client.collections.list_all():
            if name.startswith(f"Perdure_{cluster.name}_g"):
                await weaviate.client.collections.delete(name)
    finally:
        await weaviate.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka)
    await admin.start()
    try:
        topics = [t for t in await admin.list_topics() if t.startswith(f"{cluster.name}.")]
        if topics:
            await admin.delete_topics(topics)
    finally:
        await admin.close()


def at(ports: Ports) -> Cluster:
    """The settings of a cluster on engines that listen on these ports."""
    return Cluster(
        name="nobody",
        kafka=f"127.0.0.1:{ports.kafka}",
        cassandra=f"127.0.0.1:{ports.cassandra}",
        weaviate=f"127.0.0.1:{ports.weaviate}",
        weaviate_grpc=f"127.0.0.1:{ports.weaviate_grpc}",
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    ports = Ports.free()
    return [ports.kafka, ports.cassandra, ports.weaviate][:count]


def what_is_missing() -> str:
    """What the engines need to run natively and this machine doesn't have; empty if nothing."""
    missing = [tool for tool in ("mvn", "go") if shutil.which(tool) is None]
    try:
        artifacts.java()
    except Unavailable as error:
        missing.append(error.message)
    return ", ".join(missing) and f"missing here: {', '.join(missing)}"


def native() -> Iterator[Cluster]:
    """One stack for all processes of this run: who comes first starts it, who goes last ends it."""
    folder = Path(tempfile.gettempdir()) / f"perdure-stack-{RUN}"
    users = folder / "users"
    users.mkdir(parents=True, exist_ok=True)
    me = users / str(os.getpid())
    with locked(folder / "users.lock"):
        data = folder / "data"
        started = (data / "stack.json").exists()
        stack = Stack(data) if started else Stack(data, ports=Ports.free())
        stack.up()
        me.touch()
    yield at(stack.ports)
    with locked(folder / "users.lock"):
        me.unlink()
        if not any(users.iterdir()):
            stack.wipe()
            shutil.rmtree(folder, ignore_errors=True)
