"""A question to an agent's memory, now and in the past."""

from typing import Final

import perdure
from perdure.cli.demo.results import Recall, Recalled
from perdure.cli.demo.script import agent_of
from perdure.model.runs import Run

QUESTION: Final = "What time of day is too early for this customer?"
"""To the agent of the first shipped run: its customer says it in other words."""

HITS: Final = 3


async def ask(store: perdure.Store, run: Run) -> Recall:
    """Ask now, and as of just before the best answer was stored: then it must not be known."""
    view = store.view(agent_of(run))
    hits = await view.recall(QUESTION, HITS)
    as_of = hits[0].sequence - 1 if hits else 0
    earlier = await view.recall(QUESTION, HITS, seq=as_of)
    return Recall(
        agent=view.name,
        question=QUESTION,
        memories=(await view.state_at()).memories.count,
        hits=[_recalled(hit) for hit in hits],
        as_of=as_of,
        hits_as_of=[_recalled(hit) for hit in earlier],
        past_kept_apart=bool(hits) and all(hit.sequence <= as_of for hit in earlier),
    )


def _recalled(hit: perdure.Hit) -> Recalled:
    return Recalled(hit.text, hit.source, hit.sequence, hit.score, hit.explain())
