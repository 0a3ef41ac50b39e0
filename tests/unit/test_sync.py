"""The surface without `await`: the same methods, on a thread that answers always and ends."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import get_overloads

import pytest

import perdure
from perdure.agent.portal import CHUNK_ITEMS, Portal

PAIRS = {
    perdure.Store: perdure.SyncStore,
    perdure.AgentView: perdure.SyncAgentView,
    perdure.Agent: perdure.SyncAgent,
    perdure.Records: perdure.SyncRecords,
}
# How the store makes agents: not for users, and so without a counterpart.
MAKING = {perdure.Agent: {"open", "start"}}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def store(tmp_path):
    """An open store in a folder of its own."""
    with perdure.connect_sync(tmp_path / "store") as store:
        yield store


@pytest.fixture
def agent(store):
    """An agent of it."""
    return store.agent("crew/mia")


def threads():
    """The threads of stores that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == "perdure-store"]


def surface(kind):
    """The public methods and properties of a class."""
    return {name for name in dir(kind) if not name.startswith("_")} - MAKING.get(kind, set())


def awaited(signature):
    """What a signature of the async surface says when nothing is awaited."""
    text = str(signature)
    for kind, sync in PAIRS.items():
        text = text.replace(f"{kind.__module__}.{kind.__name__}", f"{sync.__name__}")
        text = re.sub(rf"\b{kind.__name__}\b", sync.__name__, text)
    return text.replace("AsyncIterator", "Iterator").replace("'", "")


def plain(signature):
    """A signature of the sync surface, its names written as `awaited` writes them."""
    return str(signature).replace("perdure.agent.sync.", "").replace("'", "")


def run_script(source, *arguments, **options):
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
def test_both_surfaces_have_the_same_methods(kind):
    """A method that one surface has, the other one has too."""
    assert surface(PAIRS[kind]) == surface(kind)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind in PAIRS
        for name in sorted(surface(kind))
    ],
)
def test_both_surfaces_have_the_same_signatures(kind, name):
    """Parameters, defaults and types are the same, but for what is awaited."""
    ours, theirs = getattr(PAIRS[kind], name), getattr(kind, name)
    if isinstance(theirs, property):
        ours, theirs = ours.fget, theirs.fget
    assert not inspect.iscoroutinefunction(ours)
    assert plain(inspect.signature(ours)) == awaited(inspect.signature(theirs))
    assert [plain(inspect.signature(overload)) for overload in get_overloads(ours)] == [
        awaited(inspect.signature(overload)) for overload in get_overloads(theirs)
    ]


def test_connecting_takes_the_same_arguments():
    """`connect_sync` takes what `connect` takes."""
    ours, theirs = (inspect.signature(it) for it in (perdure.connect_sync, perdure.connect))
    assert list(ours.parameters.values()) == list(theirs.parameters.values())


def test_both_surfaces_have_the_same_attributes(store, agent):
    """What an async agent has at hand, the other one has as well."""
    twin = agent._agent
    assert (agent.name, agent.epoch, agent.state) == (twin.name, twin.epoch, twin.state)
    assert store.url == store._store.url
    assert {name for name in vars(twin) if not name.startswith("_")} == {
        name for name in vars(agent) if not name.startswith("_")
    }


