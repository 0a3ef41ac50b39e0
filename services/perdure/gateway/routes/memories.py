"""The memory index of a store."""

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from perdure.errors import InvalidData
from perdure.gateway.messages import (
    AddedBody,
    AddVectors,
    FilterBody,
    MemoriesQuestion,
    MemoryQuestion,
    SearchQuestion,
    VectorsBody,
    spans_of,
)
from perdure.gateway.service import Gateway
from perdure.memorizer.memory import Embedded, Filter, Hit, Memory
from perdure.model.event import utc

VECTORS_BYTES_MAX = 64 * 1024 * 1024
"""The most bytes of one body with vectors."""


class MemoryRoutes(Controller):
    """`memorizer.memory.MemoryIndex` of a store."""

    path = "/v1/stores/{store:str}/memories"

    @post("/unembedded", status_code=200, summary="Memories without a vector")
    async def unembedded(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        data: JSONBody[MemoriesQuestion],
    ) -> list[Memory]:
        """Up to `limit` of those in `spans`, forgotten ones too."""
        index = gateway.of(store).memories()
        return await index.unembedded(spans_of(data.spans), data.embedder, data.limit)

    @post(
        "/vectors",
        status_code=200,
        request_max_body_size=VECTORS_BYTES_MAX,
        summary="Store vectors of memories",
    )
    async def vectors(
        self, *, gateway: NamedDependency[Gateway], store: FromPath[str], data: JSONBody[AddVectors]
    ) -> AddedBody:
        """All or none; a memory that has vectors of this embedder keeps them."""
        embedded = [_embedded(body) for body in data.embedded]
        return AddedBody(await gateway.of(store).memories().add_vectors(data.embedder, embedded))

    @post("/search", status_code=200, summary="Memories that fit a query best")
    async def search(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        data: JSONBody[SearchQuestion],
    ) -> list[Hit]:
        """The `k` best of those visible in `spans` that pass `filter`, best first."""
        import numpy as np

        index = gateway.of(store).memories()
        return await index.search(
            spans_of(data.spans),
            data.text,
            np.frombuffer(data.vector, dtype="<f4"),
            data.embedder,
            k=data.k,
            filter=None if data.filter is None else _filter(data.filter),
        )

    @post("/get", status_code=200, summary="A memory by its id")
    async def get(
        self,
        *,
        gateway: NamedDependency[Gateway],
        store: FromPath[str],
        data: JSONBody[MemoryQuestion],
    ) -> Memory:
        """Where it is visible in `spans`."""
        return await gateway.of(store).memories().get(spans_of(data.spans), data.id)


def _embedded(body: VectorsBody) -> Embedded:
    import numpy as np

    if body.parts < 0 or body.dimensions < 0 or len(body.data) != body.parts * body.dimensions * 4:
        raise InvalidData(
            f"the vectors of {body.agent}@{body.sequence} have {len(body.data)} bytes, "
            f"which are not {body.parts} x {body.dimensions} floats of 32 bits"
        )
    rows = np.frombuffer(body.data, dtype="<f4").reshape(body.parts, body.dimensions)
    return Embedded(body.agent, body.sequence, rows)


def _filter(body: FilterBody) -> Filter:
    return Filter(
        source=body.source,
        since=None if body.since is None else utc("since", body.since),
        until=None if body.until is None else utc("until", body.until),
        where=body.where,
    )
