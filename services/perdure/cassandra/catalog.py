"""The control keyspace: which format, which log, which generation of the tables is read.

Invariants:
- Changes are conditional (Paxos): of two that exclude each other, one takes place.
- A generation is dropped only when no partition is read from it.
- Whether a record of the log switches its partition is decided once, in the order of the log,
  whoever comes to it, and however late.
"""

import datetime as dt
from typing import Final, NamedTuple

import msgspec

from perdure.cassandra import schema
from perdure.cassandra.session import Row, Session
from perdure.errors import Incompatible, InvalidInput, NotFound, UnsupportedFormat
from perdure.settings import Cluster

_EVENTS: Final = "events"
_CONTROL: Final = "control"

BUILDING: Final = "building"
LIVE: Final = "live"
PAST: Final = "past"
SCRATCH: Final = "scratch"
DROPPED: Final = "dropped"


class Generation(msgspec.Struct, frozen=True):
    """A set of tables. `created` and `until` are in UTC.

    `state` is `building`, `live` (agents are read from it, or were), `dropped`, or `past`: built of
    what was in the log before the time `until`, to be looked at, and never live. `scratch` is
    somebody's for a while, and never live either.
    """

    number: int
    state: str
    created: dt.datetime
    until: dt.datetime | None = None


class Placed(NamedTuple):
    """The generation that a partition is read from, as of the record at `position`.

    That record switched it there, or was refused; -1 before any such record.
    """

    generation: int
    position: int


