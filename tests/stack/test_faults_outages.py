"""Kafka, Cassandra and Weaviate go away under load, and come back.

Nothing acknowledged is lost, doubled or reordered, and the services recover by themselves.
"""

import asyncio
import contextlib
import functools
import os
import signal
import time

import msgspec
import pytest
from ops.stack import Ports, Stack
from tests.conformance.places import WordsEmbedder
from tests.stack.fixtures import at, what_is_missing
from tests.stack.load import EMBEDDER, Load
from tests.stack.services import Services

import perdure
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


@contextlib.asynccontextmanager
async def outage(stack, services, store, folder, away, back):
    """The load goes on through an outage, which lasts as long as the context at least."""
    async with Load(services, store, folder, stack=stack) as load:
        before = load.acknowledged()
        try:
            await asyncio.to_thread(away)
            yield load
            await asyncio.sleep(AWAY_SECONDS)
            during = load.acknowledged()
        finally:
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


@contextlib.asynccontextmanager
async def stopped(stack, services, store, folder, engine):
    """An outage of an engine that is stopped as an operator does it."""
    member = f"{engine}-1"
    away, back = functools.partial(stack.stop, member), functools.partial(stack.start, member)
    async with outage(stack, services, store, folder, away, back) as load:
        yield load


async def test_kafka_stopped_and_started_loses_nothing(stack, services, store, tmp_path):
    """Writes wait for it, and all services go on where they were."""
    async with stopped(stack, services, store, tmp_path, "kafka"):
        """Nothing but the load."""


@pytest.mark.parametrize("engine", ["cassandra", "weaviate"])
async def test_an_engine_that_is_stopped_and_started_makes_nothing_fail(
    stack, services, store, tmp_path, engine
):
    """Writes go on without it; whoever needs it waits until it is back, and is answered then."""
    async with One.of(services.url(store)) as one:
        async with stopped(stack, services, store, tmp_path, engine) as load:
            await one.ask()
        await one.answered()
    assert load.failures() == []


class One:
    """An agent that is opened before an outage, and what it asks for meanwhile."""

    def __init__(self, agent):
        self._agent = agent
        self._asked = []

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, url):
        """Opened, with one memory, while the context lasts."""
        async with perdure.connect(url, embedder=WordsEmbedder()) as store:
            agent = await store.agent("outage/one")
            await agent.remember("likes aisle seats")
            assert await agent.recall("seats", fresh=True)
            yield cls(agent)

    async def ask(self):
        """Writes need Kafka alone: one is acknowledged. All else may wait."""
        async with asyncio.timeout(AWAY_SECONDS):
            await self._agent.emit("note", "durable")
        wait = self._agent.emit("note", "recorded", ack="recorded")
        self._asked = [asyncio.create_task(each) for each in (wait, self._agent.recall("seats"))]

    async def answered(self):
        """What was asked for is given, as soon as the engine is back; nothing is missing."""
        recorded, hits = await asyncio.gather(*self._asked)
        events = [event async for event in self._agent.events()]
        assert [event.data for event in events if event.type == "note"] == ["durable", "recorded"]
        assert recorded.sequence == len(events)
        assert [hit.text for hit in hits] == ["likes aisle seats"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engine_that_hangs_loses_nothing(stack, services, store, tmp_path, engine):
    """Suspended, so that connections stay and nobody answers; then woken up."""
    member = f"{engine}-1"
    away = functools.partial(stack.kill, member, signal.SIGSTOP)
    back = functools.partial(stack.kill, member, signal.SIGCONT)
    async with outage(stack, services, store, tmp_path, away, back):
        """Nothing but the load."""


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
