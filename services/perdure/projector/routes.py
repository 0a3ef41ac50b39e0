"""The route that answers with a state, for every service that has states at hand."""

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
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
        desk: NamedDependency[Desk],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
        seq: FromQuery[int | None] = None,
        time: FromQuery[str | None] = None,
        before: FromQuery[str | None] = None,
        projection: FromQuery[str] = DEFAULT.name,
        at_least: FromQuery[str | None] = None,
        fresh: FromQuery[bool] = False,
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