def test_a_script_does_everything_without_await(store, agent):
    """A day of an agent: what was written is read back, forked, undone and verified."""
    first = agent.emit("message.added", {"role": "user", "content": "hello"})
    assert first.position == "crew/mia@1"
    assert agent.emit("other", id=first.id) == first
    assert [e.sequence for e in agent.emit_many([("tick", 1), ("tick", 2)])] == [2, 3]
    agent.records.put("profile", {"tier": "gold"})
    assert agent.records.get("profile") == {"tier": "gold"}
    assert agent.records.version("profile") == 4
    assert agent.records.find(tier="gold") == {"profile": {"tier": "gold"}}
    agent.records.delete("profile", expected_version=4)
    assert [version.deleted for version in agent.records.history("profile")] == [False, True]
    assert agent.state_at(4).records == {"profile": {"tier": "gold"}}
    assert "sequence: 1 → 4" in [str(change) for change in agent.diff(1, 4)]
    twin = agent.fork(4, name="crew/twin")
    assert twin.records.get("profile") == {"tier": "gold"}
    assert agent.revert(to=4).event.sequence == 6
    assert agent.state.records == {"profile": {"tier": "gold"}}
    store.emit("crew/mia", "message.added", {"role": "user", "content": "from elsewhere"})
    assert [m["content"] for m in agent.refresh().messages] == ["hello", "from elsewhere"]
    assert agent.conversation("openai", 7) == agent.messages("openai") == agent.messages()
    assert len(agent.messages("anthropic")) == 1  # two in a row of one role are one there
    view = store.view("crew/mia")
    assert view.sequence() == 7
    assert view.project("state") == agent.state
    assert view.project("state", 1, type=perdure.State).sequence == 1
    assert [event.type for event in view.events(types=["tick", "agent.*"])] == [
        "tick",
        "tick",
        "agent.reverted",
    ]
    assert view.verify().sound
    assert store.fork("crew/twin", name="crew/third").state.sequence == 6
    assert [summary.agent for summary in store.agents()] == ["crew/mia", "crew/third", "crew/twin"]


def test_memory_and_checkpoints_without_await(agent):
    """Memories are recalled and forgotten, and objects restored, by the same calls."""
    memory = agent.remember("prefers aisle seats", source="chat", mood="good")
    assert [hit.id for hit in agent.recall("which seat?")] == [memory.id]
    agent.forget(memory)
    assert agent.recall("which seat?") == []
    assert agent.checkpoint("policy", {"a": [1, 2]}).sequence == 3
    assert agent.restore("policy") == {"a": [1, 2]}
    assert agent.restore("policy", type=dict) == {"a": [1, 2]}
    assert set(agent.checkpoints()) == {"policy"}


def test_errors_are_those_of_the_async_surface(store, agent):
    """An error comes as itself, and the store goes on."""
    with pytest.raises(perdure.InvalidName):
        store.agent("../x")
    with pytest.raises(perdure.SequenceConflict):
        agent.emit("tick", expected_sequence=7)
    with pytest.raises(perdure.NotFound):
        store.view("crew/nobody").state_at()
    with pytest.raises(perdure.NotFound):
        next(store.view("crew/nobody").events())
    store.agent("crew/mia")
    with pytest.raises(perdure.WriterFenced):
        agent.emit("tick")
    assert store.agent("crew/mia").emit("tick").sequence == 1


def test_store_that_cannot_be_opened_leaves_no_thread(tmp_path):
    """A failed connection is its error, and its thread has ended."""
    before = threads()
    with pytest.raises(perdure.NotFound):
        perdure.connect_sync(tmp_path / "none", create=False)
    with pytest.raises(perdure.InvalidInput):
        perdure.connect_sync("gopher://here")
    assert threads() == before


def test_events_are_read_in_chunks_and_all_of_them(agent):
    """An iterator gives every event once and in order, at any length around that of a chunk."""
    for length in (CHUNK_ITEMS - 1, CHUNK_ITEMS, CHUNK_ITEMS + 1, 3 * CHUNK_ITEMS):
        agent.emit_many([("tick", n) for n in range(length - agent.state.sequence)])
        assert [event.sequence for event in agent.events()] == list(range(1, length + 1))
        assert [event.sequence for event in agent.events(last=length)][-1] == length


def test_iterating_reads_no_further_than_a_chunk():
    """However long a stream is, an iterator holds no more of it than a chunk."""
    given = []

    async def stream():
        for number in range(10_000):
            given.append(number)
            yield number

    portal = Portal("the test")
    numbers = portal.iterate(stream)
    assert given == []
    assert next(numbers) == 0
    assert len(given) == CHUNK_ITEMS
    assert sum(1 for _ in numbers) == 9_999
    portal.end()


def test_items_before_an_error_are_given():
    """What a stream gave before it failed is given before its error is."""

    async def stream():
        yield 1
        yield 2
        raise perdure.Corrupt("event 3 is damaged")

    portal = Portal("the test")
    numbers = portal.iterate(stream)
    assert [next(numbers), next(numbers)] == [1, 2]
    with pytest.raises(perdure.Corrupt):
        next(numbers)
    portal.end()


