"""The gateway's routes and their client, over real HTTP, in front of a store on a folder."""

import asyncio
import contextlib
import datetime as dt
import socket

import aiohttp
import msgspec
import numpy as np
import pytest
from tests.conformance.places import WordsEmbedder

import perdure
from perdure import serving
from perdure.errors import (
    Corrupt,
    InvalidData,
    InvalidInput,
    InvalidName,
    NotFound,
    StoreClosed,
    Unreachable,
)
from perdure.gateway import client, patience
from perdure.gateway.app import build, gateway_routes
from perdure.gateway.connection import Connection
from perdure.gateway.service import Gateway
from perdure.gateway.sources import Sources, StoreSources
from perdure.kafka.journal import Entry, JournalRecord
from perdure.memorizer.memory import Embedded, Filter
from perdure.model.event import encode
from perdure.model.projection import Projections
from perdure.model.timeline import Span, history, timeline
from perdure.model.upcast import Upcasters
from perdure.ports import SavedState
from perdure.serving import run
from perdure.settings import Cluster

AGENT = "/v1/stores/lab/agents/airline/mia"


class Served:
    """A folder's table of events, with what a server of one has beside it."""

    def __init__(self, events):
        self._events = events
        self.cut_after = None
        self.away = 0

    def __getattr__(self, name):
        return getattr(self._events, name)

    async def agents(self, prefix, *, after=""):
        """See `gateway.sources.Events`."""
        async for page in self._events.agents(prefix):
            yield [summary for summary in page if summary.agent > after]

    async def read_stored(self, span):
        """See `gateway.sources.Events`."""
        if self.away:
            self.away -= 1
            raise Unreachable("Cassandra at 127.0.0.1:9042 does not answer")
        async for batch in self._events.read(span):
            if self.cut_after is not None and batch.events[-1].sequence > self.cut_after:
                kept = [e for e in batch.events if e.sequence <= self.cut_after]
                yield [encode(event) for event in kept]
                raise Corrupt(f"event {span.agent}@{self.cut_after + 1} is missing")
            yield [encode(event) for event in batch.events]

    async def by_type(self, agent, types, *, first, last):
        """See `gateway.sources.Events`."""
        async for batch in self._events.read(Span(agent, first, last)):
            yield batch._replace(events=[e for e in batch.events if e.type in types])

    async def chain_at(self, agent, sequence):
        """See `gateway.sources.Events`."""
        head = await self._events.head(agent)
        return head.chain if sequence == head.sequence else bytes(32)


class Objects:
    """A folder's objects, read in pieces."""

    def __init__(self, blobs):
        self._blobs = blobs
        self.size = blobs.size

    async def stream(self, digest):
        """See `gateway.sources.Objects`."""
        data = await self._blobs.get(digest)
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]


class Place:
    """A gateway that serves a store on a folder, and a client of it."""

    def __init__(self, store, gateway, port, served):
        self.store, self.gateway, self.port, self.served = store, gateway, port, served
        self.url = f"http://127.0.0.1:{port}"
        self.connection = Connection(self.url)
        self.verdicts = client.HttpVerdicts(self.connection)
        self.events = client.HttpEventTable(
            self.connection, "lab", self.verdicts, gateway.cluster.partitions
        )
        self.states = client.HttpStateTable(self.connection, "lab")
        self.memories = client.HttpMemoryIndex(self.connection, "lab")

    def tell(self, *entries, agent="airline/mia", through=-1, partition=0):
        """Have the journal tell of records."""
        record = JournalRecord("lab", agent, partition, list(entries), through=through)
        self.gateway.journal.verdicts.note(record, 100)
        self.gateway.journal.verdicts.settle()


def free_port():
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    """What fails is told soon."""
    monkeypatch.setattr(patience, "SILENT_SECONDS", 3)
    monkeypatch.setattr(patience, "AWAY_SECONDS", 3)


