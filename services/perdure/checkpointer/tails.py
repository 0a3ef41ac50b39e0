"""How much each agent has written since its state was last saved: counters, bounded in number.

A counter that begins in the middle of an agent's history doesn't know of what came before. What it
says is then the least that there can be, or, when the agent comes to rest, an estimate: who looks
into the tables tells it the rest (`looked_at`).

Invariants:
- Memory is bounded by the number of counters; of agents beyond it, those that were quiet for the
  longest are forgotten first, after they were told as at rest.
- An agent is told as due once: as busy, or for each time that it comes to rest.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

import msgspec

from perdure.checkpointer import policy

AGENTS_MAX: Final = 16_384
"""How many agents are counted at a time: some 7 MB. Of those beyond it the count begins anew when
they write again; what they wrote before is estimated then, as above."""


class Key(NamedTuple):
    """An agent of a store, and its partition of the journal."""

    store: str
    agent: str
    partition: int


class _Tail(msgspec.Struct):
    time: float = 0.0
    sequence: int = 0
    events: int = 0
    bytes: int = 0
    state_bytes: int = 0
    whole: bool = False
    """Whether `bytes` is all since the state was saved."""


class Tails:
    """Counters of what agents have written.

    >>> tails = Tails()
    >>> mia = Key("default", "airline/mia", 3)
    >>> tails.add(mia, sequence=1, size=200_000, events=1, now=5.0)
    False
    >>> tails.at_rest(before=9.0)
    [Key(store='default', agent='airline/mia', partition=3)]
    """

    def __init__(self, *, agents_max: int = AGENTS_MAX) -> None:
        self._agents_max = agents_max
        # In order of their last event: the first have been quiet for the longest.
        self._restless: OrderedDict[Key, _Tail] = OrderedDict()
        self._resting: OrderedDict[Key, _Tail] = OrderedDict()
        self._forgotten: list[Key] = []

    def __len__(self) -> int:
        """How many agents are counted."""
        return len(self._restless) + len(self._resting)

    def add(self, key: Key, *, sequence: int, size: int, events: int, now: float) -> bool:
        """Count events, the last of them `sequence`; whether a busy agent's state is due.

        Those that were counted before, told again, change nothing.
        """
        tail = self._restless.pop(key, None) or self._resting.pop(key, None)
        if tail is None:
            tail = _Tail(whole=sequence <= events)
        self._restless[key] = tail
        tail.time = now
        if sequence > tail.sequence:
            tail.sequence = sequence
            tail.events += events
            tail.bytes += size
        self._shrink()
        due = policy.due(tail.bytes, tail.state_bytes)
        if due:
            _told(tail)
        return due

    def at_rest(self, before: float) -> list[Key]:
        """Agents whose last event was counted before a time, and whose state is due."""
        found, self._forgotten = self._forgotten, []
        while self._restless:
            key, tail = next(iter(self._restless.items()))
            if tail.time >= before:
                break
            self._resting[key] = self._restless.pop(key)
            if _is_due(tail):
                _told(tail)
                found.append(key)
        return found

    def looked_at(self, key: Key, *, tail_bytes: int, state_bytes: int) -> None:
        """What the tables say: so much was written since a state of so many bytes was saved."""
        tail = self._restless.get(key) or self._resting.get(key)
        if tail is not None:
            tail.bytes += tail_bytes
            tail.state_bytes = state_bytes
            tail.whole = True

    def forget(self, partition: int) -> None:
        """Another process counts the agents of a partition now."""
        for counters in (self._restless, self._resting):
            for key in [key for key in counters if key.partition == partition]:
                del counters[key]

    def _shrink(self) -> None:
        while len(self) > self._agents_max:
            if self._resting:
                self._resting.popitem(last=False)
            else:
                key, tail = self._restless.popitem(last=False)
                if _is_due(tail):
                    self._forgotten.append(key)


def _is_due(tail: _Tail) -> bool:
    if tail.whole:
        return policy.due(tail.bytes, tail.state_bytes, at_rest=True)
    # Nothing is known of what came before, but how many events there were.
    estimate = tail.bytes * tail.sequence // max(1, tail.events)
    return policy.due(estimate, 0, at_rest=True)


def _told(tail: _Tail) -> None:
    """Whoever was told looks into the tables: what is counted from here on comes on top."""
    tail.bytes, tail.whole = 0, False
