"""Kafka, Cassandra and Weaviate go away under load, and come back.

Nothing acknowledged is lost, doubled or reordered, and the services recover by themselves.
"""

import asyncio
import os
import signal
import time

import msgspec
import pytest
from ops.stack import Ports, Stack
from tests.stack.fixtures import at, what_is_missing
from tests.stack.load import EMBEDDER, Load
from tests.stack.services import Services

from perdure.errors import Unreachable
from perdure.kafka import producer
from perdure.kafka.wire import Wire

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(what_is_missing()), reason="needs engines of its own"),
]

AWAY_SECONDS = 30 if os.environ.get("PERDURE_FAULTS") == "full" else 5
ENGINES = ("kafka", "cassandra", "weaviate")


@pytest.fixture(scope="module")
def stack(engines, tmp_path_factory):
    """Engines that these tests may stop. Those of all are asked for as well: so that they wait."""
    stack = Stack(tmp_path_factory.mktemp("stack"), ports=Ports.free())
    try:
        stack.up()
        yield stack
    finally:
        stack.wipe()


@pytest.fixture(scope="module")
def services(stack, tmp_path_factory):
    """All services, on these engines."""
    folder = tmp_path_factory.mktemp("services")
    cluster = msgspec.structs.replace(
        at(stack.ports),
        name="outages",
        partitions=4,
        blobs=(folder / "blobs").as_uri(),
        embedder=EMBEDDER,
    )
    with Services(cluster, folder) as services:
        yield services


async def outage(stack, services, store, folder, away, back):
    """The load goes on through an outage; what became of it."""
    async with Load(services, store, folder) as load:
        before = load.acknowledged()
        await asyncio.to_thread(away)
        await asyncio.sleep(AWAY_SECONDS)
        during = load.acknowledged()
        await asyncio.to_thread(back)
        returned = time.monotonic()
        await load.moved(since=returned)
        moved = time.monotonic() - returned
    await load.judge()
    print(  # noqa: T201 - shown with -s
        f"{before} events acknowledged before, {during - before} meanwhile, "
        f"{load.acknowledged() - during} after; {len(load.failures())} failed: "
        f"{sorted(set(load.failures()))}; went on after {moved:.1f} s"
    )
    return load, during - before


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engine_that_is_stopped_and_started_loses_nothing(
    stack, services, store, tmp_path, engine
):
    """Stopped as an operator does it; whoever needs it waits, and goes on where it was."""
    member = f"{engine}-1"
    load, during = await outage(
        stack,
        services,
        store,
        tmp_path,
        lambda: stack.stop(member),
        lambda: stack.start(member),
    )
    if engine != "kafka":
        assert during > 0, "writes need Kafka alone"
        assert load.failures() == []


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engine_that_hangs_loses_nothing(stack, services, store, tmp_path, engine):
    """Suspended, so that connections stay and nobody answers; then woken up."""
    member = f"{engine}-1"
    await outage(
        stack,
        services,
        store,
        tmp_path,
        lambda: stack.kill(member, signal.SIGSTOP),
        lambda: stack.kill(member, signal.SIGCONT),
    )


async def test_who_waits_on_a_connection_that_is_given_up_is_told(stack, services, monkeypatch):
    """Another partition's failure replaces the connection: nobody waits on the old one for long."""
    monkeypatch.setattr(producer, "REPLACED_SECONDS", 0.2)
    monkeypatch.setattr(producer, "STOP_SECONDS", 0.2)
    cluster = services.cluster
    sending = producer.BatchProducer(cluster.kafka, cluster.topic("state"))
    await sending.start()

    def deliver():
        batch = sending.batch()
        assert producer.added(batch, Wire(b"load/nobody", b"null", []))
        deadline = asyncio.get_running_loop().time() + 60
        return asyncio.create_task(sending.deliver(batch, 0, deadline))

    stack.kill("kafka-1", signal.SIGSTOP)
    try:
        first = deliver()
        await asyncio.sleep(0.5)
        sending._replace(sending._producer)
        with pytest.raises(Unreachable, match="may still be recorded"):
            await asyncio.wait_for(first, 20)
        second = deliver()
        await asyncio.sleep(0.5)
        assert not second.done()
    finally:
        stack.kill("kafka-1", signal.SIGCONT)
    assert await second >= 0
    await sending.close()
