"""What the tests of Cassandra's tables share: a connection, tables, and events to record."""

import contextlib
import datetime as dt

import msgspec

from perdure.cassandra.catalog import Catalog
from perdure.cassandra.session import Session
from perdure.cassandra.streams import CassandraRecordings
from perdure.cassandra.tables import OneGeneration, Tables
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append, decide
from perdure.recorder import buckets
from perdure.recorder.recordings import Row

EPOCH = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


class Place:
    """A store in the tables of a cluster's first generation."""

    def __init__(self, session, catalog, tables, store):
        self.session = session
        self.catalog = catalog
        self.tables = tables
        self.generations = OneGeneration(tables)
        self.store = store
        self.recordings = CassandraRecordings(session, self.generations, 1)
        self.position = -1

    async def load(self, agent):
        """The agent as it is stored, read by somebody who knows nothing yet."""
        return await CassandraRecordings(self.session, self.generations, 1).load(self.store, agent)

    async def record(self, agent, *events, stream=None, **write):
        """Record one append as a recorder does; the stream after it."""
        before = stream or await self.recordings.load(self.store, agent)
        self.position += 1
        after, rows = decided(before, agent, events, self.position, **write)
        await self.recordings.write(self.store, agent, before, after, rows)
        return after


def decided(before, agent, events, position, *, writer="w", epoch=None):
    """The stream after an append that nobody made before, and its rows."""
    place = buckets.opened(before)
    append = Append(agent, tuple(events), writer, epoch)
    verdict = decide(
        place.head,
        [append],
        Nobody(before.head.writers),
        now=EPOCH + dt.timedelta(seconds=position),
        new_id=lambda: f"id-{agent}-{position}",
        version_of=lambda _: 1,
    )
    assert all(isinstance(outcome, list) for outcome in verdict.outcomes), verdict.outcomes
    size = sum(len(recorded.data) for recorded in verdict.new)
    after = msgspec.structs.replace(
        buckets.placed(place, len(verdict.new), size),
        head=verdict.head,
        position=position,
        created=True,
    )
    return after, [Row(recorded, position) for recorded in verdict.new]


class Nobody:
    """Recall of a store that holds nothing beside what the head says."""

    def __init__(self, writers):
        self._writers = writers

    def by_id(self, agent, event_id):
        """Nothing was recorded."""

    def by_writer(self, agent, writer, writer_sequence):
        """Nothing was recorded."""

    def last_of(self, agent, writer):
        """As the bucket before had it."""
        return self._writers.get(writer, 0)


def note(number, **given):
    """An event to record."""
    return NewEvent(type=given.pop("type", "note.taken"), data={"number": number}, **given)


@contextlib.asynccontextmanager
async def place_of(cluster, store):
    """A place on a cluster, and its connection as long as it is used."""
    session = await Session.connect(cluster)
    try:
        catalog = await Catalog.open(session, cluster)
        tables = await Tables.prepare(session, cluster.keyspace(1))
        yield Place(session, catalog, tables, store)
    finally:
        await session.close()