@pytest.fixture
async def place(tmp_path):
    """A gateway in front of a folder with one agent of three events."""
    async with perdure.connect(tmp_path, embedder=WordsEmbedder()) as store:
        backend = store._session.backend
        gateway = Gateway(Cluster(), contextlib.nullcontext, Projections(), Upcasters())
        served = Served(backend.events)
        sources = StoreSources(served, backend.states, lambda: backend.memories)
        gateway._sources = Sources(lambda _: sources, Objects(backend.blobs), None, None)
        gateway.journal.trouble = ""
        port, stop = free_port(), asyncio.Event()
        app = build(gateway, gateway_routes(gateway))
        serving = asyncio.create_task(run(app, "127.0.0.1", port, stop=stop))
        place = Place(store, gateway, port, served)
        mia = await store.agent("airline/mia")
        for number in range(3):
            await mia.emit("decision.made", {"choice": "refund", "n": number})
        yield place
        await place.verdicts.close()
        await place.connection.close()
        gateway.journal.verdicts.end()
        stop.set()
        await serving


async def test_reads_over_http_equal_reads_of_the_store(place):
    """Lineage, head, events and times of agents and forks are the same from afar."""
    near = place.store._session.backend.events
    twin = await place.store.fork("airline/mia", at=2, name="airline/twin")
    await twin.emit("note", {"text": "Zoë\n\u2028"})
    await twin.revert(to=1)
    for agent in ("airline/mia", "airline/twin"):
        lineage = await near.lineage(agent)
        assert await place.events.lineage(agent) == lineage
        assert await place.events.head(agent) == await near.head(agent)
        spans = history(lineage, lineage[0].sequence)
        for span in spans:
            far = [e async for batch in place.events.read(span) for e in batch.events]
            assert far == [e async for batch in near.read(span) for e in batch.events]
        for moment in (0, 2**60):
            assert await place.events.sequence_at(
                spans, moment, inclusive=True
            ) == await near.sequence_at(spans, moment, inclusive=True)
        assert [found async for found in place.events.verify(agent)] == [
            found async for found in near.verify(agent)
        ]
    assert [page async for page in place.events.agents("airline/t")] == [
        page async for page in near.agents("airline/t")
    ]


async def test_an_agent_that_is_not_there_is_not_found(place):
    """Each kind of read raises what the store's own would."""
    with pytest.raises(NotFound, match="airline/nobody"):
        await place.events.lineage("airline/nobody")
    with pytest.raises(NotFound, match="airline/nobody"):
        [batch async for batch in place.events.read(Span("airline/nobody", 1, 3))]
    with pytest.raises(NotFound, match="airline/nobody"):
        [found async for found in place.events.verify("airline/nobody")]


async def test_damage_in_the_middle_of_a_stream_is_told_where_it_is_read(place):
    """The events before it arrive, then the error."""
    place.served.cut_after = 2
    read = []

    async def reading():
        async for batch in place.events.read(Span("airline/mia", 1, 3)):
            read.extend(event.sequence for event in batch.events)

    with pytest.raises(Corrupt, match="airline/mia@3 is missing"):
        await reading()
    assert read == [1, 2]


async def test_many_agents_come_in_pages(place):
    """A page ends where the next one starts; together they are all of them, by name."""
    for number in range(client.AGENTS_PAGE + 10):
        await place.store.emit(f"crew/a{number:04}", "note")
    pages = [page async for page in place.events.agents("crew/")]
    names = [summary.agent for page in pages for summary in page]
    assert len(pages) == 2
    assert names == sorted(names)
    assert len(set(names)) == client.AGENTS_PAGE + 10


async def get(place, path, **parameters):
    """The lines of an answer."""
    answer = await place.connection.request("GET", AGENT + path, parameters)
    return [msgspec.json.decode(line) for line in answer.body.splitlines()]


async def test_events_are_filtered_by_sequence_type_and_time(place):
    """What is asked for comes, in order, and the end says how many that were."""
    middle = await place.store.emit("airline/mia", "tool.called", {"name": "book", "id": "c-1"})
    await place.store.emit("airline/mia", "note")

    async def sequences(**parameters):
        *events, end = await get(place, "/events", **parameters)
        assert end == {"end": len(events)}
        return [event["sequence"] for event in events]

    assert await sequences() == [1, 2, 3, 4, 5]
    assert await sequences(first=2, last=3) == [2, 3]
    assert await sequences(type="tool.*") == [4]
    assert await sequences(type="decision.made", first=2) == [2, 3]
    assert await sequences(since=middle.time.isoformat()) == [4, 5]
    assert await sequences(until=middle.time.isoformat(), type="note") == []
    assert await sequences(first=9) == []


