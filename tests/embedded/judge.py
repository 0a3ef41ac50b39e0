"""The judge of the kill tests: what the writers said they did, against what the log holds.

It knows nothing of perdure's tables: it keeps the writers' own reports.

- What was acknowledged is in the log, at the sequence and with the content that was acknowledged.
- Nothing is in the log that was not tried, and nothing more often than it was tried.
- What was tried together is there whole and in one piece, or not at all.
- What one writer tried one after the other stands in that order.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from perdure import Event


def token_of(event: Event) -> str:
    """What the writers of the tests put into each event to know it again."""
    data: Any = event.data
    match event.type:
        case "record.put":
            return str(data["value"])
        case "checkpoint.saved":
            return str(data["name"])
        case "memory.stored":
            return str(data["text"])
        case "agent.reverted":
            return f"revert to {data['to']}"
    return str(data["token"])


class Journal:
    """What was tried and acknowledged, of one agent."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, str] = {}
        self.repeatable: list[str] = []
        """Tried with an id of their own, and not answered: the next life tries them again."""
        self._tried: Counter[str] = Counter()
        self._together: list[list[str]] = []
        self._in_order: dict[object, list[str]] = {}
        self._repeated: set[str] = set()

    def take(self, life: object, reports: Iterable[Sequence[Any]]) -> None:
        """Take in the reports of one writer's life."""
        for report in reports:
            match report:
                case ["try", kind, tokens]:
                    self._try(life, kind, tokens)
                case ["ack", pairs]:
                    for sequence, token in pairs:
                        known = self.acknowledged.setdefault(sequence, token)
                        assert known == token, f"{sequence} was given to {known} and to {token}"
                        if token in self.repeatable:
                            self.repeatable.remove(token)
                case ["error", message]:
                    raise AssertionError(f"life {life} failed: {message}")

    def _try(self, life: object, kind: str, tokens: list[str]) -> None:
        if kind == "again":
            self._repeated.update(tokens)
            return  # the same event: there may be only one of it
        self._tried.update(tokens)
        self._in_order.setdefault(life, []).extend(tokens)
        if kind == "together":
            self._together.append(tokens)
        if kind == "named":
            self.repeatable += tokens

    def check(self, events: Sequence[Event]) -> None:
        """Compare with all events of the agent's log."""
        assert list(range(1, len(events) + 1)) == [event.sequence for event in events]
        found = [token_of(event) for event in events]
        for sequence, token in self.acknowledged.items():
            assert sequence <= len(found), f"lost: {token} was acknowledged as {sequence}"
            assert token == found[sequence - 1], f"{sequence} is not what was acknowledged"
        surplus = Counter(found) - self._tried
        assert not surplus, f"doubled or invented: {dict(surplus)}"
        places = {token: place for place, token in enumerate(found)}
        for tokens in self._together:
            there = [token for token in tokens if token in places]
            assert there in ([], tokens), f"a part of what was tried together: {there}"
            if there:
                first = places[tokens[0]]
                assert tokens == found[first : first + len(tokens)]
        for life, tokens in self._in_order.items():
            order = [
                places[token]
                for token in tokens
                if token in places and token not in self._repeated and self._tried[token] == 1
            ]
            assert order == sorted(order), f"reordered in life {life}"

    @staticmethod
    def record(events: Sequence[Event]) -> str | None:
        """The value of the only record, folded here: undone puts don't count."""
        after: list[str | None] = [None]
        for event in events:
            data: Any = event.data
            if event.type == "record.put":
                after.append(data["value"])
            elif event.type == "agent.reverted":
                after.append(after[data["to"]])
            else:
                after.append(after[-1])
        return after[-1]
