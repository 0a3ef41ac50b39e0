"""State checkpoints: kept for whoever folds, and never needed."""

from litestar import Controller, Request, get, post, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.response import Response

from perdure.gateway.messages import (
    AGENT_HEADER,
    OCTETS,
    SEQUENCE_HEADER,
    NearestQuestion,
    spans_of,
)
from perdure.gateway.service import Gateway
from perdure.model import names
from perdure.model.event import checked_sequence
from perdure.ports import Finding, SavedState

STATE_BYTES_MAX = 256 * 1024 * 1024
"""The largest state that is taken."""


class StateTableRoutes(Controller):
    """`ports.StateTable` of a store."""

    path = "/v1/stores/{store:str}"

    @post("/states/nearest", status_code=200, summary="The latest saved state in some spans")
    async def nearest(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        data: JSONBody[NearestQuestion],
    ) -> Response[bytes]:
        """Its bytes; of which agent and sequence it is, headers say. Without content: none."""
        found = await gateway.of(store).states.nearest(
            data.projection, data.key, spans_of(data.spans)
        )
        if found is None:
            return Response(b"", status_code=204)
        headers = {AGENT_HEADER: found.agent, SEQUENCE_HEADER: str(found.sequence)}
        return Response(found.data, media_type=OCTETS, headers=headers)

    @put(
        "/agents/{namespace:str}/{name:str}/states/{projection:str}/{sequence:int}",
        status_code=204,
        request_max_body_size=STATE_BYTES_MAX,
        summary="Keep the state of a projection after a sequence",
    )
    async def save(
        self,
        *,
        gateway: NamedDependency[Gateway],
        request: Request[object, object, State],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
        projection: FromPath[str],
        sequence: FromPath[int],
        key: FromQuery[str],
    ) -> None:
        """The body is the state as the projection encodes it, `key` identifies the code of that."""
        agent = names.agent_name(f"{namespace}/{name}")
        names.event_type(projection)
        checked_sequence("sequence", sequence, least=1)
        saved = SavedState(agent, sequence, projection, key, await request.body())
        await gateway.of(store).states.save(saved)

    @get(
        "/agents/{namespace:str}/{name:str}/states/check",
        summary="Which saved states of an agent are damaged",
    )
    async def check(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        namespace: FromPath[str],
        name: FromPath[str],
    ) -> list[Finding]:
        """None of them is needed: a state is folded again."""
        return await gateway.of(store).states.check(names.agent_name(f"{namespace}/{name}"))