async def test_a_state_is_answered_at_any_point(place):
    """Latest, after a sequence, at a time; with what it is of beside it."""
    [latest] = await get(place, "/state")
    assert (latest["agent"], latest["sequence"], latest["projection"]) == (
        "airline/mia",
        3,
        "state",
    )
    assert [decision["n"] for decision in latest["state"]["decisions"]] == [0, 1, 2]
    [past] = await get(place, "/state", seq=1)
    assert [decision["n"] for decision in past["state"]["decisions"]] == [0]
    [before] = await get(place, "/state", before="2020-01-01T00:00Z")
    assert before["sequence"] == 0
    [now] = await get(place, "/state", time=dt.datetime.now(dt.UTC).isoformat())
    assert now == latest
    for wrong in ({"seq": 9}, {"projection": "spent"}):
        with pytest.raises(NotFound):
            await get(place, "/state", **wrong)
    for wrong in ({"seq": 1, "time": "2020-01-01T00:00Z"}, {"time": "2020-01-01"}, {"seq": "x"}):
        with pytest.raises(InvalidInput):
            await get(place, "/state", **wrong)


async def test_a_state_waits_for_the_position_that_it_has_to_include(place):
    """An answer to `at_least` comes after the journal told of that record."""
    asked = asyncio.create_task(get(place, "/state", at_least="airline/mia@0:17"))
    await asyncio.sleep(0.1)
    assert not asked.done()
    event = await place.store.emit("airline/mia", "note")
    place.tell(Entry(17, "recorded", [msgspec.Raw(encode(event))]))
    assert (await asked)[0]["sequence"] == 4
    with pytest.raises(InvalidInput, match="not one of agent"):
        await get(place, "/state", at_least="airline/ben@0:17")


async def test_saved_states_go_there_and_back(place):
    """Bytes stay bytes; none is none; a damaged one is reported."""
    spans = timeline(await place.events.lineage("airline/mia"), 3)
    assert await place.states.nearest("state", "1", spans) is None
    saved = SavedState("airline/mia", 2, "state", "1", bytes(range(256)) * 1000)
    await place.states.save(saved)
    assert await place.states.nearest("state", "1", spans) == saved
    assert await place.states.nearest("state", "2", spans) is None
    assert await place.states.check("airline/mia") == []


async def test_objects_are_read_in_full(place):
    """With their size beforehand; what isn't there is not found."""
    blobs = client.HttpBlobs(place.connection, None)
    data = bytes(range(256)) * 10_000
    digest = "ab" * 32
    await place.store._session.backend.blobs.put(digest, data)
    assert await blobs.size(digest) == len(data)
    assert await blobs.get(digest) == data
    for read in (blobs.get, blobs.size):
        with pytest.raises(NotFound):
            await read("cd" * 32)


async def test_memories_are_searched_from_afar(place):
    """Vectors, filters, hits and ids mean the same over HTTP."""
    mia = await place.store.agent("airline/mia")
    seat = await mia.remember("prefers aisle seats", source="chat", context={"task": "t-7"})
    await mia.remember("is allergic to nuts", source="form")
    spans = timeline(await place.events.lineage("airline/mia"), 5)
    embedder = WordsEmbedder()
    pending = await place.memories.unembedded(spans, embedder.name, 10)
    assert [memory.text for memory in pending] == ["prefers aisle seats", "is allergic to nuts"]
    vectors = [
        Embedded(memory.agent, memory.sequence, embedder.embed([memory.text])) for memory in pending
    ]
    assert await place.memories.add_vectors(embedder.name, vectors) == 2
    assert await place.memories.unembedded(spans, embedder.name, 10) == []
    query = embedder.embed(["aisle seats"])[0]
    near = place.store._session.backend.memories
    for chosen in (None, Filter(source="form"), Filter(where={"context.task": "t-7"})):
        asked = (spans, "aisle seats", query, embedder.name)
        far = await place.memories.search(*asked, k=5, filter=chosen)
        assert far == await near.search(*asked, k=5, filter=chosen)
        assert far
    assert (await place.memories.get(spans, seat.id)).text == "prefers aisle seats"
    with pytest.raises(NotFound):
        await place.memories.get(spans, "nothing")
    wrong = Embedded("airline/mia", 4, np.full((1, 3), np.nan, dtype=np.float32))
    with pytest.raises(InvalidInput):
        await place.memories.add_vectors(embedder.name, [wrong])


