"""The connection to Cassandra: requests are awaited, bounded, and fail as errors of perdure."""

import asyncio
import gc
import random
import threading

import msgspec
import pytest
from ops.stack import Ports

from perdure.cassandra.session import REQUESTS_MAX, Batch, Session
from perdure.errors import Incompatible, StoreClosed, Unreachable


@pytest.fixture
async def session(shared_cluster):
    """A connection of the test's own."""
    session = await Session.connect(shared_cluster)
    yield session
    await session.close()


@pytest.fixture
async def table(session, shared_cluster, store):
    """A table of the test's own in a keyspace that goes with the cluster."""
    keyspace = f"{shared_cluster.name}_g0"
    await session.run_schema(
        [
            f"""CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication =
                {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}}""",
            f"""CREATE TABLE {keyspace}.{store}
                (part text, number bigint, body blob, PRIMARY KEY (part, number))""",
        ]
    )
    return f"{keyspace}.{store}"


async def test_what_is_written_is_read(session, table):
    """A row that was acknowledged is there for the next request."""
    write = await session.prepare(f"INSERT INTO {table} (part, number, body) VALUES (?, ?, ?)")
    read = await session.prepare(f"SELECT number, body FROM {table} WHERE part = ?")
    await session.execute(write, ("a", 1, b"one"))
    assert await session.execute(read, ("a",)) == [(1, b"one")]
    assert await session.execute(read, ("b",)) == []


async def test_columns_that_a_table_got_later_are_read(session, table):
    """What a statement was prepared to give is not what is read once its table was changed."""
    write = await session.prepare(f"INSERT INTO {table} (part, number, body) VALUES (?, ?, ?)")
    read = await session.prepare(f"SELECT * FROM {table} WHERE part = ?")
    await session.execute(write, ("a", 1, b"one"))
    assert await session.execute(read, ("a",)) == [("a", 1, b"one")]
    await session.run_schema([f"ALTER TABLE {table} ADD also text"])
    await session.execute(f"UPDATE {table} SET also = 'x' WHERE part = 'a' AND number = 1")
    found = await session.execute(read, ("a",))
    assert sorted(map(str, found[0])) == sorted(["a", "1", "x", str(b"one")])


async def test_an_answered_request_leaves_nothing_behind(session, table):
    """Requests and rows are free as soon as they are answered, not when garbage is looked for."""
    write = await session.prepare(f"INSERT INTO {table} (part, number, body) VALUES (?, ?, ?)")
    read = await session.prepare(f"SELECT number, body FROM {table} WHERE part = ?")
    await session.execute(write, ("a", 1, bytes(1000)))
    await session.execute(read, ("a",))
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            await session.execute(read, ("a",))
        # The driver's own thread leaves a few things, from time to time.
        assert gc.collect() < 100
    finally:
        gc.enable()


async def test_more_requests_than_may_be_under_way(session, table):
    """Requests beyond the bound wait their turn, and each gets its own answer."""
    write = await session.prepare(f"INSERT INTO {table} (part, number) VALUES (?, ?)")
    read = await session.prepare(f"SELECT number FROM {table} WHERE part = ?")
    count = REQUESTS_MAX * 3
    await session.execute_many([(write, (str(n), n)) for n in range(count)], at_once=count)
    found = await session.execute_many([(read, (str(n),)) for n in range(count)], at_once=count)
    assert found == [[(n,)] for n in range(count)]


async def test_batches_beyond_what_a_socket_takes(session, table):
    """Forty batches of half a megabyte sent at once all arrive."""
    write = await session.prepare(f"INSERT INTO {table} (part, number, body) VALUES (?, ?, ?)")
    body = random.Random(1).randbytes(500_000)  # nothing that compression makes small

    async def send(number: int) -> None:
        part = str(number).encode()
        batch = Batch(table.partition(".")[0], [part])
        batch.add(write, part, number.to_bytes(8, "big"), body)
        batch.weigh(len(body))
        await session.execute(batch)

    await asyncio.gather(*(send(number) for number in range(40)))
    read = await session.prepare(f"SELECT body FROM {table} WHERE part = ?")
    found = await session.execute_many([(read, (str(n),)) for n in range(40)])
    assert found == [[(body,)]] * 40


