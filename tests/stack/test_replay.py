"""Tables built anew from the log beside the live ones, and gone over to while agents write."""

import asyncio
import contextlib
import datetime as dt
import os
import signal
import sys

import msgspec
import pytest
from tests.stack.load import EMBEDDER, Load, until
from tests.stack.producing import producing
from tests.stack.services import Services
from tests.stack.test_archive import archived, delete_before

import perdure
from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session
from perdure.errors import NotFound, Unreachable
from perdure.kafka import switching, wire
from perdure.model.upcast import Upcasters
from perdure.replay.engines import opened
from perdure.replay.replay import Wishes, replay_all
from perdure.replay.switch import committed
from perdure.replay.verdicts import decided, following

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


@contextlib.contextmanager
def unseen(_what, _total):
    """Progress that nobody looks at."""
    yield lambda _done: None


@contextlib.asynccontextmanager
async def engines_of(cluster):
    """The engines of a cluster, and what is told."""
    told = []
    async with opened(cluster, told.append) as engines:
        yield engines, told


async def replay_here(cluster, **wishes):
    """What a replay in this process does."""
    async with engines_of(cluster) as (engines, _):
        return await replay_all(engines, Upcasters(), unseen, Wishes(**wishes))


async def all_recorded(cluster, count):
    """Wait until the recorder has decided so many records."""

    async def there():
        return sum((await committed(cluster)).values()) >= count

    await until(there)


async def chain_of(cluster, agent, sequence):
    """An agent's hash chain."""
    async with engines_of(cluster) as (engines, _):
        return await engines.live.chain_at("default", agent, sequence)


@pytest.fixture
def recorder(cluster, tmp_path):
    """A cluster of the test's own, with a recorder."""
    with Services(cluster, tmp_path, names=("recorder",)) as services:
        yield services


@pytest.fixture
def services(cluster, tmp_path):
    """All services of a cluster of the test's own."""
    with Services(msgspec.structs.replace(cluster, embedder=EMBEDDER), tmp_path) as services:
        yield services


async def test_switched_over_while_agents_write(services, store, tmp_path):
    """Every agent is the same in the new generation; nothing acknowledged is lost or doubled."""
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


async def test_a_killed_replay_goes_on_where_it_was(recorder):
    """SIGKILL in the middle: the next one begins near there, and what it builds is the same."""
    cluster = recorder.cluster
    async with producing(cluster) as producer:
        for number in range(12):
            await producer.events(f"a/{number}", 800)
    await all_recorded(cluster, 9600)
    process = await command(cluster, "replay", "--no-switch")
    async with engines_of(cluster) as (engines, _):

        async def under_way():
            return sum((await engines.catalog.progress(2)).values()) > 500

        await until(under_way)
        process.send_signal(signal.SIGKILL)
        await process.communicate()
        noted = sum((await engines.catalog.progress(2)).values())
    assert noted < 9600, "it was through before it was killed"
    [outcome] = await replayed(cluster)
    assert (outcome["generation"], outcome["resumed"], outcome["switched"]) == (2, True, True)
    assert outcome["events"] <= 9600 - noted
    assert (outcome["agents"], outcome["recorded"], outcome["different"]) == (12, 9600, 0)


