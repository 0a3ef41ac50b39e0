"""Checkpoint objects, for reading: they are written over Kafka."""

from typing import Annotated, Final

from litestar import Controller, get, head
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Response, Stream
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_exponential

from perdure.checkpointer.storage import Known, Manifest
from perdure.errors import Corrupt
from perdure.gateway.messages import OCTETS, StoredBody
from perdure.gateway.service import POLL_SECONDS_MAX, Gateway

LOOK_SECONDS_MAX: Final = 0.25
"""The longest pause between two looks whether an object is stored."""


class ObjectRoutes(Controller):
    """`ports.Blobs`, and what became of uploads."""

    path = "/v1/objects/{digest:str}"

    @head(summary="How many bytes an object takes where it is stored")
    async def size(
        self, *, gateway: NamedDependency[Gateway], digest: FromPath[str]
    ) -> Response[None]:
        """As the length of the content."""
        size = await gateway.sources.objects.size(digest)
        return Response(None, headers={"content-length": str(size)})

    @get(summary="The stored bytes of an object: one zstd frame")
    async def object(self, *, gateway: NamedDependency[Gateway], digest: FromPath[str]) -> Stream:
        """With its length, so that a cut is noticed."""
        objects = gateway.sources.objects
        size = await objects.size(digest)
        return Stream(
            objects.stream(digest), headers={"content-length": str(size)}, media_type=OCTETS
        )

    @get("/stored", summary="Whether an uploaded object is stored")
    async def stored(
        self,
        *,
        gateway: NamedDependency[Gateway],
        digest: FromPath[str],
        upload: FromQuery[str] = "",
        wait: Annotated[float, QueryParameter(name="timeout", ge=0, le=POLL_SECONDS_MAX)] = 0.0,
    ) -> StoredBody:
        """The bytes that it takes, as soon as it is; nothing after `timeout` seconds.

        An error where the object of this `upload` was refused.
        """
        known = await _known(gateway.sources.manifest, digest, upload, wait)
        if known.object is not None:
            return StoredBody(known.object.stored)
        reason = known.refused.get(upload)
        if reason is not None:
            raise Corrupt(
                f"the upload of object {digest} was refused: {reason}", hint="upload it again"
            )
        return StoredBody(None)


async def _known(manifest: Manifest, digest: str, upload: str, wait_seconds: float) -> Known:
    def open_yet(known: Known) -> bool:
        return known.object is None and upload not in known.refused

    looking = AsyncRetrying(
        retry=retry_if_result(open_yet),
        stop=stop_after_delay(wait_seconds),
        wait=wait_exponential(multiplier=0.01, max=LOOK_SECONDS_MAX),
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )
    found: Known = await looking(manifest.find, digest)
    return found
