"""What became of the agents: each beside its uninterrupted twin, and the claims that follow."""

import re
from collections import Counter
from collections.abc import Sequence

import perdure
from perdure.cli.demo.judge import Streams
from perdure.cli.demo.results import AgentResult, Fork, Past, Recall, Tally, Verified
from perdure.cli.demo.script import NAMESPACE, agent_of
from perdure.model.event import Event
from perdure.model.runs import Run

_CUSTOMER = re.compile(r"\b[a-z]+_[a-z]+_\d{4}\b")


async def streams(store: perdure.Store) -> Streams:
    """All events of the demo's own agents."""
    found: dict[str, list[Event]] = {}
    async for line in store.agents(f"{NAMESPACE}/"):
        view = store.view(line.agent)
        found[line.agent] = [event async for event in view.events()] if line.sequence else []
    return found


async def compared(
    store: perdure.Store, uninterrupted: perdure.Store, run: Run, cut_short: Counter[str]
) -> AgentResult:
    """The agent of a run in both stores, and beside the recording."""
    name = agent_of(run)
    state = await store.view(name).state_at()
    customer = next(
        (
            found[0]
            for message in run.messages
            if message["role"] == "user" and (found := _CUSTOMER.search(str(message["content"])))
        ),
        "",
    )
    return AgentResult(
        agent=name,
        customer=customer,
        messages=len(state.messages),
        events=state.sequence,
        tool_calls=len(state.tools.calls),
        memories=state.memories.count,
        cut_short=cut_short[name],
        state_equal=state == await uninterrupted.view(name).state_at(),
        messages_equal=state.messages.to_list() == list(run.messages),
    )


async def verified(store: perdure.Store) -> Verified:
    """Every hash chain and checkpoint of the store, looked at again."""
    agents = [line.agent async for line in store.agents()]
    looked_at = [await store.view(agent).verify() for agent in agents]
    return Verified(
        agents=len(agents),
        events=sum(each.events for each in looked_at),
        checkpoints=sum(each.checkpoints for each in looked_at),
        findings=[
            f"{finding.subject}: {finding.problem}"
            for each in looked_at
            for finding in each.findings
        ],
    )


def checks_of_events(
    tally: Tally, agents: Sequence[AgentResult], lost_meanwhile: int = 0
) -> dict[str, bool]:
    """Each claim about what the kills did, and whether it held."""
    lost = tally.lost + tally.missing + lost_meanwhile
    return {
        "no event was lost": lost == 0,
        "no event was doubled": tally.doubled == 0,
        "all events are in order": tally.out_of_order == 0,
        "each state equals that of the uninterrupted run": all(each.state_equal for each in agents),
        "each conversation equals the recording": all(each.messages_equal for each in agents),
    }


def checks_of_views(past: Past, fork: Fork, recall: Recall) -> dict[str, bool]:
    """Each claim about looking at other times and timelines, and whether it held."""
    return {
        "each past state is right": past.states == past.states_equal,
        "the fork left the original as it was": fork.original_unchanged and fork.shared_equal,
        "memory asked about the past knows nothing later": recall.past_kept_apart,
    }
