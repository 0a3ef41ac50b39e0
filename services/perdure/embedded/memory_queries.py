"""What a search asks of the tables of memories: by words, by filter, and what is forgotten.

Places are positions of events: agent and sequence in one number. Visible is what lies in a span of
places and is forgotten in none.

Invariants:
- Whatever a user gives is bound, never a part of a statement: any text is a valid query, and a key
  may hold any character.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from perdure.embedded import event_rows
from perdure.embedded.segments import SEQUENCE_BITS
from perdure.memorizer.memory import Condition, Filter, Scalar
from perdure.memorizer.words import query_terms

Bound = str | int | float | None

# The spans as rows. Spans can be thousands (undone often), more than a statement may have terms.
SPANS: Final = """spans AS MATERIALIZED (
    SELECT json_extract(value, '$[0]') AS first, json_extract(value, '$[1]') AS last
    FROM json_each(:spans)
)"""
FORGOTTEN: Final = """forgotten AS MATERIALIZED (
    SELECT m.place FROM spans
    CROSS JOIN forgettings f ON f.place BETWEEN spans.first AND spans.last
    CROSS JOIN memories m ON m.id = f.memory
)"""

_IN_SPANS: Final = (
    " AND EXISTS (SELECT 1 FROM spans WHERE memory_words.rowid BETWEEN spans.first AND spans.last)"
)


def by_words(
    connection: sqlite3.Connection,
    places: Sequence[tuple[int, int]],
    query: str,
    filter: Filter | None,
    candidates: int,
) -> dict[int, float]:
    """BM25 scores (larger is better) of the best visible memories, by place."""
    expression = _match_expression(query)
    if not expression or not places:
        return {}
    passes, bound = _conditions(filter)
    if passes:
        passes = (
            f" AND EXISTS (SELECT 1 FROM memories m WHERE m.place = memory_words.rowid{passes})"
        )
    rows: list[tuple[int, float]] = []
    # For each stream on its own: FTS5 reads only the part of its lists between two places.
    for agent in streams(places):
        own = [bounds for bounds in places if stream_of(bounds[0]) == agent]
        gaps = len(own) > 1
        statement = (
            f"WITH {SPANS}, {FORGOTTEN}"
            " SELECT memory_words.rowid, -bm25(memory_words) FROM memory_words"
            " WHERE memory_words MATCH :query AND memory_words.rowid BETWEEN :first AND :last"
            " AND memory_words.rowid NOT IN (SELECT place FROM forgotten)"
            f"{_IN_SPANS if gaps else ''}{passes} ORDER BY rank LIMIT :candidates"
        )
        rows += connection.execute(
            statement,
            {
                **bound,
                "spans": as_json(places),
                "query": expression,
                "first": min(first for first, _ in own),
                "last": max(last for _, last in own),
                "candidates": candidates,
            },
        ).fetchall()
    return dict(rows)


def _match_expression(query: str) -> str:
    """The FTS5 expression that matches any word of a text; empty where it has none.

    Each word is a quoted string, in which FTS5 knows no operators (section 3 of its manual).

    >>> _match_expression('seats" OR (NEAR')
    '"seats" OR "near"'
    """
    # FTS5 reads an expression up to the first NUL, wherever that is.
    plain = storable(query).replace("\0", " ").replace('"', " ")
    return " OR ".join(f'"{term}"' for term in query_terms(plain))


def passing_places(
    connection: sqlite3.Connection, places: Sequence[tuple[int, int]], filter: Filter
) -> list[int]:
    """Places of the memories in the spans that pass a filter."""
    conditions, bound = _conditions(filter)
    rows = connection.execute(
        f"WITH {SPANS} SELECT m.place FROM spans"
        f" CROSS JOIN memories m ON m.place BETWEEN spans.first AND spans.last{conditions}",
        {**bound, "spans": as_json(places)},
    )
    return [place for (place,) in rows]


def forgotten_places(
    connection: sqlite3.Connection, places: Sequence[tuple[int, int]]
) -> list[int]:
    """Places of the memories that an event in the spans forgets."""
    rows = connection.execute(
        f"WITH {SPANS}, {FORGOTTEN} SELECT place FROM forgotten",
        {"spans": as_json(places)},
    )
    return [place for (place,) in rows]


def _conditions(filter: Filter | None) -> tuple[str, dict[str, Bound]]:
    """A filter as SQL on the row `m` of memories, each condition led by AND."""
    if not filter:
        return "", {}
    sql: list[str] = []
    bound: dict[str, Bound] = {}
    if filter.source is not None:
        sql.append("m.source = :source")
        bound["source"] = storable(filter.source)
    if filter.since is not None:
        sql.append("m.time >= :since")
        bound["since"] = event_rows.microseconds(filter.since)
    if filter.until is not None:
        sql.append("m.time < :until")
        bound["until"] = event_rows.microseconds(filter.until)
    for number, condition in enumerate(filter.conditions()):
        sql.append(_condition(number, condition, bound))
    return "".join(f" AND {each}" for each in sql), bound


def _condition(number: int, condition: Condition, bound: dict[str, Bound]) -> str:
    """A value at a path of keys, or at the key that is the dotted path itself.

    Through json_each and not a JSON path, so that a key may hold any character.
    """
    ways = []
    paths = {condition.path, (".".join(condition.path),)}
    for way, path in enumerate(sorted(paths, key=len)):
        tables = []
        tests = []
        document = f"CASE WHEN json_valid(m.{condition.column}) THEN m.{condition.column} END"
        for depth, name in enumerate(path):
            alias, key = f"j{depth}", f"key_{number}_{way}_{depth}"
            tables.append(f"json_each({document}) {alias}")
            tests.append(f"{alias}.key = :{key}")
            bound[key] = name
            document = f"CASE {alias}.type WHEN 'object' THEN {alias}.value END"
        tests.append(_equals(f"j{len(path) - 1}", f"value_{number}", condition.value, bound))
        ways.append(
            f"EXISTS (SELECT 1 FROM {' CROSS JOIN '.join(tables)} WHERE {' AND '.join(tests)})"
        )
    return f"({' OR '.join(ways)})"


def _equals(alias: str, name: str, value: Scalar, bound: dict[str, Bound]) -> str:
    match value:
        case None:
            return f"{alias}.type = 'null'"
        case bool():
            return f"{alias}.type = '{'true' if value else 'false'}'"
        case str():
            bound[name] = value
            return f"{alias}.type = 'text' AND {alias}.value = :{name}"
        case _:
            bound[name] = value
            return f"{alias}.type IN ('integer', 'real') AND {alias}.value = :{name}"


def stream_of(place: int) -> int:
    """The row id of the agent that a place is in."""
    return place >> SEQUENCE_BITS


def streams(places: Sequence[tuple[int, int]]) -> list[int]:
    """The row ids of the agents that spans of places are in."""
    return sorted({stream_of(first) for first, _ in places})


def storable(text: str) -> str:
    """A text as SQLite can take it: lone surrogates, which queries may hold, become `?`."""
    return text.encode("utf-8", "replace").decode()


def as_json(data: object) -> str:
    """A value as JSON text: how a statement takes a list."""
    return msgspec.json.encode(data).decode()
