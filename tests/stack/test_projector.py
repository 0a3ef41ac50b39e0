"""The projector on the real engines: every agent that moved is told, and states are answered."""

import asyncio
import contextlib
import json
import signal

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

import perdure
from perdure.projector.publishing import STATE_BYTES_MAX

LONG = 60.0


@pytest.fixture
def services(shared_services):
    """The services that all tests share: each has a store of its own."""
    return shared_services


@contextlib.asynccontextmanager
async def told(cluster):
    """Reads `perdure.state`: the newest record of each key, waiting for what has to come."""
    consumer = AIOKafkaConsumer(
        cluster.topic("state"),
        bootstrap_servers=cluster.kafka,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=9_000_000,
    )
    await consumer.start()
    newest = {}

    async def until(key, sequence):
        async with asyncio.timeout(LONG):
            while newest.get(key, {"sequence": -1})["sequence"] < sequence:
                message = await consumer.getone()
                newest[message.key.decode()] = json.loads(message.value)
        return newest[key]

    try:
        yield until
    finally:
        await consumer.stop()


def state_of(services, service, store, agent, **parameters):
    """The state that a service answers with."""
    url = f"{services[service].url}/v1/stores/{store}/agents/{agent}/state"
    answer = httpx.get(url, params=parameters, timeout=LONG)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()


async def test_the_newest_state_of_each_agent_is_published(services, store):
    """Keyed like its events; a large one is told by where it is."""
    async with told(services.cluster) as until, perdure.connect(services.url(store)) as crew:
        mia, ben = await crew.agent("airline/mia"), await crew.agent("airline/ben")
        for number in range(20):
            await mia.emit("decision.made", {"choice": "refund", "n": number})
        await ben.emit("decision.made", {"text": "x" * (STATE_BYTES_MAX + 1)})
        small = await until(f"{store}/airline/mia", 20)
        assert [each["n"] for each in small["state"]["decisions"]] == list(range(20))
        assert (small["store"], small["agent"]) == (store, "airline/mia")
        large = await until(f"{store}/airline/ben", 1)
        assert "state" not in large
        url = services["projector"].url + large["location"]
        answer = (await asyncio.to_thread(httpx.get, url, timeout=LONG)).json()
        assert answer["sequence"] == 1
        assert len(answer["state"]["decisions"]) == 1


async def test_both_services_answer_with_the_state_that_folding_gives(services, store):
    """At any point, hot or cold, after undo, and including what was just written."""
    async with perdure.connect(services.url(store)) as crew:
        mia = await crew.agent("airline/mia")
        for number in range(30):
            event = await mia.emit("decision.made", {"n": number})
        for service in ("projector", "gateway"):
            answer = state_of(services, service, store, "airline/mia", at_least=event.position)
            assert [each["n"] for each in answer["state"]["decisions"]] == list(range(30))
            past = state_of(services, service, store, "airline/mia", seq=7)
            assert [each["n"] for each in past["state"]["decisions"]] == list(range(7))
        await mia.revert(to=5)
        event = await mia.emit("decision.made", {"n": 99})
        for service in ("projector", "gateway"):
            answer = state_of(services, service, store, "airline/mia", fresh=True)
            assert [each["n"] for each in answer["state"]["decisions"]] == [0, 1, 2, 3, 4, 99]


async def test_a_projector_that_is_killed_leaves_no_agent_untold(services, store):
    """What it had not published yet, the next one does."""
    agents = [f"airline/a{number}" for number in range(20)]
    async with told(services.cluster) as until, perdure.connect(services.url(store)) as crew:
        projector = services["projector"]
        for round_ in range(3):
            for agent in agents:
                await crew.emit(agent, "note", round_)
            projector.kill(signal.SIGKILL)
            projector.start().wait_ready()
        for agent in agents:
            record = await until(f"{store}/{agent}", 3)
            assert record["sequence"] == 3


async def test_a_projector_keeps_up_and_says_so(services, store):
    """Its metrics count what it did, and its lag falls to zero."""
    async with told(services.cluster) as until, perdure.connect(services.url(store)) as crew:
        mia = await crew.agent("airline/mia")
        await asyncio.gather(*(mia.emit("note", number) for number in range(2_000)))
        await until(f"{store}/airline/mia", 2_000)
    metrics = services["projector"].metrics()
    assert metrics["perdure_projector_published_total"] >= 1
    assert metrics["perdure_projector_failures_total"] == 0
    lags = [value for name, value in metrics.items() if name.startswith("perdure_projector_lag{")]
    assert sum(lags) == 0


def test_a_projector_ends_cleanly(services):
    """A signal ends it with 0, and another one takes over."""
    assert services["projector"].stop() == 0
    services["projector"].start().wait_ready()
