"""What a memory's source, context and metadata say, as terms that a filter can ask for exactly.

Invariants:
- A memory that `Filter.accepts` has every term that `wanted` asks for, or the mark `MANY`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Final

from perdure.memorizer.memory import PATH_PARTS_MAX, Filter, Memory, Scalar
from perdure.model.event import JSON

FACTS_MAX: Final = 512
"""The most terms of one memory; one with more has the mark `MANY` and is looked at itself."""

FACT_CHARS_MAX: Final = 200
"""A longer term is cut, and ends with its SHA-256."""

MANY: Final = "…"

_INTEGER_BITS_MAX: Final = 1_100
"""No number that a filter can name equals a larger one."""


def facts_of(memory: Memory) -> list[str]:
    """The terms of a memory.

    >>> import datetime as dt
    >>> facts_of(Memory(id="m", agent="a/b", sequence=1, time=dt.datetime.now(dt.UTC), text="t",
    ...                 source="chat", context={"trip": {"leg": 2.0}}, metadata={"vip": True}))
    ['source="chat"', 'context.trip.leg=2', 'metadata.vip=true']
    """
    found: dict[str, None] = {}
    if memory.source is not None:
        found[_fact("source", memory.source)] = None
    for column, values in (("context", memory.context), ("metadata", memory.metadata)):
        for path, value in _leaves(values, ()):
            if len(found) == FACTS_MAX:
                return [MANY]
            found[_fact(f"{column}.{path}", value)] = None
    return list(found)


def wanted(filter: Filter) -> list[str]:
    """The terms that a memory has to have to pass a filter.

    >>> wanted(Filter(source="chat", where={"context.task": "t-7", "vip": None}))
    ['source="chat"', 'context.task="t-7"', 'metadata.vip=null']
    """
    terms = [] if filter.source is None else [_fact("source", filter.source)]
    for column, path, value in filter.conditions():
        terms.append(_fact(f"{column}.{'.'.join(path)}", value))
    return list(dict.fromkeys(terms))


def _leaves(values: Mapping[str, JSON], path: tuple[str, ...]) -> Iterator[tuple[str, Scalar]]:
    for name, value in values.items():
        # A key with dots is found by the whole of it, but is no part of a path.
        if path and "." in name:
            continue
        if isinstance(value, dict):
            if "." not in name and len(path) + 1 < PATH_PARTS_MAX:
                yield from _leaves(value, (*path, name))
        elif not isinstance(value, list):
            yield ".".join((*path, name)), value


def _fact(path: str, value: Scalar) -> str:
    fact = f"{path}={_canonical(value)}"
    # A lone surrogate, which no other place could hold either.
    fact = fact.encode("utf-8", "replace").decode()
    if len(fact) <= FACT_CHARS_MAX:
        return fact
    digest = hashlib.sha256(fact.encode()).hexdigest()
    return f"{fact[: FACT_CHARS_MAX - len(digest)]}{digest}"


def _canonical(value: Scalar) -> str:
    """A scalar as text, equal for equal values: 1 and 1.0 are."""
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _INTEGER_BITS_MAX else "large"
    return str(int(value)) if value.is_integer() else repr(value)
