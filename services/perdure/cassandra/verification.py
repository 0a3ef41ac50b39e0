"""Whether an agent's rows in Cassandra are what was written: events, hash chain, indexes, heads."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from perdure.cassandra.cells import microseconds
from perdure.cassandra.event_rows import EventRows, page_rows
from perdure.cassandra.tables import Bucket
from perdure.errors import Corrupt
from perdure.model.event import Event, decode
from perdure.model.sequencing import first_chain, link
from perdure.ports import Finding

_REBUILD: Final = "`perdure replay` builds the tables anew from the log"


class _State(NamedTuple):
    """What the buckets looked at so far lead to."""

    chain: bytes
    last: int
    time_max: int | None


async def verify(
    rows: EventRows, agent: str, newest: Bucket, origin: tuple[str, bytes] | None
) -> AsyncIterator[tuple[int, list[Finding]]]:
    """Look at each bucket in turn: yields how many events it holds, and what is wrong.

    `origin` is where a fork's history comes from: the agent that wrote its last event, and the
    chain after it; None for an agent without parent (or where that can't be told).
    """
    state: _State | None = None
    if not await _is_listed(rows, agent):
        yield 0, [Finding(agent, "is missing in the list of agents", _REBUILD)]
    for number in range(newest.number + 1):
        try:
            bucket = await rows.stored_bucket(agent, number)
        except Corrupt as error:
            yield 0, [Finding(f"{agent} (bucket {number})", error.message, _REBUILD)]
            state = None
            continue
        if bucket is None:
            yield 0, [Finding(f"{agent} (bucket {number})", "is missing", _REBUILD)]
            state = None
            continue
        findings = []
        if number == 0:
            findings += _check_start(agent, bucket, origin)
        elif state is not None and (state.chain, state.last + 1) != (
            bucket.chain_before,
            bucket.first,
        ):
            which = f"{agent}@{bucket.first}"
            findings.append(Finding(which, "does not go on from the event before it", _REBUILD))
        before = state or _State(bucket.chain_before, bucket.first - 1, None)
        found, beyond = await _stored(rows, agent, bucket)
        if beyond:
            # What was recorded since the head was read is as it should be.
            head = await rows.stored_bucket(agent, number)
            beyond = [sequence for sequence in beyond if head is None or sequence > head.last]
        if beyond:
            findings.append(Finding(_ranges(agent, beyond), "stored beyond the head", _REBUILD))
        findings += _check_events(agent, bucket, found, before.time_max, known=state is not None)
        findings += await _check_indexes(rows, agent, bucket, found)
        state = _State(bucket.chain, bucket.last, bucket.time_max)
        yield len(found), findings


async def _is_listed(rows: EventRows, agent: str) -> bool:
    tables = rows.tables(agent)
    prefix = agent[: agent.index("/") + 1]
    [listed, namespaces] = await rows.session.execute_many(
        [
            (tables.agents, (rows.store, prefix, agent, 1)),
            (tables.namespaces, (rows.store, prefix, 1)),
        ]
    )
    return listed == [(agent,)] and namespaces == [(prefix,)]


def _check_start(agent: str, bucket: Bucket, origin: tuple[str, bytes] | None) -> list[Finding]:
    lineage = bucket.lineage
    if lineage.parent is None:
        expected, problem = first_chain(agent), "the start of its hash chain was altered"
    elif origin is None:
        return []
    else:
        owner, expected = origin
        problem = f"does not go on from {owner}@{lineage.forked_at}: one of them was altered"
    findings = []
    if bucket.chain_before != expected:
        findings.append(Finding(agent, problem, _REBUILD))
    if bucket.first != lineage.forked_at + 1:
        findings.append(Finding(agent, "its first event has another sequence", _REBUILD))
    return findings


async def _stored(
    rows: EventRows, agent: str, bucket: Bucket
) -> tuple[dict[int, bytes], list[int]]:
    """The stored bytes of a bucket's events by the sequence of their rows; and rows beyond them."""
    found, beyond = {}, []
    pages = rows.session.pages(
        rows.tables(agent).sequenced,
        (rows.store, agent, bucket.number),
        rows=page_rows(bucket.events, bucket.bytes),
    )
    async with contextlib.aclosing(pages):
        async for page in pages:
            for sequence, data in page:
                if sequence is None:  # Of a bucket without rows its static columns come alone.
                    continue
                if sequence > bucket.last:
                    beyond.append(sequence)
                else:
                    found[sequence] = data
    return found, beyond


def _check_events(
    agent: str, bucket: Bucket, found: dict[int, bytes], time_max: int | None, *, known: bool
) -> list[Finding]:
    findings: list[Finding] = []
    expected = range(bucket.first, bucket.last + 1)
    missing = [sequence for sequence in expected if sequence not in found]
    if missing:
        findings.append(Finding(_ranges(agent, missing), "missing in Cassandra", _REBUILD))
    if before := sorted(found.keys() - set(expected)):
        problem = "stored before its bucket's first event"
        findings.append(Finding(_ranges(agent, before), problem, _REBUILD))
    chain, size = bucket.chain_before, 0
    for sequence, data in sorted(found.items()):
        chain = link(chain, data or b"")
        size += len(data or b"")
        event = _event(data)
        if event is None or (event.subject, event.sequence) != (agent, sequence):
            findings.append(Finding(f"{agent}@{sequence}", "damaged in Cassandra", _REBUILD))
            continue
        time = microseconds(event.time)
        time_max = time if time_max is None else max(time, time_max)
    which = f"{agent}@{bucket.first} to {bucket.last}"
    if findings:
        return findings
    if chain != bucket.chain:
        return [Finding(which, "the hash chain is broken: history was altered", _REBUILD)]
    if (bucket.events, bucket.bytes) != (len(found), size):
        return [Finding(which, "its bucket counts other events than it holds", _REBUILD)]
    if found and bucket.time_max != time_max and (known or bucket.number == 0):
        return [Finding(which, "the time by which it is found is damaged", _REBUILD)]
    return []


async def _check_indexes(
    rows: EventRows, agent: str, bucket: Bucket, found: dict[int, bytes]
) -> list[Finding]:
    """Whether the index by type and time is complete, and the one by id names what is there."""
    tables, key = rows.tables(agent), (rows.store, agent, bucket.number)
    [types, ids] = await rows.session.execute_many([(tables.all_types, key), (tables.all_ids, key)])
    events = {sequence: _event(data) for sequence, data in found.items()}
    expected = {
        (event.type, microseconds(event.time), sequence)
        for sequence, event in events.items()
        if event is not None
    }
    indexed = {tuple(row) for row in types if row[2] <= bucket.last}
    wrong = {sequence for _, _, sequence in expected ^ indexed}
    findings = []
    if wrong:
        problem = "its place by type and time is damaged"
        findings.append(Finding(_ranges(agent, sorted(wrong)), problem, _REBUILD))
    for event_id, sequence in ids:
        event = events.get(sequence)
        if sequence <= bucket.last and (event is None or event.id != event_id):
            problem = f"its place by id {event_id} is damaged"
            findings.append(Finding(f"{agent}@{sequence}", problem, _REBUILD))
    return findings


def _event(data: bytes | None) -> Event | None:
    if data is None:
        return None
    try:
        return decode(data)
    except Corrupt:
        return None


def _ranges(agent: str, sequences: list[int]) -> str:
    """Rising sequences of an agent, as text.

    >>> _ranges("a/b", [4, 5, 6, 9])
    'a/b@4 to 6, 9'
    """
    ranges: list[list[int]] = []
    for sequence in sequences:
        if ranges and sequence == ranges[-1][1] + 1:
            ranges[-1][1] = sequence
        else:
            ranges.append([sequence, sequence])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in ranges]
    return f"{agent}@{', '.join(texts)}"