class Catalog:
    """What the control keyspace of a cluster says."""

    def __init__(self, session: Session, cluster: Cluster) -> None:
        self._session = session
        self._cluster = cluster
        self._keyspace = schema.control_keyspace(cluster)

    @classmethod
    async def open(cls, session: Session, cluster: Cluster) -> "Catalog":
        """The catalog of a cluster; created with its first generation where it isn't there.

        Safe for any number of processes at once.

        Raises:
            UnsupportedFormat: the tables are of a newer format than this code knows.
            InvalidInput: the cluster's name can't be the name of a keyspace.
            Unreachable: not enough nodes answered in time.
        """
        catalog = cls(session, cluster)
        await schema.create_control(session, cluster)
        await catalog._check_format()
        if not await catalog.generations():
            await catalog._add(1, LIVE)
        usable = [each for each in await catalog.generations() if each.state != DROPPED]
        for generation in usable:
            await schema.create_generation(session, cluster, generation.number)
        newest = max([each.number for each in usable if each.state == LIVE], default=1)
        for partition in set(range(cluster.partitions)) - (await catalog.placement()).keys():
            await catalog._run(
                "INSERT INTO {}.partitions (partition, generation)"
                f" VALUES ({partition}, {newest}) IF NOT EXISTS"
            )
        return catalog

    async def checked_topics(self, partitions: int) -> int:
        """The generation of the topic of events, which has so many partitions.

        Raises:
            Incompatible: the log was made with another number of partitions; the order of an
                agent's events, and which recorder decides about them, hang on it.
        """
        await self._run(
            "INSERT INTO {}.topics (topic, partitions, generation)"
            f" VALUES ('{_EVENTS}', {partitions}, 1) IF NOT EXISTS"
        )
        [(made_with, generation)] = await self._run(
            f"SELECT partitions, generation FROM {{}}.topics WHERE topic = '{_EVENTS}'"
        )
        if made_with != partitions:
            raise Incompatible(
                f"topic {self._cluster.topic(_EVENTS)} has {partitions} partitions,"
                f" but the log was made with {made_with}",
                hint=f"set partitions = {made_with}: which agents share an order hangs on it, so a"
                " log keeps its number",
            )
        return int(generation)

    async def generations(self) -> list[Generation]:
        """All generations there ever were, oldest first.

        Raises:
            UnsupportedFormat: one that is not dropped has tables of a newer format.
        """
        rows = await self._run(
            "SELECT generation, format, state, created, until FROM {}.generations"
        )
        for number, version, state, *_ in rows:
            if version > schema.FORMAT and state != DROPPED:
                raise self._newer(f"generation {number}", version)
        return sorted(
            (
                Generation(
                    number,
                    state,
                    created.replace(tzinfo=dt.UTC),
                    until and until.replace(tzinfo=dt.UTC),
                )
                for number, _, state, created, until in rows
            ),
            key=lambda generation: generation.number,
        )

    async def placement(self) -> dict[int, int]:
        """The generation from which each partition is read."""
        rows = await self._run("SELECT partition, generation FROM {}.partitions")
        return {partition: generation for partition, generation in rows if generation is not None}

    async def build(self, until: dt.datetime | None = None, *, state: str = BUILDING) -> Generation:
        """Make a new generation with empty tables, beside those there are.

        `until`, in whole milliseconds: it is of the past, and is never going to be live. `state` is
        BUILDING or SCRATCH.
        """
        while True:
            number = max([0, *(each.number for each in await self.generations())]) + 1
            if await self._add(number, state, until):
                await schema.create_generation(self._session, self._cluster, number)
                return await self.generation(number)

    async def finish(self, number: int) -> None:
        """Say that a generation of the past is complete."""
        await self._set_state(number, PAST)

    async def progress(self, number: int) -> dict[int, int]:
        """Of a generation that is built: before which offset of each partition all is in it."""
        rows = await self._run(
            f"SELECT partition, position FROM {{}}.replays WHERE generation = {number}"
        )
        return dict(rows)

    async def note_progress(self, number: int, partition: int, position: int) -> None:
        """Note that all before an offset of a partition is in a generation's tables."""
        await self._run(
            "INSERT INTO {}.replays (generation, partition, position)"
            f" VALUES ({number}, {partition}, {position})"
        )

    async def placed(self, partition: int) -> Placed:
        """Where a partition is read, and since which record. Raises NotFound."""
        rows = await self._run(
            f"SELECT generation, position FROM {{}}.partitions WHERE partition = {partition}"
        )
        if not rows:
            raise NotFound(
                f"cluster {self._cluster.name} has no partition {partition}",
                hint="check the setting partitions",
            )
        [(generation, position)] = rows
        return Placed(generation, -1 if position is None else position)

    async def check_complete(self, number: int) -> None:
        """Check that a generation is one that agents can be read from, or is going to be.

        Raises:
            NotFound: there is none of this number.
            Incompatible: it was dropped, or is never going to have everything.
        """
        generation = await self.generation(number)
        if generation.state == DROPPED:
            raise Incompatible(f"generation {number} was dropped", hint="build a new one")
        if generation.until is not None or generation.state not in {BUILDING, LIVE}:
            raise Incompatible(
                f"generation {number} has not everything: it is {generation.state}",
                hint="it can be looked at; build one that has everything",
            )

    async def decide(self, partition: int, position: int, generation: int | None) -> Placed:
        """The record at a position switches its partition to a generation, or (None) doesn't.

        Gives what is so now. Nothing is changed where it was decided about this record, or about a
        later one, before. Raises NotFound (no such partition).
        """
        while (placed := await self.placed(partition)).position < position:
            after = placed.generation if generation is None else generation
            before = "null" if placed.position < 0 else placed.position
            # Who is in between has it read again, and so this ends: positions only go up.
            await self._run(
                f"UPDATE {{}}.partitions SET generation = {after}, position = {position}"
                f" WHERE partition = {partition} IF position = {before}"
            )
        if placed == (generation, position):
            await self._set_state(placed.generation, LIVE)
        return placed

    async def drop(self, number: int) -> None:
        """Drop a generation and its tables.

        Raises:
            InvalidInput: a partition is read from it.
            NotFound: there is none of this number.
        """
        await self.generation(number)
        read = sorted(
            p for p, generation in (await self.placement()).items() if generation == number
        )
        if read:
            raise InvalidInput(
                f"generation {number} is what partitions {read} are read from",
                hint="switch them over first",
            )
        await self._set_state(number, DROPPED)
        await self._session.run_schema(
            [f"DROP KEYSPACE IF EXISTS {self._cluster.keyspace(number)}"]
        )

    async def generation(self, number: int) -> Generation:
        """A generation by its number. Raises NotFound."""
        for generation in await self.generations():
            if generation.number == number:
                return generation
        raise NotFound(f"there is no generation {number}", hint="`perdure replay` builds one")

    async def _add(self, number: int, state: str, until: dt.datetime | None = None) -> bool:
        ends = "null" if until is None else str(round(until.timestamp() * 1000))
        [(applied, *_)] = await self._run(
            "INSERT INTO {}.generations (generation, format, state, created, until)"
            f" VALUES ({number}, {schema.FORMAT}, '{state}', toTimestamp(now()), {ends})"
            " IF NOT EXISTS"
        )
        return bool(applied)

    async def _set_state(self, number: int, state: str) -> None:
        await self._run(
            f"UPDATE {{}}.generations SET state = '{state}' WHERE generation = {number} IF EXISTS"
        )

    async def _check_format(self) -> None:
        await self._run(
            "INSERT INTO {}.format (part, version)"
            f" VALUES ('{_CONTROL}', {schema.FORMAT}) IF NOT EXISTS"
        )
        rows = await self._run("SELECT part, version FROM {}.format")
        for part, version in rows:
            if version > schema.FORMAT:
                raise self._newer(f"part {part}", version)

    def _newer(self, what: str, version: int) -> UnsupportedFormat:
        return UnsupportedFormat(
            f"the tables of cluster {self._cluster.name} ({what}) are of format {version};"
            f" this version of perdure knows formats up to {schema.FORMAT}",
            hint="upgrade perdure on this machine",
        )

    async def _run(self, cql: str) -> list[Row]:
        return await self._session.execute(cql.replace("{}", self._keyspace))
