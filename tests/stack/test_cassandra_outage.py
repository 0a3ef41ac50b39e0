"""Cassandra goes away and comes back: what was acknowledged is there, and the connection heals."""

import signal

import msgspec
import pytest
import tenacity
from ops.stack import Ports, Stack
from tests.stack.cassandra_tables import note, place_of
from tests.stack.fixtures import RUNNING, at, what_is_missing

from perdure.cassandra import session
from perdure.errors import PerdureError, Unreachable

AGENT = "airline/mia"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(what_is_missing()) and not RUNNING, reason="needs a Cassandra of its own"
    ),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory, engines):
    """A Cassandra that these tests may stop."""
    stack = Stack(tmp_path_factory.mktemp("stack"), ports=Ports.free())
    stack.up("cassandra")
    yield stack
    stack.wipe()


async def healed(act):
    """What `act` gives, as soon as Cassandra answers again."""
    waiting = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: getattr(error, "retriable", False)),
        wait=tenacity.wait_fixed(0.2),
        stop=tenacity.stop_after_delay(60),
        reraise=True,
    )

    async def attempt():
        return await act()

    return await waiting(attempt)


async def test_a_killed_node_loses_nothing_and_is_found_again(stack, store, monkeypatch):
    """Requests fail as retriable while the node is dead; after its start the same session works."""
    monkeypatch.setattr(session, "TIMEOUT", 2.0)
    cluster = msgspec.structs.replace(at(stack.ports), name="outage")
    async with place_of(cluster, store) as place:
        stream = await place.record(AGENT, note(1))
        stack.kill("cassandra-1")
        with pytest.raises(Unreachable) as caught:
            await place.load(AGENT)
        assert caught.value.retriable
        with pytest.raises(Unreachable):
            await place.record(AGENT, note(2), stream=stream)
        stack.start("cassandra-1")
        assert await healed(lambda: place.load(AGENT)) == stream
        # Statements were prepared by a node that has forgotten them.
        after = await healed(lambda: place.record(AGENT, note(2), stream=stream))
        assert await place.load(AGENT) == after


async def test_a_node_that_hangs_is_told_in_time(stack, store, monkeypatch):
    """A suspended node makes requests fail after the time limit; then both go on."""
    monkeypatch.setattr(session, "TIMEOUT", 2.0)
    cluster = msgspec.structs.replace(at(stack.ports), name="outage")
    async with place_of(cluster, store) as place:
        stream = await place.record(AGENT, note(1))
        stack.kill("cassandra-1", signal.SIGSTOP)
        try:
            with pytest.raises(PerdureError) as caught:
                await place.record(AGENT, note(2), stream=stream)
        finally:
            stack.kill("cassandra-1", signal.SIGCONT)
        assert caught.value.retriable
        # The write may have taken place meanwhile; the same one again is harmless.
        place.position = 0
        after = await healed(lambda: place.record(AGENT, note(2), stream=stream))
        place.position = 1
        assert (await place.load(AGENT)).head == after.head
