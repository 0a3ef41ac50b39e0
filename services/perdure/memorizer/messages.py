"""Messages as what recall can search: which of them, and what of them is text.

Invariants:
- Whatever data a foreign event carries, reading it raises nothing: what has no text is passed over.
- A message is found in the form of the memory that its text would make, under its event's own id
  and sequence.
"""

from typing import Final

import msgspec

from perdure.model.event import JSON, Event

MESSAGES_MAX: Final = 5_000
"""The most messages that one recall searches: the newest. Embedding so many takes minutes."""

ROLES: Final = frozenset({"user", "assistant", "tool", "function"})
"""Whose messages are searched. What a developer told the model is said in each run alike."""


def text_of(message: JSON) -> str | None:
    """The text of a chat message in the OpenAI format: its content, or the text parts of it.

    None where there is nothing to find: a blank text, tool calls alone, a system prompt.

    >>> text_of({"role": "user", "content": "a seat, please"})
    'a seat, please'
    >>> part = {"type": "image_url", "image_url": {"url": "data:"}}
    >>> text_of({"role": "user", "content": [{"type": "text", "text": "my passport"}, part]})
    'my passport'
    >>> text_of({"role": "system", "content": "You are an airline agent."}) is None
    True
    """
    if not isinstance(message, dict):
        return None
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        return None
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        content = "\n".join(text for text in parts if text.strip())
    return content if isinstance(content, str) and content.strip() else None


def as_stored(event: Event) -> Event | None:
    """A `message.added` event as the `memory.stored` event that a memory index takes.

    The role becomes the `source`; what the message has beside role and content, the `metadata`.
    None where it is no message with a text.
    """
    message = event.data
    if event.type != "message.added" or not isinstance(message, dict):
        return None
    text = text_of(message)
    if text is None:
        return None
    further = {name: value for name, value in message.items() if name not in _OWN}
    data: dict[str, JSON] = {"text": text, "source": message["role"], "metadata": further}
    return msgspec.structs.replace(event, type="memory.stored", data=data)


_OWN: Final = frozenset({"role", "content"})


def _part(part: JSON) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""
