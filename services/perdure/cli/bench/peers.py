"""Other programs that keep what agents did: measured beside perdure where they are installed."""

import importlib.metadata
import importlib.util
from typing import Final

INSTALL: Final = "not installed: pip install 'perdure[bench]'"

EVENTSOURCING: Final = "eventsourcing"
SQLITE_SAVER: Final = "SqliteSaver"
LANGGRAPH: Final = "LangGraph, list"
LANGGRAPH_DELTA: Final = "LangGraph, DeltaChannel"

DISTRIBUTIONS: Final = ("eventsourcing", "langgraph", "langgraph-checkpoint-sqlite")


def has_eventsourcing() -> bool:
    """Whether eventsourcing is installed."""
    return importlib.util.find_spec("eventsourcing") is not None


def has_langgraph() -> bool:
    """Whether LangGraph and its SqliteSaver are installed."""
    try:
        return importlib.util.find_spec("langgraph.checkpoint.sqlite") is not None and (
            importlib.util.find_spec("langgraph.graph") is not None
        )
    except ModuleNotFoundError:
        return False


def versions() -> dict[str, str]:
    """The versions of the peers; how to get those that are missing."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = INSTALL
    return found


def missing() -> list[str]:
    """A note where a peer is missing."""
    there = (has_eventsourcing(), has_langgraph())
    names = [
        name
        for name, is_there in zip(("eventsourcing", "LangGraph"), there, strict=True)
        if not is_there
    ]
    return [f"{name} {INSTALL}" for name in names]
