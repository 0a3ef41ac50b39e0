"""Kafka, Cassandra and Weaviate as processes of this machine, with their data in one folder.

::

    data/
    ├── stack.json          what was started here: ports, numbers of members, the Kafka cluster's id
    ├── kafka-1/            a folder for each member: configuration and data,
    │   ├── log             what it printed, of all its runs,
    │   └── process.json    and which process it is
    └── …

Invariants:

- Everything that starts or stops a member holds the lock of the data folder.
- A member is running when the noted process is: number and start time.
- The number of brokers and nodes of a data folder never changes: their data are spread over them.
"""

import json
import logging
import os
import shutil
import signal as signals
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

from ops.stack import processes
from ops.stack.cassandra import Cassandra
from ops.stack.engine import Engine
from ops.stack.kafka import Kafka
from ops.stack.locks import locked
from ops.stack.ports import Ports, is_free
from ops.stack.waiting import wait_until
from ops.stack.weaviate import Weaviate

from perdure.errors import Corrupt, InvalidInput, NotFound, Unavailable

_log = logging.getLogger(__name__)

ENGINES = ("cassandra", "kafka", "weaviate")
MEMBERS_MAX = 9


@dataclass(frozen=True)
class Member:
    """One server process of the stack, as it is now."""

    name: str
    """`kafka-1`, `cassandra-2`, `weaviate-1`"""
    address: str
    """where clients reach it: host and port"""
    folder: Path
    """its configuration and data"""
    pid: int | None
    """the number of its process; `None` when it doesn't run"""

    @property
    def running(self) -> bool:
        """Whether its process runs (a suspended one does)."""
        return self.pid is not None

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "log"


