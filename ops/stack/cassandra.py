"""Cassandra: nodes of one ring, each with its own folder, configuration and address."""

import socket
import struct
from io import BufferedRWPair
from pathlib import Path

from ops.stack import artifacts, versions
from ops.stack.engine import Launch, loopback
from ops.stack.ports import Ports

_HEAP_ALONE = "1024m"
_HEAP_OF_SEVERAL = "512m"
_RING_DELAY_MS = 20_000
"""For twice as long a node waits until its seed, or (after once as long) another that it knows, has
told it of the ring; no longer than it takes. Then it ends. The seed itself has nobody to wait for,
and would wait all of the time."""
_PROBE_SECONDS = 5.0
_COPIES = 3  # of the keyspace below, whatever the number of nodes
_ONE, _QUORUM, _ALL = 0x0001, 0x0004, 0x0005  # as the protocol numbers them
_DISTRIBUTED = "SELECT * FROM system_distributed.view_build_status LIMIT 1"
_READ = {_ONE: "SELECT key FROM system.local", _QUORUM: _DISTRIBUTED, _ALL: _DISTRIBUTED}

_LOGGING = """\
<configuration>
  <appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%date{ISO8601} %level %msg \\(%logger{20}\\)%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="STDOUT"/></root>
</configuration>
"""

# The doors into the JDK that Cassandra 5.0 uses on Java 17 (its own jvm17-server.options).
_EXPORTS = (
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "java.rmi/sun.rmi.transport.tcp",
    "jdk.unsupported/sun.misc",
    "jdk.compiler/com.sun.tools.javac.file",
)
_OPENS = (
    "java.base/java.lang.module",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "jdk.management/com.sun.management.internal",
    "java.base/sun.nio.ch",
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.nio",
)


class Cassandra:
    """`count` nodes on 127.0.0.1, .2 and .3 of one ring; the first is the seed."""

    name = "cassandra"
    together = False  # each node joins the ring of those before it
    ready_seconds = 240.0

    def __init__(self, count: int, ports: Ports) -> None:
        self.count = count
        self._ports = ports

    def address(self, number: int) -> str:
        """Where the node speaks CQL."""
        return f"{loopback(number)}:{self._ports.cassandra}"

    def listens(self, number: int) -> list[tuple[str, int]]:
        """For clients and for other nodes."""
        address = loopback(number)
        return [(address, self._ports.cassandra), (address, self._ports.cassandra_storage)]

    def prepare(self, number: int, folder: Path) -> Launch:
        """Its `cassandra.yaml` and the configuration of its log."""
        libs = artifacts.maven(
            "cassandra",
            versions.CASSANDRA,
            [f"org.apache.cassandra:cassandra-all:{versions.CASSANDRA}"],
        )
        conf = folder / "conf"
        conf.mkdir(exist_ok=True)
        (conf / "cassandra.yaml").write_text(self._yaml(number))
        (conf / "logback.xml").write_text(_LOGGING)
        (agent,) = libs.glob("jamm-*.jar")
        heap = _HEAP_ALONE if self.count == 1 else _HEAP_OF_SEVERAL
        return Launch(
            [
                artifacts.java(),
                f"-Xms{heap}",
                f"-Xmx{heap}",
                "-Xss256k",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=200",
                "-XX:MaxDirectMemorySize=256m",
                "-XX:+ExitOnOutOfMemoryError",
                "-XX:+PerfDisableSharedMem",
                f"-XX:ErrorFile={folder}/crash-%p.log",
                "-Djava.net.preferIPv4Stack=true",
                "-Djdk.attach.allowAttachSelf=true",
                "-Dio.netty.tryReflectionSetAccessible=true",
                *(f"--add-exports={name}=ALL-UNNAMED" for name in _EXPORTS),
                *(f"--add-opens={name}=ALL-UNNAMED" for name in _OPENS),
                f"-javaagent:{agent}",
                f"-Dcassandra.storagedir={folder / 'data'}",
                f"-Dcassandra.ring_delay_ms={_RING_DELAY_MS if number > 1 else 0}",
                # Every node starts beside its seed: there is no gossip that has to settle.
                "-Dcassandra.skip_wait_for_gossip_to_settle=0",
                "-Dcassandra.consistent.rangemovement=false",
                # Otherwise it closes what its log is printed to.
                "-Dcassandra-foreground=yes",
                "-cp",
                f"{conf}:{libs}/*",
                "org.apache.cassandra.service.CassandraDaemon",
            ]
        )

    def ready(self, number: int, *, running: int) -> bool:
        """Whether the node speaks CQL, and reads from the nodes that run if they are a majority.

        What it reads is kept threefold by Cassandra itself.
        """
        if running == 1 or running * 2 <= self.count:
            consistency = _ONE
        else:
            consistency = _ALL if running == self.count >= _COPIES else _QUORUM
        try:
            return _reads(loopback(number), self._ports.cassandra, consistency)
        except (OSError, struct.error):
            return False

    def _yaml(self, number: int) -> str:
        address = loopback(number)
        seed = f"{loopback(1)}:{self._ports.cassandra_storage}"
        return f"""\
cluster_name: perdure
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
num_tokens: 4
# The nodes of a new ring have nothing to copy, and copying waits for `ring_delay_ms` each time.
auto_bootstrap: false
# The stack itself waits until the nodes know of each other.
block_for_peers_timeout_in_secs: 1
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "{seed}"
listen_address: {address}
storage_port: {self._ports.cassandra_storage}
rpc_address: {address}
native_transport_port: {self._ports.cassandra}
start_native_transport: true

# A write is acknowledged when it is on disk; writes that wait together share a sync. Beside
# `periodic`, which acknowledges before: 0.3 ms more for a write alone, as fast in batches.
commitlog_sync: batch
commitlog_segment_size: 32MiB
commitlog_total_space: 256MiB

# Dropping a table frees its disk: nobody restores these data from a snapshot.
auto_snapshot: false

# A laptop's memory and cores.
memtable_heap_space: 128MiB
memtable_offheap_space: 128MiB
key_cache_size: 16MiB
counter_cache_size: 0MiB
file_cache_size: 64MiB
networking_cache_size: 32MiB
concurrent_reads: 8
concurrent_writes: 16
concurrent_counter_writes: 2
concurrent_compactors: 1
compaction_throughput: 64MiB/s
"""


def _reads(address: str, port: int, consistency: int) -> bool:
    """Whether a node answers a query with rows: version 4 of the CQL binary protocol."""
    startup, ready, query, result = 0x01, 0x02, 0x07, 0x08
    options = struct.pack(">H", 1) + _string("CQL_VERSION") + _string("3.0.0")
    text = _READ[consistency].encode()
    question = struct.pack(f">i{len(text)}sHB", len(text), text, consistency, 0)
    with (
        socket.create_connection((address, port), timeout=_PROBE_SECONDS) as connection,
        connection.makefile("rwb") as stream,
    ):
        return (
            _answer(stream, startup, options) == ready
            and _answer(stream, query, question) == result
        )


def _answer(stream: BufferedRWPair, opcode: int, body: bytes) -> int:
    """Send one frame; the opcode of the answer."""
    header = ">BBhBi"  # version, flags, stream, opcode, length of the body
    stream.write(struct.pack(header, 4, 0, 0, opcode, len(body)) + body)
    stream.flush()
    answered: tuple[int, ...] = struct.unpack(header, stream.read(struct.calcsize(header)))
    stream.read(answered[4])
    return answered[3]


def _string(text: str) -> bytes:
    return struct.pack(f">H{len(text)}s", len(text), text.encode())
