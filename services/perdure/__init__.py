"""perdure: durable state for AI agents.

>>> import perdure
>>> async with perdure.connect("crew.store") as store:
...     agent = await store.agent("airline/mia")
...     event = await agent.emit("message.added", {"role": "user", "content": "hello"})
...     print(event.position, agent.state.messages)
airline/mia@1 Series([{'role': 'user', 'content': 'hello'}])
"""

from perdure.agent.agent import Agent, Reverted
from perdure.agent.connect import connect
from perdure.agent.records import Records, RecordVersion
from perdure.agent.store import Store
from perdure.agent.sync import SyncAgent, SyncAgentView, SyncRecords, SyncStore, connect_sync
from perdure.agent.view import AgentView, Change, Verification
from perdure.checkpointer.graph import checkpointable
from perdure.errors import (
    AgentExists,
    Corrupt,
    EventTooLarge,
    Incompatible,
    InvalidData,
    InvalidInput,
    InvalidName,
    MissingUpcaster,
    NotCheckpointable,
    NotFound,
    PerdureError,
    ProjectionFailed,
    RecordConflict,
    Refused,
    SequenceConflict,
    StoreBusy,
    StoreClosed,
    StoreFull,
    StoreReadOnly,
    Unavailable,
    Unreachable,
    UnsupportedFormat,
    WriterFenced,
)
from perdure.memorizer.embedder import Embedder
from perdure.memorizer.memory import Hit, Memory
from perdure.model.conversation import Conversation
from perdure.model.diff import Difference
from perdure.model.event import Event, NewEvent
from perdure.model.projection import default_projections as _projections
from perdure.model.series import Map, Series
from perdure.model.state import SavedObject, State
from perdure.model.upcast import default_upcasters as _upcasters
from perdure.ports import AgentSummary, Finding
from perdure.version import __version__

projection = _projections.projection
upcaster = _upcasters.upcaster

__all__ = [
    "Agent",
    "AgentExists",
    "AgentSummary",
    "AgentView",
    "Change",
    "Conversation",
    "Corrupt",
    "Difference",
    "Embedder",
    "Event",
    "EventTooLarge",
    "Finding",
    "Hit",
    "Incompatible",
    "InvalidData",
    "InvalidInput",
    "InvalidName",
    "Map",
    "Memory",
    "MissingUpcaster",
    "NewEvent",
    "NotCheckpointable",
    "NotFound",
    "PerdureError",
    "ProjectionFailed",
    "RecordConflict",
    "RecordVersion",
    "Records",
    "Refused",
    "Reverted",
    "SavedObject",
    "SequenceConflict",
    "Series",
    "State",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreFull",
    "StoreReadOnly",
    "SyncAgent",
    "SyncAgentView",
    "SyncRecords",
    "SyncStore",
    "Unavailable",
    "Unreachable",
    "UnsupportedFormat",
    "Verification",
    "WriterFenced",
    "__version__",
    "checkpointable",
    "connect",
    "connect_sync",
    "projection",
    "upcaster",
]