async def test_many_writes_that_wait_share_few_questions(place):
    """A thousand verdicts that are waited for at once take a handful of requests."""
    waiting = [
        asyncio.create_task(place.verdicts.wait("lab", 0, offset, 0)) for offset in range(1000)
    ]
    await asyncio.sleep(0.2)
    assert len(place.verdicts._polls) <= client.POLLS_MAX
    for start in range(0, 1000, 100):
        place.tell(*(Entry(offset, "recorded") for offset in range(start, start + 100)))
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        entries = await asyncio.gather(*waiting)
    assert [entry.offset for entry in entries] == list(range(1000))
    assert place.verdicts._waiting == {}


async def test_a_verdict_wakes_its_writer_while_others_still_wait(place):
    """One that comes is not held up by those that don't."""
    never = asyncio.create_task(place.verdicts.wait("lab", 0, 1, 0))
    await asyncio.sleep(0.1)
    soon = asyncio.create_task(place.verdicts.wait("lab", 0, 2, 0))
    await asyncio.sleep(0.1)
    place.tell(Entry(2, "recorded"))
    async with asyncio.timeout(5):
        assert (await soon).offset == 2
    assert not never.done()
    await place.verdicts.close()
    with pytest.raises(Unreachable, match="closed before"):
        await never


async def test_a_question_that_fails_is_told_to_who_asked_it(place):
    """Whoever waits for another record goes on waiting, and learns what became of it."""
    waiting = asyncio.create_task(place.verdicts.wait("lab", 0, 1, 0))
    await asyncio.sleep(0.1)
    with pytest.raises(InvalidInput, match="no partition 99"):
        await place.verdicts.wait("lab", 99, 5, 0)
    place.tell(Entry(1, "recorded"))
    async with asyncio.timeout(5):
        assert (await waiting).offset == 1


@pytest.mark.parametrize("place_of_log", ["99:5", f"0:{2**64}"])
async def test_a_position_that_cant_be_is_no_question_beside_those_of_others(place, place_of_log):
    """It is wrong by itself: writes that begin to wait at the same time are answered."""
    waiting = asyncio.create_task(place.verdicts.wait("lab", 0, 1, 0))
    with pytest.raises(InvalidData, match="is none of the log"):
        await place.events.caught_up("airline/mia", f"airline/mia@{place_of_log}")
    place.tell(Entry(1, "recorded"))
    async with asyncio.timeout(5):
        assert (await waiting).offset == 1


async def test_a_gateway_that_fails_in_an_unknown_way_begins_again(place, monkeypatch):
    """What it opens is opened again, and it says meanwhile that it isn't ready."""
    monkeypatch.setattr(serving, "PAUSE_SECONDS_MIN", 0.05)
    found, failed = place.gateway._sources, asyncio.Event()

    async def refresh():
        if not failed.is_set():
            failed.set()
            raise ValueError("unheard of")

    @contextlib.asynccontextmanager
    async def connect(_):
        yield Sources(found.of, found.objects, found.manifest, refresh)

    # Kafka is away, which is told in another place.
    cluster = Cluster(kafka=f"127.0.0.1:{free_port()}")
    gateway = Gateway(cluster, connect, Projections(), Upcasters())
    async with gateway.running(), asyncio.timeout(20):
        await failed.wait()
        with pytest.raises(Unreachable, match="is starting"):
            gateway.of("lab")
        while True:
            with contextlib.suppress(Unreachable):
                assert gateway.of("lab") is found.of("lab")
                break
            await asyncio.sleep(0.01)