class Stack:
    """The engines whose data are in one folder.

    `brokers` and `nodes` say how many members Kafka and Cassandra have; they listen on 127.0.0.1,
    127.0.0.2 and so on. What isn't said is as it was in a folder that was used before; in a new one
    it is one member each, and the engines' usual ports. Raises `InvalidInput` when the folder was
    made for other numbers of members, or runs on other ports.
    """

    def __init__(
        self,
        data: Path,
        *,
        brokers: int | None = None,
        nodes: int | None = None,
        ports: Ports | None = None,
    ) -> None:
        self.data = data.absolute()
        known = _read_layout(self.data / "stack.json")
        if brokers is None:
            brokers = known.brokers if known else 1
        if nodes is None:
            nodes = known.nodes if known else 1
        for what, count in (("brokers", brokers), ("nodes", nodes)):
            if not 1 <= count <= MEMBERS_MAX:
                raise InvalidInput(f"{count} {what}", hint=f"from 1 to {MEMBERS_MAX}")
        if known is not None and (known.brokers, known.nodes) != (brokers, nodes):
            raise InvalidInput(
                f"{self.data} holds {known.brokers} brokers and {known.nodes} nodes,"
                f" not {brokers} and {nodes}",
                hint="wipe it first, or use another folder",
            )
        self.ports = ports or (known.ports if known else Ports())
        self._layout = _Layout(
            brokers=brokers,
            nodes=nodes,
            ports=self.ports,
            kafka_cluster=known.kafka_cluster if known else uuid4().hex[:22],
        )
        self._engines: dict[str, Engine] = {
            "kafka": Kafka(brokers, self.ports, self._layout.kafka_cluster),
            "cassandra": Cassandra(nodes, self.ports),
            "weaviate": Weaviate(self.ports),
        }
        if (
            known is not None
            and known.ports != self.ports
            and any(member.running for member in self.members.values())
        ):
            raise InvalidInput(
                f"{self.data} runs on other ports", hint="take it down first, then change them"
            )

    @classmethod
    def open(cls, data: Path) -> "Stack":
        """The stack of a folder that was used before; raises `NotFound` when it was not."""
        if _read_layout(data / "stack.json") is None:
            raise NotFound(f"no stack in {data}", hint="`make stack` starts one")
        return cls(data)

    @property
    def kafka(self) -> str:
        """The bootstrap servers, separated by commas."""
        return ",".join(self._addresses("kafka"))

    @property
    def cassandra(self) -> list[str]:
        """The addresses of the nodes, without the port."""
        return [address.partition(":")[0] for address in self._addresses("cassandra")]

    @property
    def cassandra_port(self) -> int:
        """The port where every node speaks CQL."""
        return self.ports.cassandra

    @property
    def weaviate(self) -> str:
        """Host and port of the REST interface."""
        return self._addresses("weaviate")[0]

    @property
    def weaviate_grpc_port(self) -> int:
        """The port of the gRPC interface, at the same host."""
        return self.ports.weaviate_grpc

    @property
    def members(self) -> Mapping[str, Member]:
        """Every member by its name, as it is now."""
        return MappingProxyType({name: self._member(name) for name in self._names()})

    def ready(self, member: str) -> bool:
        """Whether a member answers clients now."""
        engine, number = self._place(member)
        return self._process(member) is not None and engine.ready(
            number, running=self._running(engine)
        )

    def up(self, *engines: str) -> None:
        """Start what doesn't run of these engines (all by default); return when they are ready.

        Raises `Unavailable` when a member ends or is not ready in time; what was started stays.
        """
        chosen = [self._engine(name) for name in engines or ENGINES]
        with self._alone():
            # What needs nobody starts at once, so that the engines start beside each other.
            for engine in chosen:
                for number in range(1, (engine.count if engine.together else 1) + 1):
                    self._launch(engine, number)
            for engine in chosen:
                for number in range(1, engine.count + 1):
                    self._launch(engine, number)
                    self._await(engine, number)
            # The first know of the last, too.
            for engine in chosen:
                for number in range(1, engine.count + 1):
                    self._await(engine, number)

    def down(self) -> None:
        """Stop everything of this data folder cleanly; the data stay."""
        if not self.data.exists():
            return
        with self._alone():
            self._stop(self._names())

    def wipe(self) -> None:
        """Stop everything and delete the data folder."""
        if not self.data.exists():
            return
        with self._alone():
            for name in self._names():
                if process := self._process(name):
                    process.kill()  # its data go as well: nothing needs to be saved
            shutil.rmtree(self.data)

    def kill(self, member: str, signal: signals.Signals = signals.SIGKILL) -> None:
        """Send one member a signal; return when a killed one is gone, a suspended one is still.

        SIGSTOP suspends it and SIGCONT wakes it up. Raises `NotFound` when it doesn't run.
        """
        process = self._process(self._known(member))
        if process is None:
            raise NotFound(f"{member} doesn't run", hint="start it first")
        if signal == signals.SIGKILL:
            process.kill()
        elif signal == signals.SIGSTOP:
            process.suspend()
        else:
            process.signal(signal)

    def start(self, member: str) -> None:
        """Start one member on the data it has; return when it and those that run work together."""
        engine, number = self._place(member)
        with self._alone():
            self._launch(engine, number)
            self._await(engine, number)
            # The others know that it is back: one of them may go now.
            for other in range(1, engine.count + 1):
                if self._process(_name(engine, other)) is not None:
                    self._await(engine, other)

    def stop(self, member: str) -> None:
        """Stop one member cleanly; nothing happens when it doesn't run."""
        name = self._known(member)
        with self._alone():
            self._stop([name])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with locked(self.data / "lock"):
            yield

    def _launch(self, engine: Engine, number: int) -> None:
        name = _name(engine, number)
        if self._process(name) is not None:
            return
        for address, port in engine.listens(number):
            if not is_free(port, address):
                raise Unavailable(
                    f"{name} needs port {port} of {address or 'every address'}: it is taken",
                    hint="stop what listens there, or choose other ports",
                )
        _log.info("starting %s", name)
        folder = self.data / name
        folder.mkdir(parents=True, exist_ok=True)
        _write_layout(self.data / "stack.json", self._layout)
        launch = engine.prepare(number, folder)
        environment = {**os.environ, **launch.environment}
        process = processes.launch(launch.command, environment, folder / "log")
        processes.remember(process, folder / "process.json")

    def _await(self, engine: Engine, number: int) -> None:
        name = _name(engine, number)
        hint = f"its log is {self.data / name / 'log'}"

        def ready() -> bool:
            if self._process(name) is None:
                raise Unavailable(f"{name} ended while it started", hint=hint)
            return engine.ready(number, running=self._running(engine))

        wait_until(ready, within_seconds=engine.ready_seconds, what=f"{name} is ready", hint=hint)

    def _stop(self, names: Iterable[str]) -> None:
        running = [process for name in names if (process := self._process(name))]
        processes.stop(running)

    def _process(self, name: str) -> processes.Process | None:
        process = processes.recall(self.data / name / "process.json")
        return process if process is not None and process.running else None

    def _running(self, engine: Engine) -> int:
        numbers = range(1, engine.count + 1)
        return sum(self._process(_name(engine, number)) is not None for number in numbers)

    def _member(self, name: str) -> Member:
        engine, number = self._place(name)
        process = self._process(name)
        return Member(
            name, engine.address(number), self.data / name, process.pid if process else None
        )

    def _names(self) -> list[str]:
        return [
            _name(engine, number)
            for engine in self._engines.values()
            for number in range(1, engine.count + 1)
        ]

    def _addresses(self, name: str) -> list[str]:
        engine = self._engines[name]
        return [engine.address(number) for number in range(1, engine.count + 1)]

    def _known(self, member: str) -> str:
        if member not in self._names():
            raise InvalidInput(
                f"no member {member!r} in {self.data}", hint=f"one of {', '.join(self._names())}"
            )
        return member

    def _place(self, member: str) -> tuple[Engine, int]:
        name, _, number = self._known(member).rpartition("-")
        return self._engines[name], int(number)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            raise InvalidInput(f"no engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
        return self._engines[name]


def _name(engine: Engine, number: int) -> str:
    return f"{engine.name}-{number}"


@dataclass(frozen=True)
class _Layout:
    brokers: int
    nodes: int
    ports: Ports
    kafka_cluster: str


def _read_layout(path: Path) -> _Layout | None:
    try:
        noted = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Corrupt(f"{path} is no JSON: {error}", hint="delete the folder") from error
    return _Layout(**{**noted, "ports": Ports(**noted["ports"])})


def _write_layout(path: Path, layout: _Layout) -> None:
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(layout), indent=2))
    written.rename(path)
