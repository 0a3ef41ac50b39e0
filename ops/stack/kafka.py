"""Kafka in KRaft mode: each member is a broker and a controller."""

import socket
import struct
import subprocess
from pathlib import Path

from ops.stack import artifacts, versions
from ops.stack.engine import Launch, loopback
from ops.stack.ports import Ports

from perdure.errors import Unavailable

_HEAP = "384m"
_PROBE_SECONDS = 2.0

_LOGGING = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
"""


class Kafka:
    """`count` brokers on 127.0.0.1, .2 and .3 of one cluster; three keep every topic threefold."""

    name = "kafka"
    together = True  # one of three alone has no quorum and never becomes ready
    ready_seconds = 240.0

    def __init__(self, count: int, ports: Ports, cluster: str) -> None:
        self.count = count
        self._ports = ports
        self._cluster = cluster

    def address(self, number: int) -> str:
        """The broker's listener for clients and other brokers."""
        return f"{loopback(number)}:{self._ports.kafka}"

    def listens(self, number: int) -> list[tuple[str, int]]:
        """As a broker and as a controller."""
        address = loopback(number)
        return [(address, self._ports.kafka), (address, self._ports.kafka_controller)]

    def prepare(self, number: int, folder: Path) -> Launch:
        """Its properties, and the data folder formatted: it starts on no other."""
        libs = artifacts.maven(
            "kafka",
            versions.KAFKA,
            [
                f"org.apache.kafka:kafka_{versions.SCALA}:{versions.KAFKA}",
                f"org.apache.logging.log4j:log4j-slf4j-impl:{versions.LOG4J}",
            ],
        )
        properties = folder / "server.properties"
        logging = folder / "log4j2.properties"
        properties.write_text(self._properties(number, folder / "data"))
        logging.write_text(_LOGGING)
        run = [
            artifacts.java(),
            f"-Xmx{_HEAP}",
            "-Xms128m",
            "-XX:+UseG1GC",
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:+PerfDisableSharedMem",
            f"-XX:ErrorFile={folder}/crash-%p.log",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={logging}",
            "-cp",
            f"{libs}/*",
        ]
        if not (folder / "data" / "meta.properties").exists():
            _format([*run, "kafka.tools.StorageTool"], self._cluster, properties)
        return Launch([*run, "kafka.Kafka", str(properties)])

    def ready(self, number: int, *, running: int) -> bool:
        """Whether the broker tells clients about itself and as many others as run."""
        try:
            brokers = _brokers(loopback(number), self._ports.kafka)
            return number in brokers and len(brokers) >= running
        except (OSError, struct.error):
            return False

    def _properties(self, number: int, data: Path) -> str:
        address = loopback(number)
        controllers = ",".join(
            f"{n}@{loopback(n)}:{self._ports.kafka_controller}" for n in range(1, self.count + 1)
        )
        copies = min(3, self.count)
        settings: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": controllers,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{address}:{self._ports.kafka},"
            f"CONTROLLER://{address}:{self._ports.kafka_controller}",
            "advertised.listeners": f"PLAINTEXT://{address}:{self._ports.kafka}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": data,
            # A topic is made on purpose or not at all: a typing error is no topic.
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": max(1, copies - 1),
            # Fewer files than the 50 partitions that a large cluster wants.
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.num.partitions": 4,
            "log.segment.bytes": 64 * 2**20,
            # Nothing expires unless a topic says so.
            "log.retention.ms": -1,
            "log.cleaner.dedupe.buffer.size": 16 * 2**20,
            # A group of one consumer need not wait three seconds for others.
            "group.initial.rebalance.delay.ms": 0,
            # How long a killed broker's partitions wait for another leader.
            "broker.session.timeout.ms": 6000,
            "broker.heartbeat.interval.ms": 1000,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())


def _format(run: list[str], cluster: str, properties: Path) -> None:
    """Make the data folder of a broker, which names the cluster it belongs to."""
    command = [*run, "format", "--cluster-id", cluster, "--config", str(properties)]
    command.append("--ignore-formatted")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Unavailable(f"Kafka did not format its data folder:\n{ended.stdout}{ended.stderr}")


def _brokers(address: str, port: int) -> set[int]:
    """The ids of the brokers that a broker knows to be up.

    One metadata request of version 1 for no topic, as the Kafka protocol guide lays it out: a
    length, then API key 3, version, correlation id, client id, topics.
    """
    client = b"perdure-stack"
    request = struct.pack(f">hhih{len(client)}si", 3, 1, 1, len(client), client, 0)
    with socket.create_connection((address, port), timeout=_PROBE_SECONDS) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answers:
            (length,) = struct.unpack(">i", answers.read(4))
            answer = answers.read(length)
    # correlation id, then the brokers: id, host, port, rack
    (count,) = struct.unpack_from(">i", answer, 4)
    brokers, at = set(), 8
    for _ in range(count):
        (broker,) = struct.unpack_from(">i", answer, at)
        at = _after_string(answer, at + 4) + 4
        at = _after_string(answer, at)
        brokers.add(broker)
    return brokers


def _after_string(answer: bytes, at: int) -> int:
    length: int = struct.unpack_from(">h", answer, at)[0]
    return at + 2 + max(0, length)  # -1 stands for no string
