"""Recall among an agent's messages, which no index of the store holds.

Invariants:
- Nothing is written to the store: messages are indexed in main memory, for as long as the store
  is open, so a second question embeds only what was said since the first.
- An event is read only where it lies on a timeline that was asked about, and read once.
- At most `MESSAGES_MAX` messages are searched at a time, the newest ones, and about `KEPT_MAX`
  are kept.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from perdure.errors import StoreClosed
from perdure.memorizer.embedder import Embedder
from perdure.memorizer.memory import Filter, Hit, ScratchIndex, checked_k
from perdure.memorizer.messages import MESSAGES_MAX, as_stored
from perdure.memorizer.recall import checked_text, recall
from perdure.model.timeline import Lineage, Span, onward, timeline
from perdure.model.upcast import Upcasters
from perdure.ports import EventTable

KEPT_MAX: Final = 4 * MESSAGES_MAX
"""With more messages than that, of all agents together, what is indexed is dropped."""

BLOCK_EVENTS: Final = 1_024
"""How many events are read at once on the way from the newest message back."""


@dataclass(slots=True)
class _Block:
    """What is known of some events in a row: up to where they are read, which are messages."""

    read: int
    found: list[int] = field(default_factory=list)


class MessageSearch:
    """Recall among messages, of all agents of a store. Use from one event loop.

    One question at a time: two that came at once would embed the same messages twice.
    """

    def __init__(
        self,
        events: EventTable,
        scratch: Callable[[], ScratchIndex],
        embedder: Embedder,
        upcasters: Upcasters,
    ) -> None:
        self._events = events
        self._scratch = scratch
        self._embedder = embedder
        self._upcasters = upcasters
        self._upcasters_key = upcasters.key
        self._lock = asyncio.Lock()
        self._closed = False
        self._index: ScratchIndex | None = None
        # By agent, first sequence of the span, and number of the block: spans that start at the
        # same event hold the same events, as far as they go.
        self._blocks: dict[tuple[str, int, int], _Block] = {}
        self._kept = 0

    async def recall(
        self,
        lineage: Lineage,
        at: int,
        query: str,
        *,
        k: int,
        filter: Filter | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Hit]:
        """The `k` messages of the timeline at `at` that fit the query best, as `recall` does.

        Raises:
            InvalidData: the query is no text or blank, `k` is not from 1 to 1000.
            StoreClosed: the store was closed meanwhile.
        """
        query, k = checked_text("query", query), checked_k(k)
        async with self._lock:
            if self._kept > KEPT_MAX or self._upcasters_key != self._upcasters.key:
                self._drop()
            if self._closed:
                raise StoreClosed("the store was closed meanwhile", hint="connect again")
            if self._index is None:
                self._index = self._scratch()
            spans = await self._newest(self._index, timeline(lineage, at))
            if not spans:
                return []  # without loading a model
            return await recall(
                self._index, self._embedder, spans, query, k=k, filter=filter, progress=progress
            )

    def close(self) -> None:
        """Drop what is indexed, for good. Closing twice is harmless.

        Whoever is searching is told that the store is closed.
        """
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._index is not None:
            self._index.close()
        self._index, self._blocks, self._kept = None, {}, 0
        self._upcasters_key = self._upcasters.key

    async def _newest(self, index: ScratchIndex, spans: list[Span]) -> list[Span]:
        """What of `spans` holds their newest messages, these indexed; nothing where none is."""
        count = 0
        for span in reversed(spans):
            last = span.last
            while last >= span.first:
                number = last // BLOCK_EVENTS
                first = max(span.first, number * BLOCK_EVENTS)
                block = self._blocks.setdefault((span.agent, span.first, number), _Block(first - 1))
                await self._read(index, block, span.agent, last)
                found = block.found[: bisect_right(block.found, last)]
                count += len(found)
                if count >= MESSAGES_MAX:
                    return onward(spans, found[count - MESSAGES_MAX])
                last = first - 1
        return spans if count else []

    async def _read(self, index: ScratchIndex, block: _Block, agent: str, last: int) -> None:
        """Index the messages of a block up to `last`, as far as they aren't yet."""
        if block.read >= last:
            return
        async for batch in self._events.read(Span(agent, block.read + 1, last)):
            stored = [as_stored(event) for event in self._upcasters.lift(batch.events)]
            messages = [message for message in stored if message is not None]
            await index.add(messages)
            block.found += [message.sequence for message in messages]
            block.read = batch.events[-1].sequence
            self._kept += len(messages)
