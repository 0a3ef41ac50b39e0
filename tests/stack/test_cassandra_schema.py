"""The keyspaces: made once, by whoever comes first; what they were made with is checked."""

import asyncio

import pytest
from ops.write_schemas import FOLDER
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay
from tests.stack.cassandra_tables import note, place_of

from perdure.cassandra import schema
from perdure.cassandra.catalog import Catalog
from perdure.cassandra.placement import LiveGenerations
from perdure.cassandra.session import Session
from perdure.cassandra.tables import STATEMENTS, Tables
from perdure.errors import (
    Incompatible,
    InvalidInput,
    NotFound,
    Refused,
    Unreachable,
    UnsupportedFormat,
)
from perdure.settings import Cluster


@pytest.fixture
async def session(cluster):
    """A connection of the test's own, to a cluster that nobody has used."""
    session = await Session.connect(cluster)
    yield session
    await session.close()


async def test_many_may_start_at_once(cluster):
    """Processes that start together on nothing all find the same tables, usable by each."""

    async def start():
        session = await Session.connect(cluster)
        try:
            await Catalog.open(session, cluster)
            tables = await Tables.prepare(session, cluster.keyspace(1))
            return len(await session.execute(tables.namespaces, ("s", "", 1)))
        finally:
            await session.close()

    assert await asyncio.gather(*(start() for _ in range(4))) == [0] * 4


async def test_the_written_schema_is_what_is_made(session, cluster):
    """Cassandra holds the tables and columns that `schemas/cassandra.cql` says."""
    await Catalog.open(session, cluster)
    for keyspace, tables in (
        (cluster.name, schema.CONTROL),
        (cluster.keyspace(1), schema.GENERATION),
    ):
        rows = await session.execute(
            "SELECT table_name, column_name, type, kind FROM system_schema.columns"
            f" WHERE keyspace_name = '{keyspace}'"
        )
        assert len({row[0] for row in rows}) == len(tables)
        written = (FOLDER / "cassandra.cql").read_text()
        for table, column, kind, place in rows:
            [text] = [
                part
                for part in written.split("CREATE ")
                if part.startswith("TABLE") and f".{table} (" in part.partition("\n")[0]
            ]
            static = " static" if place == "static" else ""
            assert f"\n    {column} {kind}{static}" in text
        compression = await session.execute(
            "SELECT table_name, compression FROM system_schema.tables"
            f" WHERE keyspace_name = '{cluster.keyspace(1)}'"
        )
        for table, options in compression:
            expected = "ZstdCompressor" if table != "state_pieces" else "false"
            assert expected in str(options), table


async def test_tables_of_a_newer_version_are_refused(session, cluster):
    """A newer format of the control tables or of a generation's stops the start, with a way out."""
    catalog = await Catalog.open(session, cluster)
    newer = schema.FORMAT + 1
    await session.execute(
        f"UPDATE {cluster.name}.format SET version = {newer} WHERE part = 'control'"
    )
    with pytest.raises(UnsupportedFormat, match=rf"format {newer}.*upgrade"):
        await Catalog.open(session, cluster)
    await session.execute(
        f"UPDATE {cluster.name}.format SET version = {schema.FORMAT} WHERE part = 'control'"
    )
    await session.execute(
        f"UPDATE {cluster.name}.generations SET format = {newer} WHERE generation = 1"
    )
    with pytest.raises(UnsupportedFormat, match="generation 1"):
        await Catalog.open(session, cluster)
    with pytest.raises(UnsupportedFormat):
        await catalog.generations()


async def test_another_number_of_partitions_is_refused(session, cluster):
    """A topic of another number of partitions than the log was made with is told, with a hint."""
    catalog = await Catalog.open(session, cluster)
    assert await catalog.checked_topics(4) == 1
    assert await catalog.checked_topics(4) == 1
    with pytest.raises(Incompatible, match=r"6 partitions.*made with 4.*partitions = 4"):
        await catalog.checked_topics(6)
    assert await catalog.checked_topics(4) == 1


