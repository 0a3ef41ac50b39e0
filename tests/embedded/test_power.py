"""Power loss: what was synced is there, what was under way is gone, nothing is half there.

What the disk holds after a power loss is imitated on copies: the write-ahead log (WAL) ends
somewhere, or goes on with whatever the disk held there before. SQLite calls the WAL synced when an
emit returns, so all of it up to there has to count.
"""

import random
import shutil
from pathlib import Path

import pytest
from tests.embedded.forks import seeded, spin

import perdure
from perdure.embedded.folder import DATABASE

AGENT = "power/one"


def _zeros(_rng: random.Random, length: int) -> bytes:
    return bytes(length)


def _garbage(rng: random.Random, length: int) -> bytes:
    return rng.randbytes(length)


def _nothing(_rng: random.Random, _length: int) -> bytes:
    return b""


async def _written_and_killed(forks, rng, folder: Path) -> dict[int, int]:
    """A store whose writer was killed; for each answered sequence the bytes of the WAL by then."""
    async with perdure.connect(folder) as store:  # what is in the database itself, and synced
        agent = await store.agent(AGENT)
        for token in range(30):
            await agent.emit("note", {"token": str(token)})
    child = forks.start("measured", folder=str(folder), agent=AGENT, seed=rng.randrange(1 << 32))
    reports = [child.until("ack") for _ in range(60)]
    spin(rng.random() * 0.002)
    sizes = {sequence: size for _, sequence, size in [*reports, *child.kill()]}
    shutil.copytree(folder, folder.with_name("left"))  # as it was left: opening it changes it
    return sizes


@pytest.mark.parametrize("rest", [_nothing, _zeros, _garbage])
async def test_what_was_answered_before_the_log_ends_survives_power_loss(forks, tmp_path, rest):
    """Wherever the WAL ends, every event that was answered with less of it is there and sound."""
    rng = seeded(f"power {rest.__name__}")
    sizes = await _written_and_killed(forks, rng, tmp_path / "store")
    left = tmp_path / "left"
    wal = (left / f"{DATABASE}-wal").read_bytes()
    async with perdure.connect(tmp_path / "store") as store:
        whole = [event async for event in store.view(AGENT).events()]
    for attempt in range(15):
        cut = rng.randrange(len(wal) + 1) if attempt else len(wal) - 1
        copy = tmp_path / f"copy {attempt}"
        copy.mkdir()
        shutil.copy(left / DATABASE, copy / DATABASE)
        (copy / f"{DATABASE}-wal").write_bytes(wal[:cut] + rest(rng, len(wal) - cut))
        answered = max((at for at, size in sizes.items() if size <= cut), default=30)
        async with perdure.connect(copy) as store:
            view = store.view(AGENT)
            events = [event async for event in view.events()]
            assert answered <= len(events)
            assert whole[: len(events)] == events
            assert (await view.verify()).findings == []
            agent = await store.agent(AGENT)
            assert len(events) + 1 == (await agent.emit("note", {"token": "after"})).sequence
