"""`perdure replay`: tables, checkpoints and memory built anew from the log."""

import datetime as dt
from typing import Annotated, Final

import typer

from perdure.cassandra.catalog import BUILDING, DROPPED
from perdure.cli import options, output, session
from perdure.kafka.wire import DEFAULT_STORE
from perdure.model.names import agent_name
from perdure.model.upcast import default_upcasters
from perdure.replay.engines import Engines, opened
from perdure.replay.one import AgentOutcome, agent_at, compare_agent
from perdure.replay.replay import Outcome, Wishes, drop, replay_all, replay_until
from perdure.settings import Cluster

EXAMPLES: Final = """\b
Examples:
  perdure replay
  perdure replay --no-switch --json
  perdure replay --until 2026-11-01T10:00Z
  perdure replay --agent airline/mia
  perdure replay --agent airline/mia --until 2026-11-01T10:00Z
  perdure replay --list
  perdure replay --drop 1
"""

SHOWN_MAX: Final = 20
"""Differences that are shown to people."""


def replay(
    *,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="AGENT",
            help="One agent alone (namespace/name; in another store than the default"
            " STORE/namespace/name): nothing is changed",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only what was in the log before a time, with a zone: to look at",
            parser=options.time_with_zone,
            show_default=False,
        ),
    ] = None,
    switch: Annotated[
        bool, typer.Option("--switch/--no-switch", help="Go over to what was built")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Go over to it even if it is not the same")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, not where a replay was stopped")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Replay nothing: list the generations there are")
    ] = False,
    drop_: Annotated[
        int | None,
        typer.Option(
            "--drop",
            metavar="GENERATION",
            help="Replay nothing: drop a generation that nothing is read from",
            show_default=False,
        ),
    ] = None,
    load: options.Load = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Build the tables of a cluster anew from its log, beside those that are live.

    Reads the log from its first record (from the archive what Kafka no longer has) and builds
    events, saved states and memories as a new generation, while agents go on. Every agent is then
    compared with what is live, by its hash chain; if all are the same, each partition is switched
    over at one place of its log: nothing is lost, doubled, or read stale. A replay that was stopped
    goes on where it was when it is called again. The old generation stays until it is dropped.

    With --until a generation is built of what was sent before a time. It is never switched to:
    look at it with a gateway of its own, PERDURE_GENERATION=N perdure serve gateway --port PORT.

    With --agent, that agent and those it was forked from are rebuilt on the side, and compared with
    what is live, event by event. With --until as well, its state at that time is printed, as JSON.
    Either way nothing is changed: what is found damaged is mended by a replay of everything.

    With --json, one document: generation, resumed, records and events that were replayed, agents,
    recorded (their events in all), states, memories, different and differences (store,
    agent, problem), switched, seconds. With --agent: store, agent, records, sequence, chain,
    problems and state. The exit status is 1 when something is not the same.
    """
    cluster = session.settings_of(config)
    session.load(load)
    if list_:
        session.run(_list(cluster, as_json))
    elif drop_ is not None:
        session.run(_drop(cluster, drop_))
        output.note(f"generation {drop_} is dropped")
    elif agent is not None:
        found = session.run(_one(cluster, agent, until))
        if as_json:
            output.json_value(found)
        else:
            _show_one(found)
        if found.problems:
            raise typer.Exit(1)
    else:
        wishes = Wishes(restart=restart, switch=switch, force=force)
        outcome = session.run(_replay(cluster, until, wishes))
        if as_json:
            output.json_value(outcome)
        else:
            _show(outcome, until)
        if outcome.different:
            raise typer.Exit(1)


async def _replay(cluster: Cluster, until: str | None, wishes: Wishes) -> Outcome:
    async with opened(cluster, _tell) as engines:
        if until is None:
            return await replay_all(engines, default_upcasters, output.progress, wishes)
        return await replay_until(
            engines, dt.datetime.fromisoformat(until), output.progress, restart=wishes.restart
        )


async def _one(cluster: Cluster, named: str, until: str | None) -> AgentOutcome:
    store, _, agent = f"{DEFAULT_STORE}/{named}".rpartition("/")
    store, _, namespace = store.rpartition("/")
    store, agent = store.rpartition("/")[2], agent_name(f"{namespace}/{agent}")
    async with opened(cluster, _tell) as engines:
        if until is None:
            return await compare_agent(engines, store, agent, output.progress)
        return await agent_at(
            engines,
            store,
            agent,
            dt.datetime.fromisoformat(until),
            upcasters=default_upcasters,
            bars=output.progress,
        )


def _show_one(found: AgentOutcome) -> None:
    if found.state is not None:
        output.json_bytes(bytes(found.state))
        return
    output.line(
        f"{output.safe(found.agent)} is at {found.sequence} by"
        f" {output.counted(found.records, 'record')} of the log, with the chain"
        f" {found.chain[:16]}…"
    )
    for problem in found.problems:
        output.styled(problem, "red", indent=4)
    if not found.problems:
        output.styled("what is live is the same, event by event", "green")


async def _drop(cluster: Cluster, number: int) -> None:
    async with opened(cluster, _tell) as engines:
        await drop(engines, number)


async def _list(cluster: Cluster, as_json: bool) -> None:
    async with opened(cluster, _tell) as engines:
        rows = await _rows(engines)
    if as_json:
        for row in rows:
            output.json_value(row)
        return
    output.table(
        ("generation", "state", "created", "until", "partitions", "lacks"),
        [
            (
                str(row["generation"]),
                str(row["state"]),
                _time(row["created"]),
                _time(row["until"]),
                str(row["partitions"] or ""),
                "" if row["lacks"] is None else f"{row['lacks']:,} records",
            )
            for row in rows
        ],
        right="rlllr",
    )


async def _rows(engines: Engines) -> list[dict[str, object]]:
    placement = list((await engines.catalog.placement()).values())
    bounds = await engines.log.bounds(range(engines.cluster.partitions))
    rows: list[dict[str, object]] = []
    for each in await engines.catalog.generations():
        if each.state == DROPPED:
            continue
        lacks = None
        if each.state == BUILDING:
            noted = await engines.catalog.progress(each.number)
            lacks = sum(max(0, bound.end - noted.get(p, 0)) for p, bound in bounds.items())
        rows.append(
            {
                "generation": each.number,
                "state": each.state,
                "created": each.created.isoformat(),
                "until": None if each.until is None else each.until.isoformat(),
                "partitions": placement.count(each.number),
                "lacks": lacks,
            }
        )
    return rows


def _show(outcome: Outcome, until: str | None) -> None:
    again = ", where it was stopped" if outcome.resumed else ""
    output.line(
        f"generation {outcome.generation}: {output.counted(outcome.records, 'record')} replayed"
        f" in {outcome.seconds:.0f} s{again}"
    )
    output.fields(
        [
            ("agents", f"{outcome.agents:,}"),
            ("events", f"{outcome.recorded:,}"),
            ("states saved", f"{outcome.states:,}"),
            ("memories embedded", f"{outcome.memories:,}"),
        ]
    )
    if until is not None:
        output.line(
            f"look at it: PERDURE_GENERATION={outcome.generation} perdure serve gateway --port PORT"
        )
        return
    for each in outcome.differences[:SHOWN_MAX]:
        output.styled(f"{each.store} {each.agent}: {each.problem}", "red", indent=4)
    if outcome.different > SHOWN_MAX:
        output.line(f"… and {outcome.different - SHOWN_MAX:,} more")
    if outcome.different:
        output.styled(
            f"{output.counted(outcome.different, 'agent')} not the same as what is live", "red"
        )
    else:
        output.styled("every agent is the same as what is live, by its hash chain", "green")
    if outcome.switched:
        output.line("switched over; `perdure replay --list` shows what can be dropped")
    elif outcome.different:
        output.line("nothing was switched; --force goes over to it all the same")
    else:
        output.line("nothing was switched; perdure replay goes over to it")


def _time(value: object) -> str:
    return "" if value is None else str(value)[:19].replace("T", " ") + "Z"


def _tell(text: str) -> None:
    output.note(output.safe(text))
