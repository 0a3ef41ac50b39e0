"""Weaviate: one node that takes vectors as they are given, with no module that makes them.

Its REST interface, gossip and consensus listen on loopback alone. Its gRPC port and the port for
other nodes have no setting for an address and listen on every one: the first takes anonymous
requests like the REST interface, the second asks for a password that nobody knows.
"""

import http.client
import secrets
from pathlib import Path

from ops.stack import artifacts, versions
from ops.stack.engine import Launch, loopback
from ops.stack.ports import Ports

_PROBE_SECONDS = 2.0


class Weaviate:
    """One Weaviate on 127.0.0.1."""

    name = "weaviate"
    count = 1
    together = True
    ready_seconds = 60.0

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def address(self, number: int) -> str:
        """Its REST interface."""
        return f"{loopback(number)}:{self._ports.weaviate}"

    def listens(self, number: int) -> list[tuple[str, int]]:
        """The ports at 127.0.0.1, and the two at every address."""
        ports = self._ports
        address = loopback(number)
        own = [ports.weaviate, ports.weaviate_gossip, ports.weaviate_raft, ports.weaviate_raft_rpc]
        everywhere = [ports.weaviate_grpc, ports.weaviate_data]
        return [*((address, port) for port in own), *(("", port) for port in everywhere)]

    def prepare(self, number: int, folder: Path) -> Launch:
        """Everything is said in its environment; it has no file of settings."""
        program = artifacts.go(
            "weaviate",
            versions.WEAVIATE,
            "github.com/weaviate/weaviate/cmd/weaviate-server",
        )
        ports = self._ports
        address = loopback(number)
        return Launch(
            [
                str(program),
                "--scheme=http",
                f"--host={address}",
                f"--port={ports.weaviate}",
            ],
            {
                "PERSISTENCE_DATA_PATH": str(folder / "data"),
                "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
                "DEFAULT_VECTORIZER_MODULE": "none",
                "ENABLE_MODULES": "",
                # Its newer lists of words lose the best matches of recent writes in this version.
                "USE_INVERTED_SEARCHABLE": "false",
                "DISABLE_TELEMETRY": "true",
                "GO_PROFILING_DISABLE": "true",
                "PROMETHEUS_MONITORING_ENABLED": "false",
                "LOG_LEVEL": "info",
                "GRPC_PORT": f"{ports.weaviate_grpc}",
                "CLUSTER_HOSTNAME": "weaviate-1",
                "CLUSTER_BIND_ADDR": address,
                "CLUSTER_ADVERTISE_ADDR": address,
                "CLUSTER_GOSSIP_BIND_PORT": f"{ports.weaviate_gossip}",
                "CLUSTER_DATA_BIND_PORT": f"{ports.weaviate_data}",
                "CLUSTER_BASIC_AUTH_USERNAME": "perdure",
                "CLUSTER_BASIC_AUTH_PASSWORD": secrets.token_hex(),
                "RAFT_PORT": f"{ports.weaviate_raft}",
                "RAFT_INTERNAL_RPC_PORT": f"{ports.weaviate_raft_rpc}",
                "RAFT_JOIN": f"weaviate-1:{ports.weaviate_raft}",
                "RAFT_BOOTSTRAP_EXPECT": "1",
                # One node need not wait for the votes of others.
                "RAFT_TIMEOUTS_MULTIPLIER": "1",
            },
        )

    def ready(self, number: int, *, running: int) -> bool:  # noqa: ARG002 - it is always one
        """Whether it says that it can serve."""
        connection = http.client.HTTPConnection(
            loopback(number), self._ports.weaviate, timeout=_PROBE_SECONDS
        )
        try:
            connection.request("GET", "/v1/.well-known/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