async def test_generations_are_built_switched_and_dropped(session, cluster):
    """A generation is built beside the live one, taken over partition by partition, and dropped."""
    catalog = await Catalog.open(session, cluster)
    assert [(each.number, each.state) for each in await catalog.generations()] == [(1, "live")]
    built = await catalog.build()
    assert (built.number, built.state) == (2, "building")
    assert await catalog.placement() == dict.fromkeys(range(4), 1)
    live = await LiveGenerations.open(session, cluster, catalog, lambda _, agent: int(agent[-1]))
    assert [tables.keyspace for tables in live.all()] == [cluster.keyspace(1)]
    for partition in range(3):
        assert await catalog.decide(partition, 7, 2) == (2, 7)
    assert (await catalog.generation(2)).state == "live"
    assert await live.refresh() == {0: 2, 1: 2, 2: 2, 3: 1}
    assert live.of("s", "n/a2").keyspace == cluster.keyspace(2)
    assert live.of("s", "n/a3").keyspace == live.of_partition(3).keyspace == cluster.keyspace(1)
    assert len(live.all()) == 2
    with pytest.raises(InvalidInput, match=r"\[3\]"):
        await catalog.drop(1)
    await catalog.decide(3, 9, 2)
    await catalog.drop(1)
    await live.refresh()
    assert [tables.keyspace for tables in live.all()] == [cluster.keyspace(2)]
    assert [(each.number, each.state) for each in await catalog.generations()] == [
        (1, "dropped"),
        (2, "live"),
    ]
    rows = await session.execute("SELECT keyspace_name FROM system_schema.keyspaces")
    assert (cluster.keyspace(1),) not in rows
    with pytest.raises(Incompatible, match="dropped"):
        await live.switch(3, 11, 1)
    with pytest.raises(NotFound, match="no generation 5"):
        await live.switch(3, 13, 5)
    assert await catalog.placed(3) == (2, 13)
    with pytest.raises(NotFound):
        await catalog.drop(9)
    again = await Catalog.open(session, cluster)
    assert await again.placement() == dict.fromkeys(range(4), 2)
    assert (await again.build()).number == 3


async def test_a_switch_is_decided_once_in_the_order_of_the_log(session, cluster):
    """Who comes to a record late, or again, finds what was decided there and changes nothing."""
    catalog = await Catalog.open(session, cluster)
    assert [(await catalog.build()).number for _ in range(2)] == [2, 3]
    assert await catalog.placed(0) == (1, -1)
    # Refused once, it is refused, even if it could be done by now.
    assert await catalog.decide(0, 5, None) == (1, 5)
    assert await catalog.decide(0, 5, 2) == (1, 5)
    assert await catalog.decide(0, 8, 2) == (2, 8)
    assert await catalog.decide(0, 8, None) == (2, 8)
    assert await catalog.decide(0, 12, 3) == (3, 12)
    # A recorder that begins before both comes to the first one again: it is not gone back.
    assert await catalog.decide(0, 8, 2) == (3, 12)
    outcomes = await asyncio.gather(
        *(catalog.decide(1, 4, 2 if number % 2 else None) for number in range(8))
    )
    assert len(set(outcomes)) == 1
    assert outcomes[0] in {(1, 4), (2, 4)}
    # One that is held up after it has looked finds that it is too late.
    held = Held(session, cluster)
    late = asyncio.ensure_future(held.decide(2, 8, 2))
    await held.looked.wait()
    assert await catalog.decide(2, 8, 2) == (2, 8)
    assert await catalog.decide(2, 12, 3) == (3, 12)
    held.goes_on.set()
    assert await late == await catalog.placed(2) == (3, 12)
    with pytest.raises(NotFound):
        await catalog.placed(77)


class Held(Catalog):
    """A catalog of a process that is held up after it has looked where a partition is."""

    looked, goes_on = asyncio.Event(), asyncio.Event()

    async def placed(self, partition):  # noqa: D102 - the catalog's
        found = await super().placed(partition)
        self.looked.set()
        await self.goes_on.wait()
        return found