async def test_a_full_socket_is_waited_for(session, table):
    """While the driver refuses requests because its sockets are full, they wait, and go through."""
    write = await session.prepare(f"INSERT INTO {table} (part, number) VALUES ('a', ?)")
    connections = [pool._connection for pool in session._session.get_pools()]

    def fill(writable):
        for connection in connections:
            connection._socket_writable = writable

    fill(writable=False)
    asyncio.get_running_loop().call_later(0.1, fill, True)
    await session.execute_many([(write, (number,)) for number in range(20)])
    assert len(await session.execute(f"SELECT number FROM {table}")) == 20


async def test_pages_hold_every_row_once_and_in_order(session, table):
    """Rows come in pages of the asked size, none missing, whether the last page is full or not."""
    write = await session.prepare(f"INSERT INTO {table} (part, number) VALUES ('a', ?)")
    read = await session.prepare(f"SELECT number FROM {table} WHERE part = 'a'")
    await session.execute_many([(write, (n,)) for n in range(100)])
    for size in (1, 7, 50, 1000):
        pages = [page async for page in session.pages(read, (), rows=size)]
        assert [row for page in pages for row in page] == [(n,) for n in range(100)]
        assert all(len(page) <= size for page in pages)


async def test_leaving_pages_early_is_harmless(session, table):
    """Whoever stops reading leaves nothing behind that disturbs the next request."""
    write = await session.prepare(f"INSERT INTO {table} (part, number) VALUES ('a', ?)")
    read = await session.prepare(f"SELECT number FROM {table} WHERE part = 'a'")
    await session.execute_many([(write, (n,)) for n in range(50)])
    pages = session.pages(read, (), rows=5)
    assert await anext(pages) == [(n,) for n in range(5)]
    await pages.aclose()
    assert len(await session.execute(read)) == 50


async def test_nobody_there_is_unreachable(shared_cluster):
    """Where no node listens the error says so, names the address, and is worth a retry."""
    address = f"127.0.0.1:{Ports.free().cassandra}"
    with pytest.raises(Unreachable, match=address) as caught:
        await Session.connect(msgspec.structs.replace(shared_cluster, cassandra=address))
    assert caught.value.retriable


async def test_another_data_centre_is_named(shared_cluster):
    """A data centre that the nodes don't have is named in the error."""
    elsewhere = msgspec.structs.replace(shared_cluster, datacenter="moon")
    with pytest.raises(Unreachable, match="moon"):
        await Session.connect(elsewhere)


async def test_a_request_that_makes_no_sense_is_not_retried(session):
    """A table that isn't there is told as such, not as a node that may come back."""
    with pytest.raises(Incompatible, match="nothing_of_that_name"):
        await session.execute("SELECT * FROM system.nothing_of_that_name")


async def test_too_few_nodes_for_a_majority_is_told_and_worth_a_retry(
    session, shared_cluster, store
):
    """Each node is asked once, then the error says how many were wanted and how many there are."""
    keyspace = f"{shared_cluster.name}_g9"
    replication = "{'class': 'NetworkTopologyStrategy', 'replication_factor': 3}"
    await session.run_schema(
        [
            f"CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}",
            f"CREATE TABLE {keyspace}.{store} (part text PRIMARY KEY)",
        ]
    )
    with pytest.raises(Unreachable, match=r"required_replicas': 2, 'alive_replicas': 1") as caught:
        await session.execute(f"SELECT part FROM {keyspace}.{store} WHERE part = 'a'")
    assert caught.value.retriable


async def test_closing_is_clean(shared_cluster):
    """After closing no thread of the driver is left, and a request says that it is closed."""
    before = set(threading.enumerate())
    session = await Session.connect(shared_cluster)
    await session.execute("SELECT key FROM system.local")
    await session.close()
    await session.close()
    with pytest.raises(StoreClosed):
        await session.execute("SELECT key FROM system.local")
    # Threads of `asyncio.to_thread` stay for the next call, the driver's loop for other sessions.
    theirs = ("asyncio", "event_loop")
    left = [t for t in set(threading.enumerate()) - before if not t.name.startswith(theirs)]
    for thread in left:
        await asyncio.to_thread(thread.join, 5)
    assert [thread.name for thread in left if thread.is_alive()] == []
