"""Tables built anew from the log, beside those that are live, and gone over to while agents write."""

import asyncio
import os
import sys

import msgspec
import pytest
from tests.stack.load import EMBEDDER, Load
from tests.stack.services import Services

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session

pytestmark = pytest.mark.slow


async def command(cluster, *arguments):
    """`perdure …` in a process of its own."""
    values = msgspec.to_builtins(cluster)
    environment = {f"PERDURE_{name.upper()}": str(value) for name, value in values.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "perdure", *arguments),
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def replayed(cluster, *arguments, status=0):
    """What `perdure replay --json …` says."""
    process = await command(cluster, "replay", "--json", *arguments)
    printed, told = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == status, (printed, told.decode()[-3000:])
    return [msgspec.json.decode(line) for line in printed.splitlines()]


async def placement(cluster):
    """The generation from which each partition is read."""
    session = await Session.connect(cluster)
    try:
        return await (await Catalog.open(session, cluster)).placement()
    finally:
        await session.close()


@pytest.fixture
def services(cluster, tmp_path):
    """All services of a cluster of the test's own."""
    with Services(msgspec.structs.replace(cluster, embedder=EMBEDDER), tmp_path) as services:
        yield services


async def test_switched_over_while_agents_write(services, store, tmp_path):
    """Every agent is the same in the new generation, and nothing acknowledged is lost or doubled."""
    cluster = services.cluster
    async with Load(services, store, tmp_path, pace=0.4) as load:
        [outcome] = await replayed(cluster)
        assert outcome["differences"] == []
        assert (outcome["generation"], outcome["switched"]) == (2, True)
        assert set((await placement(cluster)).values()) == {2}
        # And once more, from what is live now: the records of the first switch are in the log.
        [outcome] = await replayed(cluster)
        assert (outcome["generation"], outcome["switched"]) == (3, True)
        [dropped] = [await command(cluster, "replay", "--drop", str(each)) for each in (1,)]
        await dropped.wait()
    assert dropped.returncode == 0
    await load.judge()
    rows = {row["generation"]: row for row in await replayed(cluster, "--list")}
    assert {number: row["partitions"] for number, row in rows.items()} == {2: 0, 3: 4}
