"""A broker of three and a node of three are killed under load: a majority is enough to go on."""

import asyncio
import os
import signal
import time

import msgspec
import pytest
import tenacity
from ops.stack import Ports, Stack
from tests.embedded.forks import seeded
from tests.stack.fixtures import at, what_is_missing
from tests.stack.load import EMBEDDER, PATIENCE_SECONDS, Load, until
from tests.stack.services import Services

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session
from perdure.errors import Unreachable
from perdure.kafka import topics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(what_is_missing()), reason="needs engines of its own"),
]

AWAY_SECONDS = 15 if os.environ.get("PERDURE_FAULTS") == "full" else 5
COPIES = 3
SLOW_SECONDS = 4


@pytest.fixture(scope="module")
def stack(engines, tmp_path_factory):
    """Three brokers and three nodes. Those of all are asked for as well: so that they wait."""
    stack = Stack(
        tmp_path_factory.mktemp("stack"), brokers=COPIES, nodes=COPIES, ports=Ports.free()
    )
    try:
        stack.up()
        yield stack
    finally:
        stack.wipe()


@pytest.fixture(scope="module")
def services(stack, tmp_path_factory):
    """All services, on these engines; three copies of everything."""
    folder = tmp_path_factory.mktemp("services")
    nodes = ",".join(f"{node}:{stack.cassandra_port}" for node in stack.cassandra)
    cluster = msgspec.structs.replace(
        at(stack.ports),
        name="members",
        kafka=stack.kafka,
        cassandra=nodes,
        replication=COPIES,
        partitions=4,
        blobs=(folder / "blobs").as_uri(),
        embedder=EMBEDDER,
    )
    asyncio.run(made(cluster))
    with Services(cluster, folder) as services:
        yield services


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(Unreachable),
    wait=tenacity.wait_fixed(1),
    stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
    reraise=True,
)
async def made(cluster):
    """Make topics and tables: five services that do it at once keep three small nodes busy."""
    await topics.ensure(cluster)
    session = await Session.connect(cluster)
    try:
        await Catalog.open(session, cluster)
    finally:
        await session.close()


@pytest.mark.parametrize("engine", ["kafka", "cassandra"])
async def test_a_member_of_three_may_be_killed_under_load(stack, services, store, tmp_path, engine):
    """Each in its turn: what is written is acknowledged and recorded without it; nothing fails."""
    rng = seeded(f"members of {engine}")
    await asyncio.to_thread(stack.up)  # all of them, whatever a test that failed left
    times = []
    async with Load(services, store, tmp_path, stack=stack) as load:
        for number in rng.sample(range(1, COPIES + 1), COPIES):
            member = f"{engine}-{number}"
            await asyncio.to_thread(stack.kill, member)
            await asyncio.sleep(AWAY_SECONDS)
            times.append(await moved(load))
            await asyncio.to_thread(stack.start, member)
            times.append(await moved(load))
    await load.judge()
    print(  # noqa: T201 - shown with -s
        f"{engine}: {load.acknowledged()} events acknowledged, {len(load.failures())} writes "
        f"failed; all agents went on within {max(times):.1f} s of each kill and start"
    )
    assert load.failures() == []


async def test_a_node_that_starts_waits_for_one_that_is_slow(stack):
    """The first node of the ring takes its time to answer: who joins does not end for that."""
    await asyncio.to_thread(stack.up)
    stack.kill("cassandra-2")
    log = stack.members["cassandra-2"].log
    told = log.stat().st_size

    async def listens():
        return b"Listening on address" in log.read_bytes()[told:]

    stack.kill("cassandra-1", signal.SIGSTOP)
    try:
        starting = asyncio.create_task(asyncio.to_thread(stack.start, "cassandra-2"))
        await until(listens)
        await asyncio.wait([starting], timeout=SLOW_SECONDS)
    finally:
        stack.kill("cassandra-1", signal.SIGCONT)
    await starting


async def moved(load):
    """Wait until all agents had a write recorded that they began now; the seconds that took."""
    now = time.monotonic()
    await load.moved(since=now)
    return time.monotonic() - now
