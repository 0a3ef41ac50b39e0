"""Names that are safe in a path, a topic key, a URL and a table, on every store alike."""

import functools
import re
import unicodedata
from typing import Final

from perdure.errors import InvalidName

NAME_CHARS_MAX: Final = 128
TYPE_CHARS_MAX: Final = 256
KEY_CHARS_MAX: Final = 512

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")


def agent_name(name: object) -> str:
    """Check the name of an agent, `namespace/name`, and give it back.

    Each part starts with a letter or digit, goes on with letters, digits and `. _ : @ + -`,
    and has at most 128 characters.

    Raises:
        InvalidName: for anything else; the message says what is wrong.

    >>> agent_name("airline/mia-what-if")
    'airline/mia-what-if'
    >>> agent_name("../x")
    Traceback (most recent call last):
    ...
    perdure.errors.InvalidName: agent name '../x': '..' has to start with a letter or digit (...)
    """
    text = _text("agent name", name)
    parts = text.split("/")
    if len(parts) != 2:
        raise InvalidName(
            f"agent name {_shown(text)} is not of the form namespace/name",
            hint="for example airline/mia",
        )
    for part in parts:
        _check(
            "agent name", text, part, pattern=_PART, chars_max=NAME_CHARS_MAX, allowed=". _ : @ + -"
        )
    return text


def namespace(name: object) -> str:
    """Check a namespace, the first part of an agent's name, and give it back.

    >>> namespace("airline")
    'airline'
    """
    text = _text("namespace", name)
    _check("namespace", text, text, pattern=_PART, chars_max=NAME_CHARS_MAX, allowed=". _ : @ + -")
    return text


@functools.lru_cache(maxsize=1024, typed=True)
def event_type(name: object) -> str:
    """Check the type of an event, such as `tool.executed`, and give it back.

    >>> event_type("order.placed")
    'order.placed'
    """
    text = _text("event type", name)
    _check("event type", text, text, pattern=_TYPE, chars_max=TYPE_CHARS_MAX, allowed=". _ : / -")
    return text


def key(what: str, name: object) -> str:
    """Check a record key or checkpoint name: 1 to 512 characters, none of them a control character.

    >>> key("record key", "profile of Zoë")
    'profile of Zoë'
    """
    text = _text(what, name)
    if len(text) > KEY_CHARS_MAX:
        raise InvalidName(
            f"{what} {_shown(text)} has {len(text)} characters",
            hint=f"{KEY_CHARS_MAX} are the most",
        )
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cs"}:
            raise InvalidName(
                f"{what} {_shown(text)} holds the control character {character!r}",
                hint="use printable characters",
            )
    return text


def _text(what: str, name: object) -> str:
    if not isinstance(name, str):
        raise InvalidName(f"{what} is {_shown(name)}, not text", hint="give a str")
    if not name:
        raise InvalidName(f"{what} is empty", hint="give it at least one character")
    return name


def _check(
    what: str, text: str, part: str, *, pattern: re.Pattern[str], chars_max: int, allowed: str
) -> None:
    if len(part) > chars_max:
        raise InvalidName(
            f"{what} {_shown(text)} has a part of {len(part)} characters",
            hint=f"{chars_max} are the most",
        )
    if pattern.fullmatch(part) is None:
        wrong = pattern.sub("", part)[:1]
        reason = (
            f"{wrong!r} is not allowed"
            if wrong and part[:1].isascii() and part[:1].isalnum()
            else f"{_shown(part)} has to start with a letter or digit"
        )
        raise InvalidName(
            f"{what} {_shown(text)}: {reason}", hint=f"letters, digits and {allowed} are allowed"
        )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