async def test_recorders_that_come_to_switches_late_change_nothing(session, cluster):
    """Whatever they found before: one that was held up before two switches goes on behind both."""
    catalog = await Catalog.open(session, cluster)
    for number in (2, 3):
        await catalog.build()
        await catalog.note_progress(number, 0, 100)
    owner, late = [
        await LiveGenerations.open(session, cluster, catalog, lambda *_: 0) for _ in range(2)
    ]
    await owner.switch(0, 10, 2)
    with pytest.raises(NotFound):
        await owner.switch(0, 15, 9)
    await owner.switch(0, 20, 3)
    await catalog.drop(2)
    for position, number in ((10, 2), (15, 9), (20, 3)):
        assert late.of_partition(0).keyspace == cluster.keyspace(1 if position == 10 else 3)
        await late.switch(0, position, number)
        assert late.of_partition(0).keyspace == cluster.keyspace(3)
    assert await catalog.placed(0) == (3, 20)
    assert [each.state for each in await catalog.generations()] == ["live", "dropped", "live"]
    # Again, and as long as nothing came after it: what was told the first time.
    with pytest.raises(NotFound):
        await owner.switch(0, 25, 9)
    with pytest.raises(Refused, match="0:25 was refused"):
        await late.switch(0, 25, 9)


async def test_a_switch_to_what_is_not_caught_up_is_refused_for_good(session, cluster, monkeypatch):
    """After a while; until then it is asked for again. Nobody decides it otherwise later."""
    monkeypatch.setattr("perdure.cassandra.placement.TOLD_SECONDS", 0.05)
    monkeypatch.setattr("perdure.cassandra.placement.SWITCH_SECONDS", 0.5)
    catalog = await Catalog.open(session, cluster)
    await catalog.build()
    live, other = [
        await LiveGenerations.open(session, cluster, catalog, lambda *_: 0) for _ in range(2)
    ]
    await catalog.note_progress(2, 0, 10)
    with pytest.raises(Unreachable, match="lacks records before 0:10 yet"):
        await live.switch(0, 10, 2)
    assert await catalog.placed(0) == (1, -1)
    with pytest.raises(Refused, match="after"):
        await retried(lambda: live.switch(0, 10, 2))
    await catalog.note_progress(2, 0, 11)
    for each in (live, other):
        with pytest.raises(Refused, match="0:10"):
            await each.switch(0, 10, 2)
    assert await catalog.placed(0) == (1, 10)


async def retried(call):
    """A call, made again for as long as it can't be served."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unreachable), stop=stop_after_delay(30), reraise=True
    ):
        with attempt:
            await call()


async def test_tables_from_before_switches_had_positions_are_mended(session, cluster):
    """The column is added at the next start, and what is decided from then on is decided once."""
    catalog = await Catalog.open(session, cluster)
    await catalog.build()
    await session.run_schema([f"ALTER TABLE {cluster.name}.partitions DROP position"])
    again, and_again = await asyncio.gather(*(Catalog.open(session, cluster) for _ in range(2)))
    assert await again.placed(1) == (1, -1)
    assert await again.decide(1, 3, 2) == (2, 3)
    assert await and_again.decide(1, 3, None) == (2, 3)


async def test_what_is_written_survives_a_new_start(cluster, store):
    """Opening a cluster again finds what was recorded, and changes nothing."""
    async with place_of(cluster, store) as place:
        stream = await place.record("a/b", note(1))
    async with place_of(cluster, store) as place:
        assert await place.load("a/b") == stream


def test_statements_are_all_prepared():
    """Each statement has its field, in the same order."""
    assert ["keyspace", *STATEMENTS, "known"] == list(Tables.__dataclass_fields__)


def test_a_name_that_can_name_no_keyspace_is_refused():
    """A cluster's name is told to be unfit before anything is made of it."""
    for name in ("Perdure", "a-b", "1a", "", "x" * 41, 'a"; DROP'):
        with pytest.raises(InvalidInput, match="can't name tables"):
            schema.control_keyspace(Cluster(name=name))
