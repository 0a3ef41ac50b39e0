"""The verdict: the journal against the store, and the store against an uninterrupted run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import msgspec

from perdure.cli.demo.journal import Acknowledged
from perdure.cli.demo.results import Tally
from perdure.model.event import Event

Streams = Mapping[str, Sequence[Event]]
"""The events of each agent, in order."""


def judged(journal: Sequence[Acknowledged], store: Streams, uninterrupted: Streams) -> Tally:
    """Count what was lost, doubled, missed or moved.

    >>> judged([], {}, {}).lost
    0
    """
    distinct = {(said.agent, said.sequence, said.id, said.digest) for said in journal}
    missing = doubled = out_of_order = 0
    for agent in {**store, **uninterrupted}:
        found = [_what(event) for event in store.get(agent, ())]
        expected = [_what(event) for event in uninterrupted.get(agent, ())]
        missing += (Counter(expected) - Counter(found)).total()
        doubled += (Counter(found) - Counter(expected)).total()
        out_of_order += sum(
            event.sequence != number for number, event in enumerate(store.get(agent, ()), start=1)
        )
        if Counter(found) == Counter(expected):
            out_of_order += sum(a != b for a, b in zip_longest(found, expected))
    return Tally(
        recorded=sum(map(len, store.values())),
        acknowledged=len(distinct),
        asked_again=len(journal) - len(distinct),
        lost=len(lost(journal, store)),
        missing=missing,
        doubled=doubled,
        out_of_order=out_of_order,
    )


def lost(
    journal: Sequence[Acknowledged], store: Streams
) -> set[tuple[str, int] | tuple[str, str | None]]:
    """Where the store doesn't hold the event that was acknowledged there.

    What was acknowledged before it had a sequence is named by its id or digest, and may be anywhere
    in its agent's stream: whether that is in order is compared with the uninterrupted run.

    >>> lost([Acknowledged(1, "demo/0.0", 1, id="0.0/0.0")], {})
    {('demo/0.0', 1)}
    >>> lost([Acknowledged(1, "demo/0.0", 0, id="0.0/0.0")], {})
    {('demo/0.0', '0.0/0.0')}
    """
    return {
        (said.agent, said.sequence) if said.sequence else (said.agent, said.id or said.digest)
        for said in journal
        if not _holds(store.get(said.agent, ()), said)
    }


def _holds(stream: Sequence[Event], said: Acknowledged) -> bool:
    if not said.sequence:
        return any(_is(event, said) for event in stream)
    return 1 <= said.sequence <= len(stream) and _is(stream[said.sequence - 1], said)


def _is(event: Event, said: Acknowledged) -> bool:
    if said.digest is not None:
        return isinstance(event.data, dict) and event.data.get("digest") == said.digest
    return event.id == said.id


def _what(event: Event) -> tuple[str, bytes]:
    """What an event says, without who wrote it when."""
    return event.type, msgspec.json.encode(event.data)
