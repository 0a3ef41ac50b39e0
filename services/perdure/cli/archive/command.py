"""`perdure archive`: the log as zstd files, so that the topic need not keep everything."""

import asyncio
import contextlib
import datetime as dt
from typing import Annotated, Final

import typer
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from perdure.cli import options, output, session
from perdure.errors import Unreachable
from perdure.replay.archive import Archive, opened
from perdure.replay.archiving import SEGMENT_SECONDS, Archiver, Missing, gaps
from perdure.replay.segments import SEGMENT_BYTES, Segment
from perdure.replay.topic import check_topic, reading
from perdure.serving import stop_on_signals
from perdure.settings import Cluster

EXAMPLES: Final = """\b
Examples:
  perdure archive
  perdure archive --follow
  perdure archive --list
  PERDURE_ARCHIVE=s3://bucket/archive perdure archive --verify --json
"""

PAUSE_SECONDS_MAX: Final = 30
"""The longest pause before Kafka or the archive is tried again."""


def archive(
    *,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what comes, until SIGTERM or Ctrl-C")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Archive nothing: show what is archived")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Archive nothing: read everything and check that it is whole"
        ),
    ] = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Copy the log of a cluster into its archive, from where the archive ends.

    The archive (setting archive: file:///folder or s3://bucket/prefix) holds the records of the
    topic of events as they are, in zstd files of up to 64 MB or an hour, with an index. What is in
    it may be deleted in Kafka: `perdure replay` reads the archive first. It can be run as often and
    from as many places as you like. With --json, a segment a line: partition, first and last
    offset, first and last time (milliseconds since 1970), count, bytes, stored, sha256. The exit
    status is 1 when offsets are missing: Kafka had deleted them before they were archived.
    """
    if sum((follow, list_, verify)) > 1:
        raise typer.BadParameter("--follow, --list and --verify exclude each other")
    cluster = session.settings_of(config)
    if list_ or verify:
        complete = session.run(_look(cluster, as_json, verify=verify))
    elif follow:
        complete = asyncio.run(_follow(cluster, as_json))
    else:
        complete = session.run(_once(cluster, as_json))
    if not complete:
        raise typer.Exit(1)


class _Told:
    """What happened, as it is shown."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.segments = self.records = self.stored = 0
        self.missing: list[Missing] = []

    def added(self, segment: Segment) -> None:
        self.segments += 1
        self.records += segment.count
        self.stored += segment.stored
        if self._as_json:
            output.json_value(segment)

    def lost(self, missing: Missing) -> None:
        self.missing.append(missing)
        output.note(_lost(missing))


async def _once(cluster: Cluster, as_json: bool) -> bool:
    told = _Told(as_json)
    await check_topic(cluster, "events")
    async with (
        opened(cluster.archive, cluster.topic("events")) as found,
        reading(cluster, "events") as reader,
    ):
        archiver = Archiver(
            found, reader, range(cluster.partitions), added=told.added, missing=told.lost
        )
        with output.progress("archiving", await archiver.lag()) as done:
            await archiver.copy(done)
        if not as_json:
            output.line(
                f"{output.counted(told.records, 'record')} archived in"
                f" {output.counted(told.segments, 'segment')} ({output.size(told.stored)})"
                f" at {output.safe(found.url)}"
            )
    return not told.missing


async def _follow(cluster: Cluster, as_json: bool) -> bool:
    told = _Told(as_json)
    with stop_on_signals() as stop:
        stopping = asyncio.create_task(stop.wait())
        following = asyncio.create_task(_keep_following(cluster, told, stop))
        output.note(
            f"archiving {cluster.topic('events')}: a segment is complete at"
            f" {output.size(SEGMENT_BYTES)} or after {SEGMENT_SECONDS / 60:.0f} minutes"
        )
        await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await following
    output.note(f"{output.counted(told.records, 'record')} archived")
    return not told.missing


async def _keep_following(cluster: Cluster, told: _Told, stop: asyncio.Event) -> None:
    """Follow through whatever outages there are."""

    async def pause(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_random_exponential(multiplier=0.5, max=PAUSE_SECONDS_MAX),
        before_sleep=_waiting,
        sleep=pause,
        stop=lambda _: stop.is_set(),
        reraise=True,
    ):
        with attempt:
            await check_topic(cluster, "events")
            async with (
                opened(cluster.archive, cluster.topic("events")) as found,
                reading(cluster, "events") as reader,
            ):
                await Archiver(
                    found, reader, range(cluster.partitions), added=told.added, missing=told.lost
                ).follow(stop)


def _waiting(state: RetryCallState) -> None:
    if state.outcome is not None and (error := state.outcome.exception()) is not None:
        output.note(f"waiting: {output.safe(str(error))}")


async def _look(cluster: Cluster, as_json: bool, *, verify: bool) -> bool:
    rows: list[tuple[str, ...]] = []
    missing: list[Missing] = []
    async with opened(cluster.archive, cluster.topic("events")) as found:
        indexes = {part: await found.segments(part) for part in range(cluster.partitions)}
        if verify:
            total = sum(segment.bytes for each in indexes.values() for segment in each)
            with output.progress("verifying", total, unit="B") as done:
                looked = 0
                for segments in indexes.values():
                    for segment in segments:
                        await _read(found, segment)
                        looked += segment.bytes
                        done(looked)
        for partition, segments in indexes.items():
            missing += gaps(partition, segments)
            if as_json:
                for segment in segments:
                    output.json_value(segment)
            rows.append(_row(partition, segments))
    if not as_json:
        names = ("partition", "segments", "records", "first", "last", "until", "size")
        output.table(names, rows, right="rrrrrlr")
        if verify:
            output.styled("everything that is archived is as it was written", "green")
    for lost in missing:
        output.note(_lost(lost))
    return not missing


async def _read(found: Archive, segment: Segment) -> None:
    async for _ in found.read(segment):
        pass


def _row(partition: int, segments: list[Segment]) -> tuple[str, ...]:
    if not segments:
        return (str(partition), "0", "0", "", "", "", "0 B")
    latest = max(segment.last_time for segment in segments)
    until = dt.datetime.fromtimestamp(max(0, latest) / 1000, dt.UTC)
    return (
        str(partition),
        f"{len(segments):,}",
        f"{sum(segment.count for segment in segments):,}",
        f"{segments[0].first}",
        f"{segments[-1].last}",
        f"{until:%Y-%m-%d %H:%M:%S}Z",
        output.size(sum(segment.stored for segment in segments)),
    )


def _lost(missing: Missing) -> str:
    return (
        f"partition {missing.partition}: offsets {missing.first} to {missing.last} are missing;"
        " they were deleted in Kafka before they were archived"
    )
