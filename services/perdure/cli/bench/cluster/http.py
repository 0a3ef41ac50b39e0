"""States over HTTP, as a program in any language asks for them."""

import aiohttp
import msgspec

from perdure.errors import PerdureError
from perdure.model.projection import DEFAULT
from perdure.model.state import State


class _Answer(msgspec.Struct):
    """What the state route answers with, as far as it is needed."""

    sequence: int
    state: msgspec.Raw


async def state_of(
    client: aiohttp.ClientSession, gateway: str, store: str, agent: str
) -> tuple[int, State]:
    """The latest state of an agent as an object, and its sequence.

    Raises:
        PerdureError: the gateway answers something else.
    """
    async with client.get(f"{gateway}/v1/stores/{store}/agents/{agent}/state") as answer:
        body = await answer.read()
        if not answer.ok:
            raise PerdureError(f"the gateway answered {answer.status}: {body[:500]!r}")
    found = msgspec.json.decode(body, type=_Answer)
    return found.sequence, DEFAULT.decode(bytes(found.state))
