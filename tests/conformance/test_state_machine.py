"""Any sequence of deeds, crashes included, leaves a store as a model in plain Python says.

The model keeps for every agent the list of its events and the state at every sequence; after each
step the store's answers, events, sequences and states are compared with it, through a handle and
through another connection. Set CONFORMANCE_EXAMPLES for more than the usual number of sequences.
"""

import asyncio
import copy
import os
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.conformance import reference

import perdure
from perdure.model.upcast import Upcasters

EXAMPLES = os.environ.get("CONFORMANCE_EXAMPLES")
"""How many; by default as many as the store is fast enough for."""
STEPS = 40
AGENTS_MAX = 5
CONNECTIONS = 2
TYPES = ["decision.made", "message.added", "plan.generated", "tool.called", "note"]
LIFTED = "decision.made"
"""The type that gets upcasters: each adds a field that names the version."""


@dataclass
class Known:
    """An event as the model knows it: what was given, and what it must be answered with."""

    subject: str
    sequence: int
    type: str
    data: object
    version: int
    id: str


@dataclass
class Model:
    """What the store must hold of one agent: all its events, and how many it shares."""

    name: str
    events: list[Known] = field(default_factory=list)
    forked_at: int = 0


class Handle:
    """An opened agent: the connection it came from, and whether another was opened since."""

    def __init__(self, agent, connection):
        self.agent = agent
        self.connection = connection


def lifted(known, level):
    """An event as it is read by code that knows the type up to version `level`."""
    if known.type != LIFTED:
        return known
    data = copy.deepcopy(known.data)
    for version in range(known.version + 1, level + 1):
        data[f"v{version}"] = version
    return Known(known.subject, known.sequence, known.type, data, level, known.id)


def upcasters_of(level):
    """The upcasters of code that knows the type up to version `level`."""
    upcasters = Upcasters()
    for version in range(2, level + 1):

        def add(data, version=version):
            return {**data, f"v{version}": version}

        add.__qualname__ = f"add_v{version}"
        upcasters.upcaster(LIFTED, version - 1, version)(add)
    return upcasters


