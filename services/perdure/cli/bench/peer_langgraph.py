"""LangGraph on its SqliteSaver: the same messages as a graph's state, at the same durability.

SqliteSaver sets a write-ahead log; `synchronous=FULL` is set on the connection it is given.
"""

import itertools
import operator
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import langgraph.channels
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from perdure.cli.bench.raw import check_durable
from perdure.cli.bench.rounds import Work
from perdure.model.event import JSON


def has_delta_channel() -> bool:
    """Whether this LangGraph has the channel that keeps only what was added."""
    return hasattr(langgraph.channels, "DeltaChannel")


class Saver:
    """SqliteSaver by itself: a checkpoint of the conversation so far after each message."""

    def __init__(self, folder: Path, runs: Sequence[Sequence[dict[str, JSON]]]) -> None:
        self._connection, self._saver = _saver(folder)
        self._steps = self._endless(runs)

    @staticmethod
    def _endless(
        runs: Sequence[Sequence[dict[str, JSON]]],
    ) -> Iterator[tuple[str, list[dict[str, JSON]]]]:
        for number in itertools.count():
            for index, messages in enumerate(runs):
                for upto in range(1, len(messages) + 1):
                    yield f"{number}.{index}", list(messages[:upto])

    def puts(self, count: int) -> Work:
        """Put so many checkpoints, one after the other."""
        steps = list(itertools.islice(self._steps, count))
        started = time.perf_counter()
        for thread, messages in steps:
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"messages": messages}
            checkpoint["channel_versions"] = {"messages": len(messages)}
            self._saver.put(
                {"configurable": {"thread_id": thread, "checkpoint_ns": ""}},
                checkpoint,
                {"source": "loop", "step": len(messages)},
                {"messages": len(messages)},
            )
        return Work(count, time.perf_counter() - started)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class Graphs:
    """Runs as threads of a graph that adds a message a step, each step a checkpoint."""

    def __init__(self, folder: Path, *, delta: bool = False) -> None:
        self._connection, saver = _saver(folder)
        self._messages: Sequence[dict[str, JSON]] = ()
        channel: Any = operator.add
        if delta:
            channel = getattr(langgraph.channels, "DeltaChannel")(_extended)  # noqa: B009 - may be missing
        state: Any = TypedDict("state", {"messages": Annotated[list[Any], channel]})
        builder: Any = StateGraph(state)
        builder.add_node("add", self._next)
        builder.add_edge(START, "add")
        builder.add_conditional_edges("add", self._where)
        self._graph: Any = builder.compile(checkpointer=saver)

    def add(self, thread: str, messages: Sequence[dict[str, JSON]]) -> None:
        """Run a conversation through the graph."""
        self._messages = messages
        self._graph.invoke(
            {"messages": []},
            {"configurable": {"thread_id": thread}, "recursion_limit": len(messages) + 10},
        )

    def at(self, thread: str, count: int) -> object:
        """What `state` takes to get the state after so many messages."""
        past = self._graph.get_state_history({"configurable": {"thread_id": thread}})
        return next(s.config for s in past if len(s.values.get("messages", ())) == count)

    def state(self, at: object) -> int:
        """Get a state of the past; how many messages it has."""
        return len(self._graph.get_state(at).values["messages"])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _next(self, state: dict[str, list[Any]]) -> dict[str, list[dict[str, JSON]]]:
        return {"messages": [self._messages[len(state["messages"])]]}

    def _where(self, state: dict[str, list[Any]]) -> str:
        return "add" if len(state["messages"]) < len(self._messages) else END


def _saver(folder: Path) -> tuple[sqlite3.Connection, SqliteSaver]:
    connection = sqlite3.connect(folder / "checkpoints.db", check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    saver = SqliteSaver(connection)
    saver.setup()
    check_durable(lambda query: connection.execute(query).fetchone()[0])
    return connection, saver


def _extended(state: list[Any], writes: Iterable[list[Any]]) -> list[Any]:
    return [*state, *(message for write in writes for message in write)]