@pytest.mark.parametrize("collect", [False, True])
def test_iterator_that_is_left_is_closed(collect):
    """The stream behind an iterator that nobody reads on is closed, and not kept open."""
    closed = threading.Event()

    async def stream():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    portal = Portal("the test")
    numbers = portal.iterate(stream)
    next(numbers)
    if collect:
        del numbers
        gc.collect()
    else:
        numbers.close()
    assert closed.wait(10)
    portal.end()


def test_watch_gives_each_change_when_it_comes(store, agent):
    """A watcher in another thread sees an event before the next one is recorded."""
    seen, came = [], threading.Semaphore(0)

    def look():
        for change in store.view("crew/mia").watch(after=0):
            seen.append((change.sequence, len(change.state.messages)))
            came.release()
            if len(seen) == 3:
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(1, 4):
        agent.emit("message.added", {"role": "user", "content": "hello"})
        assert came.acquire(timeout=10)
        assert seen[-1] == (number, number)
    watcher.join(10)
    assert not watcher.is_alive()


def test_many_threads_write_at_once(store, agent):
    """Threads that share an agent record each event once, each thread's in its order."""

    def write(name):
        for number in range(25):
            agent.emit("tick", {"of": name, "number": number})

    writers = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = list(agent.events())
    assert [event.sequence for event in events] == list(range(1, 201))
    for name in range(8):
        own = [event.data["number"] for event in events if event.data["of"] == name]
        assert own == list(range(25))
    assert agent.state.sequence == 200


def test_the_state_read_by_many_threads_while_one_writes_misses_nothing(tmp_path):
    """Reading the state folds what was recorded: from whichever thread, no event is left out."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # as unlucky a change of threads as it gets
    torn = []
    written = threading.Event()
    try:
        with perdure.connect_sync(tmp_path) as store, store.agent("crew/mia") as agent:

            def read():
                while not written.is_set():
                    state = agent.state
                    if len(state.decisions) != state.sequence:
                        torn.append(state)

            readers = [threading.Thread(target=read) for _ in range(3)]
            for reader in readers:
                reader.start()
            for n in range(1_000):
                agent.emit("decision.made", n)
            written.set()
            for reader in readers:
                reader.join()
            assert agent.state == agent.state_at()
    finally:
        written.set()
        sys.setswitchinterval(interval)
    assert not torn
    assert list(agent.state.decisions) == list(range(1_000))  # and it can be read when all is over


async def test_works_where_a_loop_is_running(tmp_path):
    """In a notebook, whose thread runs a loop already, the calls work all the same."""
    assert asyncio.get_running_loop().is_running()
    with perdure.connect_sync(tmp_path / "store") as store:
        assert store.agent("crew/mia").emit("tick").sequence == 1
        assert [event.type for event in store.view("crew/mia").events()] == ["tick"]


def test_caller_s_context_is_seen():
    """Context variables (a trace, say) of the caller are those of the call."""
    trace = contextvars.ContextVar("trace")
    trace.set("here")

    async def look():
        return trace.get()

    portal = Portal("the test")
    assert portal.call(look) == "here"
    portal.end()


def test_events_may_come_from_the_store_itself(store, agent):
    """What is written can be read from the same store, event by event."""
    agent.emit_many([("tick", n) for n in range(CHUNK_ITEMS * 2)])
    copied = store.agent("crew/copy").emit_many((e.type, e.data) for e in agent.events())
    assert len(copied) == CHUNK_ITEMS * 2
    more = store.emit_many("crew/more", ((e.type, e.data) for e in agent.events()))
    assert len(more) == CHUNK_ITEMS * 2


def test_calling_from_within_the_store_s_thread_is_an_error(agent):
    """A callback that calls the store is told so, and does not wait for itself for ever."""
    agent.emit("tick")
    with pytest.raises(perdure.Unavailable, match="own thread"):
        agent.verify(progress=lambda looked_at: agent.sequence())
    assert agent.emit("tick").sequence == 2


def test_use_after_close_is_store_closed(tmp_path):
    """After closing, every call says so, reading what is at hand works, and closing is harmless."""
    store = perdure.connect_sync(tmp_path / "store")
    agent = store.agent("crew/mia")
    agent.emit_many([("tick", n) for n in range(CHUNK_ITEMS * 2)])
    events = agent.events()
    next(events)
    store.close()
    for call in (
        lambda: agent.emit("tick"),
        lambda: store.agent("crew/mia"),
        lambda: store.emit("crew/mia", "tick"),
        lambda: store.view("crew/mia").state_at(),
        lambda: list(store.agents()),
        lambda: agent.records.get("profile"),
        lambda: list(events),
    ):
        with pytest.raises(perdure.StoreClosed, match=re.escape(str(tmp_path / "store"))):
            call()
    assert agent.state.sequence == CHUNK_ITEMS * 2
    agent.close()
    store.close()


def test_closing_ends_the_thread(tmp_path):
    """However it is closed, and after whatever error, no thread is left."""
    before = threads()
    store = perdure.connect_sync(tmp_path / "store")
    assert len(threads()) == len(before) + 1
    store.close()
    assert threads() == before
    with pytest.raises(LookupError), perdure.connect_sync(tmp_path / "store"):
        raise LookupError
    assert threads() == before


def test_closing_that_fails_ends_the_thread(tmp_path, monkeypatch):
    """The error of a failed close is the caller's, and the thread ends all the same."""
    before = threads()
    store = perdure.connect_sync(tmp_path / "store")

    async def fail():
        await backend.close()
        raise perdure.StoreFull("no space")

    backend = store._store._backend
    monkeypatch.setattr(store._store, "close", fail)
    with pytest.raises(perdure.StoreFull):
        store.close()
    assert threads() == before


