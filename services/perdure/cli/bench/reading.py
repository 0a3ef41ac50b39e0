"""Reading back: folding a whole history, and a state in the middle of a run."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from perdure.agent.connect import connect
from perdure.cli.bench import peers
from perdure.cli.bench.raw import ROWS_A_COMMIT
from perdure.cli.bench.result import Measurement, Ratio, Series
from perdure.cli.bench.rounds import Contender, Work, milliseconds, per_second, side_by_side
from perdure.cli.bench.workbench import Workbench
from perdure.cli.recorded_runs import add
from perdure.embedded.folder import open_folder
from perdure.errors import PerdureError
from perdure.model.projection import DEFAULT
from perdure.model.runs import Run, run_events
from perdure.model.upcast import default_upcasters
from perdure.projector.restore import refold

PERDURE: Final = "perdure"


async def fold(bench: Workbench) -> Measurement:
    """Folding a long agent from event 1, beside eventsourcing on the same payloads."""
    count, scale = bench.scale.fold, bench.scale
    folder, name = bench.new_folder("fold"), "bench/fold"
    source = bench.messages()
    messages = [next(source) for _ in range(count)]
    async with connect(folder / "store") as store:
        agent = await store.agent(name)
        for at in range(0, count, ROWS_A_COMMIT):
            await agent.emit_many(
                [("message.added", message) for message in messages[at : at + ROWS_A_COMMIT]]
            )
        await agent.close()
    backend = open_folder(folder / "store", version_of=default_upcasters.current, create=False)
    with ExitStack() as stack:

        async def ours() -> Work:
            started = time.perf_counter()
            lineage = await backend.events.lineage(name)
            state = await refold(
                backend.events,
                default_upcasters,
                projection=DEFAULT,
                lineage=lineage,
                at=lineage[0].sequence,
            )
            seconds = time.perf_counter() - started
            _check("messages after folding", len(state.messages), count)
            return Work(count, seconds)

        contenders: dict[str, Contender] = {PERDURE: ours}
        if peers.has_eventsourcing():
            from perdure.cli.bench.peer_eventsourcing import EventSourced

            sourced = EventSourced(bench.new_folder("fold/eventsourcing"))
            stack.callback(sourced.close)
            identity = sourced.keep(messages)

            async def theirs() -> Work:
                folded, seconds = sourced.fold(identity)
                _check("messages after eventsourcing's folding", folded, count)
                return Work(count, seconds)

            contenders[peers.EVENTSOURCING] = theirs
        tick = bench.begin(f"folding {count:,} events", scale.rounds * len(contenders))
        done = await side_by_side(contenders, rounds=scale.rounds, tick=tick)
    await backend.close()
    series = [Series.of(name, "events/s", per_second(work)) for name, work in done.items()]
    ratios = [
        Ratio.between(
            series[0],
            other,
            label=f"folding {count:,} events from event 1, of eventsourcing's rate",
            bound="at least",
            target=5,
        )
        for other in series[1:]
    ]
    notes = ["no state checkpoint is used, and events are read from disk, by both"]
    title = f"folding a {count:,}-event agent from event 1"
    return Measurement("fold", title, series, ratios, notes)


async def middle(bench: Workbench) -> Measurement:
    """The state in the middle of each run, beside LangGraph's `get_state` there."""
    scale = bench.scale
    folder = bench.new_folder("middle")
    runs = [run for run in bench.runs if len(run.messages) > 1]
    with ExitStack() as stack:
        async with connect(folder / "store") as store:
            points = []
            for number, run in enumerate(runs):
                events = run_events(run)
                await add(store, f"bench/run-{number}", events)
                seen = [at for at, event in enumerate(events, 1) if event.type == "message.added"]
                points.append((f"bench/run-{number}", seen[_half(run) - 1], run))

            async def ours() -> Work:
                states = []
                started = time.perf_counter()
                for name, sequence, _ in points:
                    states.append(await store.view(name).state_at(sequence))
                seconds = time.perf_counter() - started
                for state, (_, _, run) in zip(states, points, strict=True):
                    if state.messages != list(run.messages[: _half(run)]):
                        raise _wrong(state.agent)
                return Work(len(points), seconds)

            contenders: dict[str, Contender] = {PERDURE: ours}
            contenders |= _graphs(bench, stack, runs)
            tick = bench.begin("states in the middle of runs", scale.rounds * len(contenders))
            done = await side_by_side(contenders, rounds=scale.rounds, tick=tick)
    series = [Series.of(name, "ms", milliseconds(work)) for name, work in done.items()]
    ratios = [
        Ratio.between(
            series[0],
            other,
            label=f"state in the middle of a run, of get_state's time ({other.who})",
            bound="at most",
            target=1,
        )
        for other in series[1:]
    ]
    notes = ["every state was compared with the run's messages up to there"]
    return Measurement("middle", "state at the middle of a run", series, ratios, notes)


def _graphs(bench: Workbench, stack: ExitStack, runs: Sequence[Run]) -> dict[str, Contender]:
    if not peers.has_langgraph():
        return {}
    from perdure.cli.bench.peer_langgraph import Graphs, has_delta_channel

    kinds = {peers.LANGGRAPH: False}
    if has_delta_channel():
        kinds[peers.LANGGRAPH_DELTA] = True
    contenders: dict[str, Contender] = {}
    for who, delta in kinds.items():
        graphs = Graphs(bench.new_folder(f"middle/{who}"), delta=delta)
        stack.callback(graphs.close)
        tick = bench.begin(f"running {who}", len(runs))
        points = []
        for number, run in enumerate(runs):
            graphs.add(str(number), run.messages)
            points.append((graphs.at(str(number), _half(run)), _half(run)))
            tick()

        async def theirs(
            graphs: Graphs = graphs, points: Sequence[tuple[object, int]] = tuple(points)
        ) -> Work:
            started = time.perf_counter()
            counts = [graphs.state(at) for at, _ in points]
            seconds = time.perf_counter() - started
            _check("messages of LangGraph's states", sum(counts), sum(n for _, n in points))
            return Work(len(points), seconds)

        contenders[who] = theirs
    return contenders


def _half(run: Run) -> int:
    return len(run.messages) // 2


def _check(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise PerdureError(f"{what}: {found}, not {wanted}", hint="report this: it must not happen")


def _wrong(agent: str) -> PerdureError:
    return PerdureError(
        f"the state in the middle of {agent} is not the run's", hint="`perdure verify` says more"
    )
