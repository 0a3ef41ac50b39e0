"""The terms of texts, for ranking by words: the same ones that the embedded store has.

Weaviate splits texts into words but knows no stems: to it, seat and seats are two words. So the
terms are made here, by the tokenizer of SQLite's full text search (`porter unicode61`), and
Weaviate is told to split at spaces alone. Thus a memory is found by the same words in both stores.

Invariants:
- A text's terms are a function of the text alone.
- What is written as one word with marks in it (`HAT-136`, `gift_card_7`) is a term of its own
  beside its parts, joined by `+`, which no other term holds. So an identifier is found as one.
"""

import functools
import re
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from perdure.memorizer.words import STOP_WORDS, query_terms

COMPOUNDS_MAX: Final = 1_000
"""The most joined words of one text; of further ones the parts are found."""

TERM_CHARS_MAX: Final = 200

# From the beginning of a word and without going back, so that a long word takes no longer.
_COMPOUND = re.compile(r"\b\w++(?:[^\w\s]\w++)*")
_WORD = re.compile(r"\w++")
_JOINED = re.compile(r"[^\W_][\W_]+[^\W_]")


def text_terms(text: str) -> str:
    """The terms of a memory's text, with spaces between them.

    >>> text_terms("She prefers aisle seats on HAT-136")
    'she prefer aisl seat on hat 136 hat+136'
    """
    text = _storable(text)
    compounds = dict.fromkeys(
        found.group()
        for pattern in (_COMPOUND, _WORD)
        for found in pattern.finditer(text)
        if _JOINED.search(found.group())
    )
    words, *parts = _tokenizer().terms([text, *list(compounds)[:COMPOUNDS_MAX]])
    return " ".join([*words, *dict.fromkeys(_joined(parts))])


def searched_terms(query: str) -> str:
    """What to look for, of a query: any of these terms. Empty where there is nothing.

    >>> searched_terms("Where does she sit on HAT-136?")
    'sit hat 136 hat+136'
    """
    wanted = query_terms(_storable(query))
    if not wanted:
        return ""
    parts = _tokenizer().terms(wanted)
    single = [part for each in parts for part in each if part not in STOP_WORDS]
    return " ".join(dict.fromkeys([*single, *_joined(parts)]))


def _joined(parts: Iterable[Sequence[str]]) -> list[str]:
    return ["+".join(each)[:TERM_CHARS_MAX] for each in parts if len(each) > 1]


class _Tokenizer:
    """SQLite's tokenizer, through an index in main memory that is never filled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False
        )
        self._connection.execute(
            "CREATE VIRTUAL TABLE texts USING fts5"
            " (text, content = '', tokenize = 'porter unicode61')"
        )
        self._connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (texts, instance)")

    def terms(self, texts: Sequence[str]) -> list[list[str]]:
        """The terms of each text, in their order there."""
        found: list[list[str]] = [[] for _ in texts]
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                self._connection.executemany(
                    "INSERT INTO texts (rowid, text) VALUES (?, ?)",
                    list(enumerate(texts)),
                )
                for row, term in self._connection.execute(
                    "SELECT doc, term FROM terms ORDER BY doc, offset"
                ):
                    found[row].append(term[:TERM_CHARS_MAX])
            finally:
                self._connection.execute("ROLLBACK")
        return found


@functools.cache
def _tokenizer() -> _Tokenizer:
    return _Tokenizer()


def _storable(text: str) -> str:
    # SQLite takes no lone surrogates; a NUL would end the text.
    return text.encode("utf-8", "replace").decode().replace("\0", " ")