async def test_changes_of_the_store_are_waited_for(place):
    """The first wait ends at once, the next one with the next record of this store."""
    await place.events.changed(place.events.version())
    version = place.events.version()
    waiting = asyncio.create_task(place.events.changed(version))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    place.tell(Entry(3, "recorded"))
    async with asyncio.timeout(5):
        await waiting
    assert place.events.version() != version


async def test_live_events_start_where_the_reader_is_and_go_on(place):
    """What is in the table comes first, then what is recorded; nothing twice, nothing left out."""
    url = f"{place.url}{AGENT}/events/live"
    async with aiohttp.ClientSession() as session, session.get(url, params={"after": 1}) as stream:
        seen = []

        async def until(last):
            while not seen or seen[-1] < last:
                line = await stream.content.readline()
                if line.startswith(b"id: "):
                    seen.append(int(line[4:]))

        async with asyncio.timeout(10):
            await until(3)
            one = await place.store.emit("airline/mia", "note", 1)
            place.tell(Entry(4, "recorded", [msgspec.Raw(encode(one))]))
            await until(4)
            await place.store.emit(
                "airline/mia", "note", 2
            )  # Of which the journal's record is lost.
            three = await place.store.emit("airline/mia", "note", 3)
            place.tell(Entry(6, "recorded", [msgspec.Raw(encode(three))]))
            await until(6)
    assert seen == [2, 3, 4, 5, 6]


async def test_what_is_not_understood_is_told_in_the_same_form(place):
    """A wrong path, name or parameter is an error with a class, and never a trace."""
    for path, kind in (
        ("/v1/nothing", NotFound),
        ("/v1/stores/NO STORE/agents".replace(" ", "%20"), InvalidName),
        ("/v1/stores/lab/agents?limit=0", InvalidInput),
        ("/v1/stores/lab/agents/-x/mia/head", InvalidName),
        ("/v1/verdicts/99/1", InvalidInput),
    ):
        with pytest.raises(kind):
            await place.connection.request("GET", path)
    with pytest.raises(InvalidInput):
        await place.connection.request("POST", "/v1/verdicts", body=b"{")


async def test_a_gateway_that_starts_is_waited_for(place):
    """What comes too early waits a little, and is answered then."""
    sources, place.gateway._sources = place.gateway._sources, None
    asked = asyncio.create_task(place.events.head("airline/mia"))
    await asyncio.sleep(0.2)
    assert not asked.done()
    place.gateway._sources = sources
    async with asyncio.timeout(10):
        assert (await asked).sequence == 3


async def test_a_gateway_that_is_away_is_named(monkeypatch):
    """After a while of trying the error says which address does not answer."""
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.2)
    url = f"http://127.0.0.1:{free_port()}"
    away = Connection(url)
    with pytest.raises(Unreachable, match=url):
        await away.request("GET", "/v1/cluster")
    await away.close()
    with pytest.raises(StoreClosed):
        await away.request("GET", "/v1/cluster")


async def test_events_are_waited_for_while_their_engine_is_away(place, monkeypatch):
    """A read that can't begin yet is asked for again, longer than a few times, and then given."""
    monkeypatch.setattr(patience, "AWAY_SECONDS", 60)
    place.served.away = client.CUTS_MAX + 1
    found = [
        event
        async for batch in place.events.read(Span("airline/mia", 1, 3))
        for event in batch.events
    ]
    assert [event.sequence for event in found] == [1, 2, 3]


async def test_an_engine_that_stays_away_is_told_as_unavailable(place, monkeypatch, caplog):
    """What can't begin has its own status; who waits is told for what, and at last how long."""
    monkeypatch.setattr(patience, "AWAY_SECONDS", 1.5)
    monkeypatch.setattr(patience, "TOLD_SECONDS", 0.2)
    place.served.away = 10**9
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{place.url}{AGENT}/events") as answer,
    ):
        assert answer.status == 503
    with pytest.raises(Unreachable, match=r"Cassandra at .* asked again for [0-9]+ s"):
        await anext(place.events.read(Span("airline/mia", 1, 3)))
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        f"waiting for {place.url}"
    ]
