"""Running contenders side by side.

Invariants:
- Every contender runs in every round, in slices that take turns and change their order, so that
  a machine that becomes slower or busier meets all of them.
- What a contender has to prepare is not in its time.
"""

import gc
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Work:
    """What a contender did in a slice: how many things, in how many seconds."""

    count: int
    seconds: float


Contender: TypeAlias = Callable[[], Awaitable[Work]]
Tick: TypeAlias = Callable[[], None]


async def side_by_side(
    contenders: Mapping[str, Contender], *, rounds: int, slices: int = 1, tick: Tick
) -> dict[str, list[Work]]:
    """What each contender did in each round; `tick` is called after each slice of each.

    The first round is preceded by one that doesn't count: it warms caches and compiles statements.

    >>> async def quick() -> Work:
    ...     return Work(10, 0.5)
    >>> await side_by_side({"a": quick}, rounds=2, tick=lambda: None)
    {'a': [Work(count=10, seconds=0.5), Work(count=10, seconds=0.5)]}
    """
    names = list(contenders)
    for name in names:
        await contenders[name]()
    done: dict[str, list[Work]] = {name: [] for name in names}
    for _ in range(rounds):
        total = dict.fromkeys(names, Work(0, 0.0))
        for _ in range(slices):
            for name in names:
                # No contender pays for what another left, nor for what the benchmark holds: going
                # through it again and again is no part of what an agent's process does.
                gc.collect()
                gc.freeze()
                work = await contenders[name]()
                gc.unfreeze()
                sofar = total[name]
                total[name] = Work(sofar.count + work.count, sofar.seconds + work.seconds)
                tick()
            names.reverse()
        for name in names:
            done[name].append(total[name])
    return done


def per_second(work: list[Work]) -> list[float]:
    """Things a second, round by round.

    >>> per_second([Work(10, 0.5)])
    [20.0]
    """
    return [one.count / one.seconds for one in work]


def milliseconds(work: list[Work]) -> list[float]:
    """Milliseconds for a thing, round by round.

    >>> milliseconds([Work(10, 0.5)])
    [50.0]
    """
    return [one.seconds * 1000 / one.count for one in work]
