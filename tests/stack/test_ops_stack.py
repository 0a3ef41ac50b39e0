"""`ops.stack` on the real engines: what it starts serves, and what is written stays."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import weaviate
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from cassandra import ConsistencyLevel
from cassandra.cluster import Cluster
from cassandra.query import SimpleStatement
from ops.stack import Ports, Stack, artifacts, processes
from ops.stack.ports import is_free
from ops.stack.waiting import wait_until
from weaviate.classes.config import Configure

from perdure.errors import Corrupt, InvalidInput, NotFound, Unavailable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_stack(tmp_path):
    """Makes a stack in a folder of the test's, on ports of its own; in the end it is wiped."""
    made = []

    def make(**counts):
        stack = Stack(tmp_path / "stack", ports=Ports.free(), **counts)
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.wipe()


def _pids(stack):
    return {name: member.pid for name, member in stack.members.items() if member.running}


# Kafka


async def _send(stack, value, topic="kept"):
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def _make_topic(stack, copies):
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
    await admin.start()
    try:
        made = await admin.create_topics([NewTopic("kept", 1, copies)])
    finally:
        await admin.close()
    assert [error[1] for error in made.topic_errors] == [0]


async def _sent(stack, count):
    consumer = AIOKafkaConsumer(
        "kept", bootstrap_servers=stack.kafka, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        return [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in range(count)]
    finally:
        await consumer.stop()


@pytest.mark.slow
async def test_kafka_keeps_what_it_acknowledged(make_stack):
    """A second `up` changes nothing; records survive a clean stop and a kill."""
    stack = make_stack()
    await asyncio.to_thread(stack.up, "kafka")
    before = _pids(stack)
    assert list(before) == ["kafka-1"]
    await asyncio.to_thread(stack.up, "kafka")
    assert _pids(stack) == before

    await _make_topic(stack, 1)
    await _send(stack, b"one")
    await asyncio.to_thread(stack.kill, "kafka-1")
    assert not stack.members["kafka-1"].running
    await asyncio.to_thread(stack.start, "kafka-1")
    await _send(stack, b"two")
    await asyncio.to_thread(stack.down)
    assert _pids(stack) == {}
    await asyncio.to_thread(Stack.open(stack.data).up, "kafka")
    assert await _sent(stack, 2) == [b"one", b"two"]


@pytest.mark.slow
async def test_writes_go_on_when_a_broker_of_three_is_killed(make_stack):
    """Three brokers keep a topic threefold; two of them take writes, and the third comes back."""
    stack = make_stack(brokers=3)
    await asyncio.to_thread(stack.up, "kafka")
    assert stack.kafka.split(",") == [f"127.0.0.{n}:{stack.ports.kafka}" for n in (1, 2, 3)]
    await _make_topic(stack, 3)
    await _send(stack, b"before")
    await asyncio.to_thread(stack.kill, "kafka-2")
    await _send(stack, b"without")
    assert sorted(_pids(stack)) == ["kafka-1", "kafka-3"]
    await asyncio.to_thread(stack.start, "kafka-2")
    await _send(stack, b"after")
    assert await _sent(stack, 3) == [b"before", b"without", b"after"]


# Cassandra


class _Table:
    """A table with as many copies as the ring has nodes, read and written by a majority."""

    def __init__(self, stack):
        self._cluster = Cluster(stack.cassandra, port=stack.cassandra_port, protocol_version=5)
        self._session = self._cluster.connect()
        self._session.default_timeout = 30
        self._run(
            "CREATE KEYSPACE IF NOT EXISTS kept WITH replication ="
            f" {{'class': 'SimpleStrategy', 'replication_factor': {len(stack.cassandra)}}}"
        )
        self._run("CREATE TABLE IF NOT EXISTS kept.row (key int PRIMARY KEY)")

    def _run(self, text, values=None):
        statement = SimpleStatement(text, consistency_level=ConsistencyLevel.QUORUM)
        return self._session.execute(statement, values)

    def write(self, key):
        self._run("INSERT INTO kept.row (key) VALUES (%s)", [key])

    def keys(self):
        return sorted(row.key for row in self._run("SELECT key FROM kept.row"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._cluster.shutdown()


@pytest.mark.slow
def test_cassandra_keeps_what_it_acknowledged(make_stack):
    """Rows survive a kill, a clean stop, and a start on other ports."""
    stack = make_stack()
    stack.up("cassandra")
    with _Table(stack) as table:
        table.write(1)
    stack.kill("cassandra-1")
    stack.start("cassandra-1")
    with _Table(stack) as table:
        table.write(2)
    stack.stop("cassandra-1")
    moved = Stack(stack.data, ports=Ports.free())
    moved.up("cassandra")
    with _Table(moved) as table:
        assert table.keys() == [1, 2]
    with pytest.raises(InvalidInput, match="other ports"):
        Stack(stack.data, ports=stack.ports)


@pytest.mark.slow
def test_writes_go_on_when_a_node_of_three_is_killed(make_stack):
    """Three nodes keep a row threefold; two of them take writes, and the third comes back."""
    stack = make_stack(nodes=3)
    stack.up("cassandra")
    assert stack.cassandra == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with _Table(stack) as table:
        table.write(1)
        stack.kill("cassandra-2")
        table.write(2)
        assert sorted(_pids(stack)) == ["cassandra-1", "cassandra-3"]
        stack.start("cassandra-2")
        table.write(3)
        assert table.keys() == [1, 2, 3]


# Weaviate


@pytest.mark.slow
def test_weaviate_keeps_what_it_acknowledged(make_stack):
    """Objects and their vectors survive a kill and a clean stop."""
    stack = make_stack()
    stack.up("weaviate")
    host, _, port = stack.weaviate.partition(":")

    def client():
        return weaviate.connect_to_local(
            host=host, port=int(port), grpc_port=stack.weaviate_grpc_port
        )

    with client() as connected:
        things = connected.collections.create(
            "Thing", vector_config=Configure.Vectors.self_provided()
        )
        things.data.insert({"name": "one"}, vector=[1.0, 0.0])
    stack.kill("weaviate-1")
    stack.start("weaviate-1")
    with client() as connected:
        connected.collections.use("Thing").data.insert({"name": "two"}, vector=[0.0, 1.0])
    stack.down()
    stack.up("weaviate")
    with client() as connected:
        found = connected.collections.use("Thing").query.near_vector([0.9, 0.1], limit=2)
    assert [thing.properties["name"] for thing in found.objects] == ["one", "two"]


@pytest.mark.slow
def test_a_suspended_member_runs_on_when_it_is_woken(make_stack):
    """SIGSTOP takes a member's answers away and not its process; SIGCONT brings them back."""
    stack = make_stack()
    stack.up("weaviate")
    pid = stack.members["weaviate-1"].pid
    stack.kill("weaviate-1", signal.SIGSTOP)
    assert stack.members["weaviate-1"].pid == pid
    assert not stack.ready("weaviate-1")
    stack.kill("weaviate-1", signal.SIGCONT)
    stack.up("weaviate")
    assert stack.members["weaviate-1"].pid == pid
    stack.kill("weaviate-1", signal.SIGSTOP)
    stack.down()
    assert not stack.members["weaviate-1"].running


@pytest.mark.slow
def test_command_line_starts_shows_and_stops(tmp_path):
    """What one command started outlives it, is seen by the next, and is stopped by the last."""
    data = tmp_path / "stack"
    stack = Stack(data, ports=Ports.free())
    stack.up("weaviate")
    try:
        shown = _command("status", data)
        assert "weaviate-1" in shown.stdout
        assert [line.split()[2] for line in shown.stdout.splitlines()] == [
            "stopped",
            "stopped",
            "ready",
        ]
        assert _command("logs", data, "weaviate-1", "--lines=5").stdout.count("\n") >= 5
        assert _command("down", data).returncode == 0
        assert _pids(stack) == {}
        assert _command("down", data, "--wipe").returncode == 0
        assert not data.exists()
    finally:
        stack.wipe()


def _command(name, data, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "ops.stack", name, "--native", f"--data={data}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


# Without an engine


def test_mistakes_are_told(tmp_path):
    """A wrong name, number or port is refused, with what would be right."""
    stack = Stack(tmp_path / "stack", brokers=3)
    with pytest.raises(InvalidInput, match="kafka-4") as caught:
        stack.stop("kafka-4")
    assert "kafka-3" in caught.value.hint
    with pytest.raises(InvalidInput, match="rabbit"):
        stack.up("rabbit")
    with pytest.raises(NotFound, match="kafka-1 doesn't run"):
        stack.kill("kafka-1")
    with pytest.raises(InvalidInput, match="0 brokers"):
        Stack(tmp_path / "stack", brokers=0)
    with pytest.raises(NotFound, match="no stack in"):
        Stack.open(tmp_path / "nowhere")
    refused = _command("up", tmp_path / "stack", "--port=kafak=1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: no port 'kafak=1'")


def test_a_folder_keeps_its_numbers_of_members(tmp_path):
    """Data that are spread over three brokers are never opened by one."""
    data = tmp_path / "stack"
    data.mkdir()
    layout = {"brokers": 3, "nodes": 1, "ports": {"kafka": 21092}, "kafka_cluster": "x" * 22}
    (data / "stack.json").write_text(json.dumps(layout))
    assert len(Stack(data).kafka.split(",")) == 3
    assert Stack(data).ports.kafka == 21092
    with pytest.raises(InvalidInput, match="3 brokers and 1 nodes, not 1 and 1"):
        Stack(data, brokers=1)
    (data / "stack.json").write_text("{")
    with pytest.raises(Corrupt, match=r"stack\.json"):
        Stack(data)


def test_a_taken_port_is_told(tmp_path):
    """A member is not started beside another program that listens on its port."""
    blocked = Stack(tmp_path / "two", ports=Ports.free())
    port = blocked.ports.weaviate_grpc
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(Unavailable, match=f"port {port}"),
    ):
        blocked.up("weaviate")
    assert not blocked.members["weaviate-1"].running


def test_free_ports_are_free_and_different():
    """Each purpose gets a port of its own, that nobody listens on at any loopback address."""
    ports = [*vars(Ports.free()).values()]
    assert len(set(ports)) == len(ports)
    assert all(is_free(port, f"127.0.0.{n}") for port in ports for n in (1, 2, 3))


def test_a_process_is_known_by_its_start_too(tmp_path):
    """A process number that the system gave to another process is not taken for the member's."""
    process = processes.launch(["/bin/sleep", "60"], os.environ, tmp_path / "log")
    try:
        processes.remember(process, tmp_path / "process.json")
        assert processes.recall(tmp_path / "process.json") == process
        assert process.running
        other = processes.Process(process.pid, "another start")
        assert not other.running
        other.kill()  # signals nobody
        assert process.running
        assert os.getsid(process.pid) == process.pid
    finally:
        process.kill()
    assert not process.running


def test_a_process_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    """A server that ignores SIGTERM is gone after the deadline."""
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    stubborn = processes.launch(
        ["/bin/sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 0.1; done"],
        os.environ,
        tmp_path / "log",
    )
    wait_until(
        lambda: (tmp_path / "log").read_text() == "trapped\n", within_seconds=10, what="it traps"
    )
    processes.stop([stubborn])
    assert not stubborn.running


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_note_that_was_cut_short_names_no_process(tmp_path, text):
    """A crash while a process was noted leaves nothing that could be signalled."""
    (tmp_path / "process.json").write_text(text)
    assert processes.recall(tmp_path / "process.json") is None


def test_a_half_made_artifact_is_never_used(tmp_path, monkeypatch):
    """What failed leaves nothing behind, and the next call makes it anew."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv(artifacts.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (tools / "go").write_text('#!/bin/sh\necho half > "$GOBIN/tool"\necho broken >&2\nexit 3\n')
    (tools / "go").chmod(0o755)
    with pytest.raises(Unavailable, match=r"ended with 3:\nbroken"):
        artifacts.go("tool", "1", "example.com/tool")
    (lock,) = (tmp_path / "cache").iterdir()
    assert lock.suffix == ".lock"
    lock.with_suffix(".making-x").mkdir()  # as one leaves it that is killed
    (tools / "go").write_text('#!/bin/sh\necho whole > "$GOBIN/tool"\n')
    assert artifacts.go("tool", "1", "example.com/tool").read_text() == "whole\n"
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [
        lock.with_suffix("").suffix,
        ".lock",
    ]


def test_two_callers_make_an_artifact_once(tmp_path, monkeypatch):
    """Whoever comes second waits for the first and takes what it made."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv(artifacts.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    made = tmp_path / "made"
    (tools / "go").write_text(f'#!/bin/sh\necho once >> {made}\nsleep 0.3\ntouch "$GOBIN/tool"\n')
    (tools / "go").chmod(0o755)
    callers = [
        threading.Thread(target=artifacts.go, args=("tool", "1", "example.com/tool"))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert made.read_text() == "once\n"


def test_a_missing_tool_is_named(tmp_path, monkeypatch):
    """Without Maven, Go or Java the error says what to install."""
    monkeypatch.setenv(artifacts.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="mvn was not found") as caught:
        artifacts.maven("kafka", "1", ["group:artifact:1"])
    assert "Maven" in caught.value.hint
