"""States that are kept in memory: they equal the fold, are brought forward, and are bounded."""

import asyncio

import msgspec
import pytest

import perdure
from perdure.errors import NotFound, ProjectionFailed
from perdure.model.event import encode
from perdure.model.projection import DEFAULT, Projections
from perdure.model.upcast import Upcasters
from perdure.projector.restore import refold
from perdure.projector.states import Source, States


@pytest.fixture
async def store(tmp_path):
    """A store on a folder, to read from."""
    async with perdure.connect(tmp_path) as store:
        yield store


class Counted:
    """A table of events that counts what is read of it."""

    def __init__(self, events):
        self._events = events
        self.read_events = 0
        self.heads = 0
        self.lineages = 0

    def __getattr__(self, name):
        return getattr(self._events, name)

    async def head(self, agent):
        """See `ports.EventTable`."""
        self.heads += 1
        return await self._events.head(agent)

    async def lineage(self, agent):
        """See `ports.EventTable`."""
        self.lineages += 1
        return await self._events.lineage(agent)

    async def read(self, span):
        """See `ports.EventTable`."""
        async for batch in self._events.read(span):
            self.read_events += len(batch.events)
            yield batch


def source_of(store, name="default"):
    """Where its agents are read, with the reads counted."""
    backend = store._session.backend
    return Source(name, Counted(backend.events), backend.states)


async def folded(store, agent, at=None):
    """The JSON of the state folded from event 1: what every answer has to equal."""
    events = store._session.backend.events
    lineage = await events.lineage(agent)
    state = await refold(
        events,
        Upcasters(),
        projection=DEFAULT,
        lineage=lineage,
        at=lineage[0].sequence if at is None else at,
    )
    return DEFAULT.encode(state)


async def test_an_answer_equals_the_fold_from_event_one(store):
    """Cold or hot, brought forward or not, after undo and of a fork."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    mia = await store.agent("airline/mia")
    for number in range(30):
        await mia.emit("decision.made", {"choice": "refund", "n": number})
        if number % 10 == 0:
            assert (await states.latest(source, "airline/mia")).data == await folded(
                store, "airline/mia"
            )
    await mia.revert(to=12)
    await mia.emit("decision.made", {"choice": "rebook"})
    twin = await mia.fork(at=20, name="airline/twin")
    await twin.emit("decision.made", {"choice": "wait"})
    for agent in ("airline/mia", "airline/twin", "airline/mia"):
        answer = await states.latest(source, agent)
        assert answer.data == await folded(store, agent)
        assert answer.sequence == await store.view(agent).sequence()
    assert (await states.at(source, "airline/mia", 7)).data == await folded(store, "airline/mia", 7)


async def test_a_hot_state_costs_one_look_at_the_head(store):
    """Where nothing is new, nothing is read but the head."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    mia = await store.agent("airline/mia")
    await mia.emit_many([("note", n) for n in range(50)])
    first = await states.latest(source, "airline/mia")
    source.events.read_events = source.events.heads = source.events.lineages = 0
    assert await states.latest(source, "airline/mia") == first
    assert (source.events.heads, source.events.lineages, source.events.read_events) == (1, 0, 0)


async def test_only_what_is_new_is_folded(store):
    """A kept state is brought forward by the events after it alone."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    mia = await store.agent("airline/mia")
    await mia.emit_many([("note", n) for n in range(50)])
    await states.latest(source, "airline/mia")
    source.events.read_events = 0
    await mia.emit_many([("note", n) for n in range(3)])
    assert (await states.latest(source, "airline/mia")).data == await folded(store, "airline/mia")
    assert source.events.read_events == 3


async def test_events_of_the_journal_bring_a_kept_state_forward(store):
    """Then not even the new events are read; what doesn't follow on changes nothing."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    backend = store._session.backend
    mia = await store.agent("airline/mia")
    await mia.emit("note", 0)
    await states.latest(source, "airline/mia")
    for number in range(1, 4):
        event = await mia.emit("note", number)
        head = await backend.events.head("airline/mia")
        if number != 2:  # The second one is missing, so the third doesn't follow on.
            states.follow("default", head, [encode(event)])
            states.follow("default", head, [encode(event)])  # A copy comes late.
    source.events.read_events = 0
    assert (await states.latest(source, "airline/mia")).data == await folded(store, "airline/mia")
    assert source.events.read_events == 2
    event = await mia.revert(to=1)
    states.follow("default", await backend.events.head("airline/mia"), [encode(event)])
    assert (await states.latest(source, "airline/mia")).data == await folded(store, "airline/mia")


