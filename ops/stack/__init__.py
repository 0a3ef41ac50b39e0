"""The real engines without Docker: Kafka, Cassandra and Weaviate as processes of this machine.

``python -m ops.stack up`` (``make stack``) starts them; tests use `Stack`.
"""

from ops.stack.ports import Ports
from ops.stack.stack import Member, Stack

__all__ = ["Member", "Ports", "Stack"]
