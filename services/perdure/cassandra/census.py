"""Every agent of a generation, of all stores: for what looks at all of them."""

from collections.abc import AsyncGenerator
from typing import Final

from perdure.cassandra.session import Session

PAGE: Final = 1000
"""Agents of one batch."""


async def all_agents(
    session: Session, keyspace: str
) -> AsyncGenerator[list[tuple[str, str]], None]:
    """Store and name of every agent, in no order; agents that have nothing yet may be among them.

    Raises:
        Unreachable: not enough nodes answered in time.
    """
    statement = await session.prepare(f"SELECT store, agent FROM {keyspace}.agents")
    async for page in session.pages(statement, (), rows=PAGE):
        yield [(store, agent) for store, agent in page]
