"""The ports the engines listen on: the usual ones, or free ones for tests."""

import errno
import random
import socket
from dataclasses import dataclass, fields
from typing import Self

from perdure.errors import Unavailable

FREE_PORTS = range(20_000, 32_000)
"""Below the range that operating systems take for outgoing connections (Linux: from 32,768, macOS:
from 49,152): a port that is free while its server is down stays free until it starts again."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """One port for each purpose; members of one engine differ by address (127.0.0.1, .2, .3)."""

    kafka: int = 9092
    kafka_controller: int = 9093
    cassandra: int = 9042
    cassandra_storage: int = 7000
    weaviate: int = 8080
    weaviate_grpc: int = 50051
    weaviate_gossip: int = 7102
    weaviate_data: int = 7103
    weaviate_raft: int = 8300
    weaviate_raft_rpc: int = 8301

    @classmethod
    def free(cls) -> Self:
        """Ports that nobody listens on now, at any address."""
        chosen: set[int] = set()
        names = [field.name for field in fields(cls)]
        while len(chosen) < len(names):
            port = random.choice(FREE_PORTS)  # noqa: S311 - no secret: it only has to be free
            if port not in chosen and is_free(port):
                chosen.add(port)
        return cls(**dict(zip(names, chosen, strict=True)))


def is_free(port: int, address: str = "") -> bool:
    """Whether nobody listens on the port at the address (by default: at any address).

    Raises `Unavailable` when the machine doesn't have the address or allow the port.
    """
    with socket.socket() as probe:
        # As servers do: connections that are only waiting out their time are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise Unavailable(
                f"nothing can listen at {address}:{port}: {error.strerror}",
                hint="addresses beside 127.0.0.1 may have to be added to the loopback device",
            ) from error
    return True