async def test_states_of_stores_and_projections_are_kept_apart(store):
    """An agent of the same name in another store is another agent."""
    projections = Projections()

    @projections.projection("count", initial=lambda: 0)
    def count(state, event):
        return state + 1

    states = States(projections, Upcasters())
    mia = await store.agent("airline/mia")
    await mia.emit_many([("note", n) for n in range(5)])
    lab, crew = source_of(store, "lab"), source_of(store, "crew")
    assert (await states.latest(lab, "airline/mia", "count")).data == b"5"
    assert (await states.latest(lab, "airline/mia")).data != b"5"
    states.follow("lab", (await lab.events.head("airline/mia")), [])
    assert (await states.latest(crew, "airline/mia", "count")).data == b"5"
    assert states.count == 3
    with pytest.raises(NotFound, match="no projection"):
        await states.latest(lab, "airline/mia", "spent")


async def test_who_asks_at_once_shares_one_fold(store):
    """A hundred readers of a cold agent read its events once."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    mia = await store.agent("airline/mia")
    await mia.emit_many([("note", n) for n in range(100)])
    answers = await asyncio.gather(*(states.latest(source, "airline/mia") for _ in range(100)))
    assert len(set(answers)) == 1
    assert source.events.read_events == 100


async def test_kept_states_are_bounded_by_bytes(store):
    """However many agents are asked for, the newest few are kept, and every answer is right."""
    states = States(Projections(), Upcasters(), bytes_max=400_000)
    source = source_of(store)
    for number in range(40):
        agent = f"airline/a{number}"
        await store.emit(agent, "decision.made", {"text": "x" * 5_000})
        assert (await states.latest(source, agent)).data == await folded(store, agent)
        assert states.size <= 400_000
    assert 1 < states.count < 15
    assert (await states.latest(source, "airline/a0")).data == await folded(store, "airline/a0")


async def test_a_state_larger_than_the_bound_is_answered_and_not_kept(store):
    """The bound limits what is kept, never what is answered."""
    states, source = States(Projections(), Upcasters(), bytes_max=10_000), source_of(store)
    await store.emit("airline/mia", "decision.made", {"text": "x" * 50_000})
    assert (await states.latest(source, "airline/mia")).data == await folded(store, "airline/mia")
    assert (states.count, states.size) == (0, 0)


async def test_a_failing_projection_is_told_and_leaves_no_half_folded_state(store):
    """One that changes its state in place and then raises is folded again from the start."""
    projections = Projections()
    failing = True

    @projections.projection("seen")
    def seen(state, event):
        state.setdefault("seen", []).append(event.data)
        if failing and event.data == 2:
            raise ValueError("two")
        return state

    states, source = States(projections, Upcasters()), source_of(store)
    mia = await store.agent("airline/mia")
    await mia.emit_many([("note", n) for n in range(2)])
    await states.latest(source, "airline/mia", "seen")
    await mia.emit_many([("note", n) for n in range(2, 4)])
    for _ in range(2):
        with pytest.raises(ProjectionFailed):
            await states.latest(source, "airline/mia", "seen")
    failing = False
    answer = await states.latest(source, "airline/mia", "seen")
    assert msgspec.json.decode(answer.data) == {"seen": [0, 1, 2, 3]}


async def test_a_large_state_is_left_out_where_only_a_small_one_is_wanted(store):
    """And its JSON is not made again for each new event."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    mia = await store.agent("airline/mia")
    await mia.emit("decision.made", {"text": "x" * 50_000})
    for _ in range(5):
        await mia.emit("note", 1)
        answer = await states.newest(source, "airline/mia", bytes_max=10_000)
        assert (answer.data, answer.sequence) == (b"", await mia.sequence())
    assert (await states.latest(source, "airline/mia")).data == await folded(store, "airline/mia")


async def test_an_agent_that_is_not_there_is_not_kept(store):
    """Asking for names that nobody has takes no memory."""
    states, source = States(Projections(), Upcasters()), source_of(store)
    for number in range(20):
        with pytest.raises(NotFound):
            await states.latest(source, f"airline/nobody{number}")
    assert (states.count, states.size) == (0, 0)