class Machine(RuleBasedStateMachine):
    """Deeds on one place, over two connections, by agents that may be forks of each other."""

    stores = None

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.place = self.stores.place()
        self.level = 1
        self.models = {}
        self.handles = {}
        self.fenced = []
        self.connections = []
        self.count = 0

    def run(self, coroutine):
        """Wait for a coroutine."""
        return self.runner.run(coroutine)

    @initialize()
    def begin(self):
        """Two connections, and an agent."""
        self.connections = [self.run(self.connected()) for _ in range(CONNECTIONS)]
        self.models["a/0"] = Model("a/0")
        self.opened("a/0", 0)

    def connected(self):
        """A new connection with the present upcasters."""
        return self.place.connect(upcasters=upcasters_of(self.level))

    def opened(self, name, connection):
        """Open an agent; whoever had it is fenced from now on."""
        agent = self.run(self.connections[connection].agent(name))
        if name in self.handles:
            self.fenced.append(self.handles[name])
        self.handles[name] = Handle(agent, connection)
        return agent

    def handle(self, name):
        """The handle of an agent, opened if there is none."""
        if name not in self.handles:
            self.opened(name, self.count % CONNECTIONS)
        return self.handles[name].agent

    def made(self, kind):
        """Data for an event of a type, never twice the same."""
        self.count += 1
        data = {"n": self.count}
        if kind == "message.added":
            data["role"] = "user"
        if kind == "tool.called":
            data["name"] = "book"
        if kind == LIFTED:
            data |= {f"v{version}": version for version in range(2, self.level + 1)}
        return data

    def recorded(self, event, kind, data, name, version=1):
        """Hold an answer against what the model expects next, and take it into the model."""
        model = self.models[name]
        assert (event.subject, event.sequence) == (name, len(model.events) + 1)
        assert (event.type, event.data, event.version) == (kind, data, version)
        assert event.id not in {known.id for known in model.events}
        known = Known(name, event.sequence, kind, copy.deepcopy(data), version, event.id)
        model.events.append(known)

    def version(self, kind):
        """The version that a new event of a type has now."""
        return self.level if kind == LIFTED else 1

    def pick(self, index):
        """One of the agents."""
        return sorted(self.models)[index % len(self.models)]

    @rule(agent=st.integers(0, 9), connection=st.integers(0, 1), told=st.booleans())
    def open(self, agent, connection, told):
        """Open an agent from either connection; who had it is told at once, or later, or never."""
        name = self.pick(agent)
        earlier = self.handles.get(name)
        handle = self.opened(name, connection)
        assert handle.state.sequence == len(self.models[name].events)
        if earlier and told:
            self.refused(earlier)

    @precondition(lambda self: len(self.models) < AGENTS_MAX)
    @rule(connection=st.integers(0, 1))
    def another(self, connection):
        """Make one more agent."""
        name = f"a/{len(self.models)}"
        self.models[name] = Model(name)
        self.opened(name, connection)

    @rule(agent=st.integers(0, 9), kind=st.sampled_from(TYPES), expect=st.booleans())
    def emit(self, agent, kind, expect):
        """Emit one event, perhaps with the right expectation."""
        name = self.pick(agent)
        data = self.made(kind)
        at = len(self.models[name].events) if expect else None
        event = self.run(self.handle(name).emit(kind, data, expected_sequence=at))
        self.recorded(event, kind, data, name, self.version(kind))

    @rule(agent=st.integers(0, 9), off=st.sampled_from([-1, 1, 7]))
    def emit_with_a_wrong_expectation(self, agent, off):
        """An event that expects another sequence is refused."""
        name = self.pick(agent)
        at = max(0, len(self.models[name].events) + off)
        if at == len(self.models[name].events):
            return
        try:
            self.run(self.handle(name).emit("note", 1, expected_sequence=at))
        except perdure.SequenceConflict:
            return
        raise AssertionError("a wrong expectation was accepted")

    @rule(agent=st.integers(0, 9), kinds=st.lists(st.sampled_from(TYPES), max_size=12))
    def emit_many(self, agent, kinds):
        """Emit a batch."""
        name = self.pick(agent)
        given = [(kind, self.made(kind)) for kind in kinds]
        events = self.run(self.handle(name).emit_many(given))
        assert len(events) == len(given)
        for event, (kind, data) in zip(events, given, strict=True):
            self.recorded(event, kind, data, name, self.version(kind))

    @rule(agent=st.integers(0, 9), count=st.integers(2, 9))
    def emit_at_once(self, agent, count):
        """Emit several events concurrently: they are recorded in the order of the calls."""
        name = self.pick(agent)
        handle = self.handle(name)
        given = [self.made("note") for _ in range(count)]

        async def together():
            return await asyncio.gather(*[handle.emit("note", data) for data in given])

        for event, data in zip(self.run(together()), given, strict=True):
            self.recorded(event, "note", data, name)

    @rule(agent=st.integers(0, 9), connection=st.integers(0, 1), kind=st.sampled_from(TYPES))
    def contribute(self, agent, connection, kind):
        """Contribute without opening, from either connection."""
        name = self.pick(agent)
        data = self.made(kind)
        event = self.run(self.connections[connection].emit(name, kind, data))
        assert event.epoch == 0
        self.recorded(event, kind, data, name, self.version(kind))

    @rule(agent=st.integers(0, 9), which=st.integers(0, 99), connection=st.integers(0, 1))
    def duplicate(self, agent, which, connection):
        """Give an event again by its id, perhaps in a batch: it is answered, not recorded."""
        name = self.pick(agent)
        own = [known for known in self.models[name].events if known.subject == name]
        if not own:
            return
        known = own[which % len(own)]
        if which % 2:
            event = self.run(self.connections[connection].emit(name, "note", "again", id=known.id))
        else:
            data = self.made("note")
            drafts = [("note", data), perdure.NewEvent(type="note", data="again", id=known.id)]
            new, event = self.run(self.handle(name).emit_many(drafts))
            self.recorded(new, "note", data, name)
        assert (event.sequence, event.type, event.data) == (known.sequence, known.type, known.data)

    @rule(agent=st.integers(0, 9), key=st.sampled_from("xyz"), right=st.booleans())
    def put(self, agent, key, right):
        """Put a record with an expected version, right or wrong."""
        name = self.pick(agent)
        handle = self.handle(name)
        state = self.states(name)[-1]
        version = state["record_versions"].get(key, 0)
        self.count += 1
        change = handle.records.put(
            key, self.count, expected_version=version if right else version + 1
        )
        try:
            event = self.run(change)
        except perdure.RecordConflict:
            assert not right
            return
        assert right
        self.recorded(event, "record.put", {"key": key, "value": self.count}, name)

    @rule(agent=st.integers(0, 9), key=st.sampled_from("xyz"))
    def delete(self, agent, key):
        """Delete a record, there or not."""
        name = self.pick(agent)
        event = self.run(self.handle(name).records.delete(key))
        self.recorded(event, "record.deleted", {"key": key}, name)

    @rule(agent=st.integers(0, 9))
    def remember(self, agent):
        """Remember a text."""
        name = self.pick(agent)
        self.count += 1
        text = f"fact {self.count}"
        memory = self.run(self.handle(name).remember(text))
        model = self.models[name]
        assert memory.sequence == len(model.events) + 1
        model.events.append(
            Known(name, memory.sequence, "memory.stored", {"text": text}, 1, memory.id)
        )

    @rule(agent=st.integers(0, 9), which=st.integers(0, 99))
    def forget(self, agent, which):
        """Forget a memory that is there."""
        name = self.pick(agent)
        ids = sorted(self.states(name)[-1]["memories"])
        if ids:
            chosen = ids[which % len(ids)]
            event = self.run(self.handle(name).forget(chosen))
            self.recorded(event, "memory.forgotten", {"id": chosen}, name)

    @rule(agent=st.integers(0, 9))
    def recall(self, agent):
        """What is recalled is what the state says there is."""
        name = self.pick(agent)
        state = self.states(name)[-1]
        hits = self.run(self.connections[0].view(name).recall("fact", k=1000))
        assert {hit.id for hit in hits} == set(state["memories"])

    @rule(agent=st.integers(0, 9), to=st.integers(0, 200))
    def revert(self, agent, to):
        """Go back to any sequence, undone ones and a parent's included."""
        name = self.pick(agent)
        to %= len(self.models[name].events) + 1
        answer = self.run(self.handle(name).revert(to=to))
        self.recorded(answer.event, "agent.reverted", {"to": to}, name)

    @precondition(lambda self: len(self.models) < AGENTS_MAX)
    @rule(agent=st.integers(0, 9), at=st.integers(0, 200), connection=st.integers(0, 1))
    def fork(self, agent, at, connection):
        """Fork an agent anywhere in its past."""
        parent = self.pick(agent)
        at %= len(self.models[parent].events) + 1
        name = f"a/{len(self.models)}"
        forked = self.run(self.connections[connection].fork(parent, at, name=name))
        self.models[name] = Model(name, copy.deepcopy(self.models[parent].events[:at]), at)
        self.handles[name] = Handle(forked, connection)
        [event] = self.run(self.listed(forked, first=at + 1))
        self.recorded(event, "agent.forked", {"parent": parent, "at": at}, name)

    @rule(agent=st.integers(0, 9))
    def fork_to_a_name_that_is_taken(self, agent):
        """A fork to a name that is there is refused."""
        name = self.pick(agent)
        try:
            self.run(self.connections[0].fork(name, 0, name="a/0"))
        except perdure.AgentExists:
            return
        raise AssertionError("a taken name was given to a fork")

    @precondition(lambda self: self.fenced)
    @rule(which=st.integers(0, 99))
    def write_with_a_fenced_handle(self, which):
        """A handle that was opened before another one writes nothing."""
        self.refused(self.fenced[which % len(self.fenced)])

    def refused(self, handle):
        """A fenced handle's write is refused."""
        try:
            self.run(handle.agent.emit("note", "lost"))
        except perdure.WriterFenced:
            return
        raise AssertionError("a fenced handle wrote")

    def without(self, connection):
        """Forget the handles of a connection."""
        self.handles = {
            name: handle for name, handle in self.handles.items() if handle.connection != connection
        }
        self.fenced = [handle for handle in self.fenced if handle.connection != connection]

    @rule(connection=st.integers(0, 1))
    def crash(self, connection):
        """Drop a connection without closing it, after a write that nobody was answered."""
        name = self.pick(connection)
        self.run(self.connections[connection].emit(name, "note", "unanswered"))
        self.without(connection)
        self.connections[connection] = self.run(self.connected())
        view = self.connections[connection].view(name)
        [event] = self.run(self.listed(view, first=len(self.models[name].events) + 1))
        self.recorded(event, "note", "unanswered", name)

    @rule(connection=st.integers(0, 1))
    def reopen(self, connection):
        """Close a connection properly, and connect anew."""
        self.run(self.connections[connection].close())
        self.without(connection)
        self.connections[connection] = self.run(self.connected())

    @rule(agent=st.integers(0, 9))
    def close_agent(self, agent):
        """Close an agent: it is opened again when it is next needed."""
        name = self.pick(agent)
        if name in self.handles:
            self.run(self.handles[name].agent.close())

    @precondition(lambda self: self.level < 4)
    @rule()
    def upgrade(self):
        """Stop everything and go on with code that knows a newer version of a type."""
        for store in self.connections:
            self.run(store.close())
        self.handles.clear()
        self.fenced.clear()
        self.level += 1
        self.connections = [self.run(self.connected()) for _ in range(CONNECTIONS)]

    @rule(agent=st.integers(0, 9), at=st.integers(0, 200), connection=st.integers(0, 1))
    def state_at(self, agent, at, connection):
        """Any past state is what the model kept of it."""
        name = self.pick(agent)
        at %= len(self.models[name].events) + 1
        state = self.run(self.connections[connection].view(name).state_at(at))
        assert self.same(reference.plain(state), self.states(name)[at])

    @rule(agent=st.integers(0, 9))
    def verify(self, agent):
        """Everything an agent has is sound at any time."""
        verification = self.run(self.connections[0].view(self.pick(agent)).verify())
        assert verification.sound, verification.findings

    @invariant()
    def everything_is_as_the_model_says(self):
        """Events, sequences and states, through handles and from another connection."""
        for name, model in self.models.items():
            if not self.connections:
                return
            handle = self.handles.get(name)
            other = 1 - handle.connection if handle else 0
            view = self.connections[other].view(name)
            found = self.run(self.listed(view))
            expected = [lifted(known, self.level) for known in model.events]
            assert [self.known(event) for event in found] == expected
            states = self.states(name)
            assert self.same(reference.plain(self.run(view.state_at())), states[-1])
            if handle:
                # Contributions of others are seen with the next write, or when asked for.
                own = handle.agent.state
                assert self.same(reference.plain(own), states[own.sequence])
                assert self.same(reference.plain(self.run(handle.agent.refresh())), states[-1])

    def states(self, name):
        """The state at every sequence, by the plain fold."""
        return reference.states(
            name, [lifted(known, self.level) for known in self.models[name].events]
        )

    @staticmethod
    def same(found, expected):
        """Whether two states are the same; where nothing happened yet, whoever it is."""
        return found == (
            expected if expected["sequence"] else {**expected, "agent": found["agent"]}
        )

    @staticmethod
    def known(event):
        """A recorded event in the model's form."""
        return Known(event.subject, event.sequence, event.type, event.data, event.version, event.id)

    @staticmethod
    async def listed(agent, **options):
        """Events in a list."""
        return [event async for event in agent.events(**options)]

    def teardown(self):
        """Close all there is."""
        self.run(self.place.close())
        self.runner.close()


def test_any_sequence_of_deeds_leaves_what_the_model_says(stores, monkeypatch):
    """Whatever is done in whatever order, the store holds what a model in plain Python holds."""
    # States are saved every few hundred bytes, so that short histories have many checkpoints.
    monkeypatch.setattr("perdure.checkpointer.policy.BUSY_BYTES_MIN", 1_000)
    monkeypatch.setattr("perdure.checkpointer.policy.REST_BYTES_MIN", 1_000)
    run_state_machine_as_test(
        type("Machine", (Machine,), {"stores": stores}),
        settings=settings(
            max_examples=int(EXAMPLES or stores.examples),
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
        ),
    )
