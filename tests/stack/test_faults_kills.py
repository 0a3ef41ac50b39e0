"""Services killed, joined, suspended and woken under load.

Nothing acknowledged is lost, doubled or reordered, they recover by themselves, and what waits is
worked off.
"""

import asyncio
import contextlib
import os
import signal
import time

import msgspec
import pytest
from tests.embedded.forks import seeded
from tests.stack.fixtures import fresh
from tests.stack.load import EMBEDDER, GROUPS, Load, Topics
from tests.stack.services import SERVICES, Services

pytestmark = pytest.mark.slow

FULL = os.environ.get("PERDURE_FAULTS") == "full"
KILLS = 20 if FULL else 3
ROUNDS = 10 if FULL else 2
UNDISTURBED_SECONDS = 1.5


@pytest.fixture(scope="module")
def services(engines, tmp_path_factory):
    """Services that these tests may kill, on a cluster of their own."""
    folder = tmp_path_factory.mktemp("faults")
    with (
        contextlib.contextmanager(fresh)(engines, folder) as cluster,
        Services(msgspec.structs.replace(cluster, embedder=EMBEDDER), folder) as services,
    ):
        yield services


@pytest.mark.parametrize("name", SERVICES)
async def test_a_service_killed_under_load_loses_nothing(services, store, tmp_path, name):
    """Killed at any moment and started again, it goes on by itself where it was."""
    rng = seeded(f"kills of {name}")
    service = services[name]
    times = []
    async with Load(services, store, tmp_path) as load, Topics.of(services.cluster) as topics:
        for _ in range(KILLS):
            await asyncio.sleep(rng.random() * UNDISTURBED_SECONDS)
            service.kill()
            killed = time.monotonic()
            service.start()
            await asyncio.to_thread(service.wait_ready)
            await load.moved(since=time.monotonic())
            await topics.caught_up(
                *(group for group in GROUPS if GROUPS[group][0].startswith(name))
            )
            times.append(time.monotonic() - killed)
    await load.judge()
    print(  # noqa: T201 - shown with -s: how long it was until all was done that waited
        f"{name}: {KILLS} kills, {load.acknowledged()} events acknowledged, "
        f"{len(load.failures())} writes failed; up to date after "
        f"{sorted(times)[len(times) // 2]:.1f} s, at most {max(times):.1f} s"
    )


@contextlib.asynccontextmanager
async def another(services, name):
    """One more of a service, while the context lasts."""
    service = services.add(name)
    service.start()
    try:
        await asyncio.to_thread(service.wait_ready)
        yield service
    finally:
        services.all.remove(service)
        assert await asyncio.to_thread(service.stop) == 0


async def test_recorders_that_come_and_go_while_agents_write(services, store, tmp_path):
    """Partitions change hands in the middle of writing, in peace and by force."""
    rng = seeded("rebalances")
    async with Load(services, store, tmp_path) as load:
        for round_ in range(ROUNDS):
            async with another(services, "recorder") as second:
                await asyncio.sleep(rng.random() * UNDISTURBED_SECONDS)
                await load.moved(since=time.monotonic())
                if round_ % 2:
                    second.kill()
                    await load.moved(since=time.monotonic())
                    second.start()
                    await asyncio.to_thread(second.wait_ready)
                await asyncio.sleep(rng.random() * UNDISTURBED_SECONDS)
            await load.moved(since=time.monotonic())
    await load.judge()


async def test_a_recorder_that_wakes_up_in_others_partitions_changes_nothing(
    services, store, tmp_path
):
    """Suspended in the middle of its work until others have gone on with it; then it goes on."""
    rng = seeded("zombies")
    async with (
        Load(services, store, tmp_path, agents=4) as load,
        another(services, "recorder") as second,
    ):
        pair = [services["recorder"], second]
        await load.moved(since=time.monotonic())
        for round_ in range(ROUNDS):
            zombie = pair[round_ % 2]
            await asyncio.sleep(rng.random() * UNDISTURBED_SECONDS)
            zombie.kill(signal.SIGSTOP)
            try:
                # Recorded for all agents: the other has all partitions by now.
                await load.moved(since=time.monotonic())
                await asyncio.sleep(rng.random())
            finally:
                zombie.kill(signal.SIGCONT)
            await load.moved(since=time.monotonic())
    await load.judge()
