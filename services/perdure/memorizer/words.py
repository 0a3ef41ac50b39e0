"""The words of a query that a full text search is to look for.

Stop words are dropped: they match everything, which costs time (67 ms at 100,000 memories) and
ranks by noise.
"""

import re
from typing import Final

TERMS_MAX: Final = 64
"""The most terms of one query."""

TERM_CHARS_MAX: Final = 200

STOP_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        a about after again all also am an and any are as at be because been before being
        between both but by can could d did do does doing done during each for from further get
        had has have having he her here hers him his how i if in into is it its itself just ll m
        me more most my no nor not now of off on once only or other our ours out over own please
        re s same she should so some such t than that the their theirs them then there these
        they this those through to too under until up us ve very was we were what when where
        which while who whom why will with would you your yours
        """,
    )
)

_WORD = re.compile(r"\w+")
# From the beginning of a word and without going back, so that a long word takes no longer.
_COMPOUND = re.compile(r"\b\w++(?:[^\w\s]\w++)+")


def query_terms(text: str) -> list[str]:
    """The words of a query without stop words, and what is written as one (`HAT-136`) as a phrase.

    In lower case, each once, in order, at most `TERMS_MAX`.

    >>> query_terms("Where does she like to sit on HAT136?")
    ['like', 'sit', 'hat136']
    >>> query_terms("the gift-card")
    ['gift', 'card', 'gift-card']
    """
    text = text.lower()
    terms = [word for word in _WORD.findall(text) if word not in STOP_WORDS]
    # A phrase of stop words only ("it's") says as little as they do.
    terms += [
        compound
        for compound in _COMPOUND.findall(text)
        if any(word not in STOP_WORDS for word in _WORD.findall(compound))
    ]
    return list(dict.fromkeys(term[:TERM_CHARS_MAX] for term in terms))[:TERMS_MAX]