async def test_from_the_archive_when_kafka_has_deleted_the_head(recorder):
    """The archive first, then the topic: the same as before. What is in neither is named."""
    cluster = recorder.cluster
    async with producing(cluster) as producer:
        await asyncio.gather(*(producer.events(f"a/{number}", 50) for number in range(12)))
        await all_recorded(cluster, 600)
        await archived(cluster)
        await asyncio.gather(*(producer.events(f"a/{number}", 50) for number in range(12)))
        await all_recorded(cluster, 1200)
    ends = {p: end for p, end in (await committed(cluster)).items() if end > 40}
    for partition, end in ends.items():
        # Some of what is deleted is in the archive alone, some of the rest in both.
        await delete_before(cluster, partition, end // 2 - 10)
    outcome = await replay_here(cluster)
    assert (outcome.events, outcome.recorded, outcome.different) == (1200, 1200, 0)
    assert outcome.switched
    for partition, end in ends.items():
        await delete_before(cluster, partition, end // 2 + 1)
    with pytest.raises(NotFound, match=r"offsets \d+ to \d+ of partition"):
        await replay_here(cluster)


async def test_forks_wait_for_their_parents(recorder):
    """A fork is built after its parent's events, whatever partition is replayed first."""
    cluster = recorder.cluster
    agents = [f"a/{number}" for number in range(40)]
    by_partition = {}
    for agent in agents:
        partition = wire.partition_of(wire.key_of("default", agent), cluster.partitions)
        by_partition.setdefault(partition, []).append(agent)
    parent = by_partition[0][0]
    fork, second = by_partition[1][0], by_partition[2][0]
    async with producing(cluster) as producer:
        # The parent's partition is long, the fork's is short.
        await producer.events(by_partition[0][1], 1000)
        named = [await producer.event(parent, data={"n": n}, id=f"id-{n}") for n in range(5)]
        await all_recorded(cluster, 1005)
        chain = await chain_of(cluster, parent, 4)
        await producer.fork(fork, parent, 4, chain)
        async with following(cluster) as verdicts:
            # What the parent had by then is known to the fork by its id; what came later is not.
            sent = [await producer.event(fork, data={"n": n}, id=f"id-{n}") for n in (2, 4)]
            entries = await decided(verdicts, set(sent), 60)
        known, new = (entries[each].answers()[0] for each in sent)
        assert (known.subject, known.sequence) == (parent, 3)
        assert (new.subject, new.sequence) == (fork, 6)
        chain = await chain_of(cluster, fork, 5)
        await producer.fork(second, fork, 5, chain)
        await producer.event(second, data={"n": 0}, id="id-0")
        await all_recorded(cluster, 1010)
    assert len(named) == 5
    outcome = await replay_here(cluster)
    assert (outcome.different, outcome.switched) == (0, True)


async def test_what_is_not_the_same_is_not_switched_to(recorder):
    """An agent whose live rows were changed is named; with --force the log is gone over to."""
    cluster = recorder.cluster
    async with producing(cluster) as producer:
        await asyncio.gather(*(producer.events(f"a/{number}", 20) for number in range(6)))
    await all_recorded(cluster, 120)
    async with engines_of(cluster) as (engines, _):
        await engines.session.execute(
            f"UPDATE {cluster.keyspace(1)}.events SET chain = 0x{'00' * 32}"
            " WHERE store = 'default' AND agent = 'a/3' AND bucket = 0"
        )
        await engines.session.execute(
            f"DELETE FROM {cluster.keyspace(1)}.events"
            " WHERE store = 'default' AND agent = 'a/4' AND bucket = 0"
        )
    [outcome] = await replayed(cluster, status=1)
    assert [each["agent"] for each in outcome["differences"]] == ["a/3", "a/4"]
    assert not outcome["switched"]
    assert set((await placement(cluster)).values()) == {1}
    [outcome] = await replayed(cluster, "--force", status=1)
    assert (outcome["resumed"], outcome["switched"]) == (True, True)
    [outcome] = await replayed(cluster)
    assert (outcome["generation"], outcome["different"]) == (3, 0)


async def test_one_agent_is_compared_event_by_event(recorder):
    """A changed row in the middle, that the head doesn't tell of, is found; nothing is changed."""
    cluster = recorder.cluster
    async with producing(cluster) as producer:
        await producer.events("a/parent", 6)
        await producer.event("a/parent", store="lab")
        await all_recorded(cluster, 7)
        await producer.fork("b/fork", "a/parent", 4, await chain_of(cluster, "a/parent", 4))
        await producer.events("b/fork", 3)
        await all_recorded(cluster, 11)
    for agent, sequence in (("a/parent", 6), ("b/fork", 8), ("lab/a/parent", 1)):
        [found] = await replayed(cluster, "--agent", agent)
        assert (found["sequence"], found.get("problems")) == (sequence, None)
    async with engines_of(cluster) as (engines, _):
        await engines.session.execute(
            f"UPDATE {cluster.keyspace(1)}.events SET event = 0x7b7d WHERE store = 'default'"
            " AND agent = 'b/fork' AND bucket = 0 AND sequence = 6"
        )
    [found] = await replayed(cluster, "--agent", "b/fork", status=1)
    assert any("b/fork@6" in problem for problem in found["problems"])
    async with engines_of(cluster) as (engines, _):
        states = {each.number: each.state for each in await engines.catalog.generations()}
    assert states.pop(1) == "live"
    assert set(states.values()) == {"dropped"}
    process = await command(cluster, "replay", "--agent", "nobody/here")
    _, told = await process.communicate()
    assert b"nothing of agent nobody/here" in told


async def test_up_to_a_time(cluster, tmp_path):
    """What was in the log before a time can be looked at with a gateway of its own."""
    with Services(cluster, tmp_path, names=("recorder",)):
        async with producing(cluster) as producer:
            await producer.events("a/one", 5)
            await producer.event("a/two")
            await all_recorded(cluster, 6)
            until_now = dt.datetime.now(dt.UTC)
            await asyncio.sleep(0.01)  # a record's time is in milliseconds
            await producer.events("a/one", 5)
            await producer.event("a/three")
            await all_recorded(cluster, 12)
        at = until_now.isoformat()
        [outcome] = await replayed(cluster, "--until", at)
        assert (outcome["generation"], outcome["agents"], outcome["recorded"]) == (2, 2, 6)
        [found] = await replayed(cluster, "--agent", "a/one", "--until", at)
        assert (found["sequence"], found["state"]["sequence"]) == (5, 5)
        # It never becomes live, and a replay of everything begins one of its own.
        outcome = await replay_here(cluster)
        assert (outcome.generation, outcome.switched) == (4, True)
    looking = msgspec.structs.replace(cluster, generation=2)
    (tmp_path / "look").mkdir()
    with Services(looking, tmp_path / "look", names=("gateway",)) as services:
        async with perdure.connect(services.url("default")) as store:
            listed = {each.agent: each.sequence async for each in store.agents()}
            assert listed == {"a/one": 5, "a/two": 1}
            assert (await store.view("a/one").state_at()).sequence == 5
    rows = {row["generation"]: row["state"] for row in await replayed(cluster, "--list")}
    assert rows == {1: "live", 2: "past", 4: "live"}


async def test_a_switch_that_nobody_prepared_takes_no_effect(recorder):
    """To a generation that is not caught up, or is none, nothing is switched; agents go on."""
    cluster = recorder.cluster
    async with producing(cluster) as producer, following(cluster) as verdicts:
        await producer.events("a/b", 5)
        [outcome] = await replayed(cluster, "--no-switch")
        assert (outcome["generation"], outcome["switched"]) == (2, False)
        wanted = set()
        for generation in (2, 7):
            value, headers = switching.encode(generation, id="x", time="2026-01-01T00:00:00Z")
            wanted.add(await producer.send(value, headers=headers, partition=3))
        wanted.add(await producer.event("a/b"))
        entries = await decided(verdicts, wanted, 120)
        assert sorted(entry.outcome for entry in entries.values()) == [
            "recorded", "refused", "refused",
        ]  # fmt: skip
    assert set((await placement(cluster)).values()) == {1}
    # What was refused is passed over by the replay that goes on.
    outcome = await replay_here(cluster)
    assert (outcome.generation, outcome.resumed, outcome.switched) == (2, True, True)


async def test_without_a_recorder_nothing_is_switched_yet(recorder, monkeypatch):
    """A replay says that nobody comes to the switch; who starts later switches, losing nothing."""
    monkeypatch.setattr("perdure.replay.switch.IDLE_LOOKS", 1)
    cluster = recorder.cluster
    async with producing(cluster) as producer:
        await producer.events("a/b", 5)
        await all_recorded(cluster, 5)
        assert recorder["recorder"].stop() == 0
        with pytest.raises(Unreachable, match="the recorder"):
            await replay_here(cluster)
        await producer.event("a/b", data={"number": 5})
    assert set((await placement(cluster)).values()) == {1}
    recorder["recorder"].start().wait_ready()

    async def switched():
        return set((await placement(cluster)).values()) == {2}

    await until(switched)
    await all_recorded(cluster, 6 + cluster.partitions)
    assert len(await chain_of(cluster, "a/b", 6)) == 32
    outcome = await replay_here(cluster)
    assert (outcome.generation, outcome.different, outcome.recorded) == (3, 0, 6)
