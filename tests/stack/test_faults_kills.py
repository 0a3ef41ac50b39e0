"""SIGKILL of every service under load: nothing acknowledged is lost, doubled or reordered."""

import asyncio
import contextlib
import os
import time

import msgspec
import pytest
from tests.embedded.forks import seeded
from tests.stack.fixtures import fresh
from tests.stack.load import EMBEDDER, GROUPS, Load, Topics
from tests.stack.services import SERVICES, Services

pytestmark = pytest.mark.slow

KILLS = 20 if os.environ.get("PERDURE_FAULTS") == "full" else 3
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