def test_closing_answers_who_waits(tmp_path):
    """A thread that waits for a change when the store is closed is told, and goes on."""
    store = perdure.connect_sync(tmp_path / "store")
    agent = store.agent("crew/mia")
    agent.emit("tick")
    first, outcome = threading.Event(), []

    def look():
        try:
            for _ in agent.watch(after=0):
                first.set()
        except perdure.PerdureError as error:
            outcome.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    assert first.wait(10)
    store.close()
    watcher.join(10)
    assert not watcher.is_alive()
    assert isinstance(outcome[0], perdure.StoreClosed)


def test_closing_under_load_answers_every_call(tmp_path):
    """Threads that write while another one closes are each answered: recorded, or StoreClosed."""
    store = perdure.connect_sync(tmp_path / "store")
    agent = store.agent("crew/mia")
    acknowledged, started = [], threading.Barrier(9)

    def write():
        started.wait()
        try:
            while True:
                acknowledged.append(agent.emit("tick").sequence)
        except perdure.StoreClosed:
            return

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    started.wait()
    closers = [threading.Thread(target=store.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for thread in writers + closers:
        thread.join(20)
    assert not any(thread.is_alive() for thread in writers + closers)
    with perdure.connect_sync(tmp_path / "store") as again:
        recorded = {event.sequence for event in again.view("crew/mia").events()}
    assert len(acknowledged) == len(set(acknowledged))
    assert set(acknowledged) <= recorded


def test_store_that_nobody_holds_ends_its_thread():
    """A portal that is forgotten without being closed doesn't leave its thread behind."""
    portal = Portal("the test")
    portal.call(asyncio.sleep, 0)
    thread, gone = portal._thread, weakref.ref(portal)
    del portal
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_exit_of_the_caller_s_code_is_the_caller_s():
    """What a user's function raises on the loop, SystemExit included, is raised to who called."""

    async def leave():
        raise SystemExit(3)

    portal = Portal("the test")
    with pytest.raises(SystemExit):
        portal.call(leave)
    assert portal.call(asyncio.sleep, 0, "still here") == "still here"
    portal.end()


@contextlib.contextmanager
def interrupted():
    """Ctrl-C a moment later, ended by KeyboardInterrupt; again where Python lost the first one.

    What is raised in a callback of the garbage collector, say, is printed and gone.
    """
    main, done = threading.get_ident(), threading.Event()

    def interrupt():
        pause = 0.2
        while not done.wait(pause):
            signal.pthread_kill(main, signal.SIGINT)
            pause = 10

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")
def test_interrupt_ends_the_wait_and_leaves_the_store_usable(store, agent):
    """Ctrl-C while waiting for a change ends the wait; the store records on."""
    agent.emit("tick")
    watch = agent.watch(after=0)
    assert next(watch).sequence == 1
    with interrupted():
        next(watch)
    assert list(watch) == []
    assert agent.emit("tick").sequence == 2
    assert [event.sequence for event in agent.events()] == [1, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")
def test_interrupt_cancels_what_was_waited_for():
    """What nobody waits for any more is stopped, and nothing else is."""
    cancelled, portal = threading.Event(), Portal("the test")

    async def wait(answer):
        try:
            return await answer.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    never, soon, answers = asyncio.Event(), asyncio.Event(), []
    other = threading.Thread(target=lambda: answers.append(portal.call(wait, soon)))
    other.start()
    with interrupted():
        portal.call(wait, never)
    assert cancelled.wait(10)
    portal.call(asyncio.to_thread, lambda: None)
    portal._loop.post(soon.set)
    other.join(10)
    assert answers == [True]
    portal.end()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")
def test_interrupted_writer_keeps_what_was_acknowledged(tmp_path):
    """A script that is stopped by Ctrl-C while it writes closes its store and has lost nothing."""
    source = """
        import perdure, sys
        last = 0
        try:
            with perdure.connect_sync(sys.argv[1]) as store, store.agent("crew/mia") as agent:
                while True:
                    last = agent.emit("tick").sequence
                    if last == 20:
                        print("writing", flush=True)
        except KeyboardInterrupt:
            print(last)
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    with perdure.connect_sync(tmp_path / "store") as store:
        sequence = store.view("crew/mia").sequence()
        assert sequence in {int(output), int(output) + 1}
        assert store.view("crew/mia").verify().sound


def test_store_that_is_not_closed_does_not_hold_up_the_exit(tmp_path):
    """A script that forgets to close ends, and what it recorded is there."""
    source = """
        import perdure, sys, threading
        store = perdure.connect_sync(sys.argv[1])
        agent = store.agent("crew/mia")
        agent.emit_many([("tick", n) for n in range(100)])
        changes = agent.watch(after=99)
        next(changes)
        threading.Thread(target=lambda: next(changes), daemon=True).start()
        print("done")
    """
    process = run_script(source, tmp_path / "store")
    assert (process.returncode, process.stdout) == (0, "done\n")
    with perdure.connect_sync(tmp_path / "store") as store:
        assert store.view("crew/mia").verify().sound
        assert store.view("crew/mia").sequence() == 100


@needs_fork
def test_forked_child_is_told_to_connect_anew(tmp_path):
    """In a forked child each call is an error at once; it can connect itself."""
    source = """
        import os, perdure, sys, warnings
        warnings.simplefilter("ignore")  # the interpreter's own about threads and fork
        with perdure.connect_sync(sys.argv[1]) as store:
            agent = store.agent("crew/mia")
            agent.emit("tick", "before")
            events = agent.events()
            child = os.fork()
            if child == 0:
                for call in (
                    lambda: agent.emit("tick"),
                    lambda: next(events),
                    lambda: store.view("crew/mia").state_at(),
                ):
                    try:
                        call()
                    except perdure.StoreClosed as error:
                        print(error.hint, flush=True)
                with perdure.connect_sync(sys.argv[1]) as own:
                    own.emit("crew/mia", "tick", "child")
            else:
                print(os.waitpid(child, 0)[1], flush=True)
                agent.emit("tick", "after")
                print([event.data for event in agent.events()], agent.verify().sound, flush=True)
    """
    process = run_script(source, tmp_path / "store")
    hint = "call connect_sync in each process, after the fork"
    assert process.stdout.splitlines() == [
        *[hint] * 3,
        "0",
        "['before', 'child', 'after'] True",
    ]
    assert (process.returncode, process.stderr) == (0, "")
