"""The route that answers with a state, for every service that has states at hand."""

import msgspec
from litestar import Controller, get
from litestar.response import Response

from perdure.model import names
from perdure.model.projection import DEFAULT
from perdure.projector.asking import Desk


class StateRoutes(Controller):
    """State on demand."""

    path = "/v1/stores/{store:str}/agents/{namespace:str}/{name:str}/state"

    @get(summary="A state of an agent: the latest, after a sequence, or at a time")
    async def state(
        self,
        *,
        desk: Desk,
        store: str,
        namespace: str,
        name: str,
        seq: int | None = None,
        time: str | None = None,
        before: str | None = None,
        projection: str = DEFAULT.name,
        at_least: str | None = None,
        fresh: bool = False,
    ) -> Response[bytes]:
        """JSON: `agent`, `sequence`, `projection` and `state`, which is what the projection gives.

        `at_least` is a position that a write was answered with: the state includes it. With `fresh`
        it includes everything that was acknowledged before the question.
        """
        agent = names.agent_name(f"{namespace}/{name}")
        answer = await desk.answer(
            store,
            agent,
            projection=projection,
            seq=seq,
            time=time,
            before=before,
            at_least=at_least,
            fresh=fresh,
        )
        # Around the state's own bytes, which are kept encoded.
        head = msgspec.json.encode(
            {"agent": agent, "sequence": answer.sequence, "projection": projection}
        )
        body = b"".join((head[:-1], b',"state":', answer.data, b"}"))
        return Response(body, media_type="application/json")
