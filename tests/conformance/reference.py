"""What a state has to be, written a second time: plainly, slowly, and without any of perdure.

Every state there ever was is kept whole, one for each sequence. So undo is the state kept at the
sequence it goes back to, and a fork is a copy of the first so many states.
"""

import copy


def initial(agent):
    """The state before the first event."""
    return {
        "agent": agent,
        "sequence": 0,
        "messages": [],
        "plan": None,
        "decisions": [],
        "calls": [],
        "results": [],
        "failures": [],
        "tasks": {},
        "records": {},
        "record_versions": {},
        "memories": {},
        "checkpoints": {},
    }


def apply(state, event):
    """The state after one more event; the state given is left as it was."""
    new = copy.deepcopy(state)
    new["agent"], new["sequence"] = event.subject, event.sequence
    data = copy.deepcopy(event.data)
    appended_to = {
        "message.added": "messages",
        "decision.made": "decisions",
        "tool.called": "calls",
        "tool.executed": "results",
        "tool.failed": "failures",
    }
    if event.type in appended_to:
        new[appended_to[event.type]].append(data)
    elif event.type == "plan.generated":
        new["plan"] = data
    elif event.type == "record.put":
        new["records"][data["key"]] = data["value"]
        new["record_versions"][data["key"]] = event.sequence
    elif event.type == "record.deleted":
        new["records"].pop(data["key"], None)
        new["record_versions"].pop(data["key"], None)
    elif event.type == "memory.stored":
        new["memories"][event.id] = event.sequence
    elif event.type == "memory.forgotten":
        new["memories"].pop(data["id"], None)
    elif event.type == "checkpoint.saved":
        new["checkpoints"][data["name"]] = (data["digest"], event.sequence)
    elif event.type in ("task.started", "task.finished", "task.failed"):
        task = new["tasks"].setdefault(data["task"], {"started": event.sequence})
        task["status"] = {"task.started": "running", "task.finished": "finished"}.get(
            event.type, "failed"
        )
        task["ended"] = None if task["status"] == "running" else event.sequence
    return new


def states(agent, events):
    """The state at every sequence, from 0 on, given all its events, undone ones included."""
    kept = [initial(agent)]
    for event in events:
        base = kept[event.data["to"]] if event.type == "agent.reverted" else kept[-1]
        kept.append(apply(base, event))
    return kept


def plain(state):
    """A state of perdure in the form of this module."""
    return {
        "agent": state.agent,
        "sequence": state.sequence,
        "messages": list(state.messages),
        "plan": state.plan,
        "decisions": list(state.decisions),
        "calls": list(state.tools.calls),
        "results": list(state.tools.results),
        "failures": list(state.tools.failures),
        "tasks": {
            name: {"started": task.started, "status": task.status, "ended": task.ended}
            for name, task in state.tasks.items()
        },
        "records": dict(state.records),
        "record_versions": dict(state.record_versions),
        "memories": dict(state.memories.ids),
        "checkpoints": {
            name: (saved.digest, saved.sequence) for name, saved in state.checkpoints.items()
        },
    }
