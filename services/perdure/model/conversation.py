"""Healing views: a recorded conversation as a model provider takes it, whatever happened to it.

A crash between a tool call and its answer leaves a conversation that providers refuse for ever
after. The log keeps what happened; a view of it answers, moves and leaves out what has to be, and
says what it did.

Invariants:
- A view is valid for its provider, whatever JSON objects it was made from. (A view of nothing is
  empty: what to begin with is the caller's to say.)
- What is valid for OpenAI is its own view, with no repairs; a healed view heals to itself.
- The messages given are never changed, and the view shares no list or object with them.
"""

from collections.abc import Iterator, Sequence
from typing import Final, overload

from perdure.errors import InvalidData
from perdure.model.event import JSON
from perdure.model.turns import Provider, Repair, RepairKind, read_turns
from perdure.model.views import anthropic_view, openai_view

__all__ = ["PROVIDERS", "Conversation", "Provider", "Repair", "RepairKind", "heal"]

PROVIDERS: Final[tuple[Provider, ...]] = ("openai", "anthropic")
"""The providers that `heal` knows."""


class Conversation(Sequence[dict[str, JSON]]):
    """Messages that a provider takes as they are, and what was repaired to make them so.

    Two conversations are equal when they send the same; a conversation equals a list of the same
    messages.

    Attributes:
        provider: whose format the messages have.
        messages: what to send as `messages`.
        system: what to send as `system` to Anthropic, "" for nothing; always "" for OpenAI, where
            the system prompt is a message.
        repairs: in the order of the messages they are about.

    >>> view = heal([{"role": "user", "content": "Hi"}], "openai")
    >>> view.messages
    [{'role': 'user', 'content': 'Hi'}]
    """

    __slots__ = ("messages", "provider", "repairs", "system")

    def __init__(
        self,
        provider: Provider,
        messages: list[dict[str, JSON]],
        *,
        system: str = "",
        repairs: Sequence[Repair] = (),
    ) -> None:
        self.provider: Provider = provider
        self.messages = messages
        self.system = system
        self.repairs = tuple(repairs)

    @overload
    def __getitem__(self, index: int) -> dict[str, JSON]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, JSON]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, JSON] | list[dict[str, JSON]]:
        return self.messages[index]

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[dict[str, JSON]]:
        return iter(self.messages)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Conversation):
            return (self.provider, self.system, self.messages) == (
                other.provider,
                other.system,
                other.messages,
            )
        return self.messages == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # its messages are lists and can change

    def __repr__(self) -> str:
        return (
            f"<Conversation for {self.provider}: {len(self.messages)} messages, "
            f"{len(self.repairs)} repairs>"
        )


def heal(messages: Sequence[JSON], provider: Provider) -> Conversation:
    """A view of recorded chat messages (OpenAI format) that the provider takes.

    For both providers: every tool call has exactly one answer, right after it; a call without one
    is answered as interrupted; an answer without a call, a second answer, a message with an unknown
    role and a call that names no function are left out; of two answers the first counts, because
    the model went on from it. Ids that are missing, repeated or not allowed are replaced in the
    call and its answer alike; arguments that are no JSON object are put into one under
    `arguments`; `function_call` and the role `function` are written in today's form; what the
    provider has no field or content part for is left out or written as text.

    For `openai`: the rules of Chat Completions (system messages stay where they are). For
    `anthropic`: the rules of the Messages API (`system` apart, first message by the user, roles
    alternate, `tool_use` and `tool_result` blocks, no empty text).

    Raises:
        InvalidData: the provider is none of `PROVIDERS`.

    >>> asked = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": "{}"}}
    >>> view = heal([{"role": "user", "content": "Book it."},
    ...              {"role": "assistant", "content": None, "tool_calls": [asked]}], "openai")
    >>> [message["role"] for message in view]
    ['user', 'assistant', 'tool']
    >>> print(*view.repairs)
    message 1: the call of book has no answer: answered as interrupted
    """
    if provider not in PROVIDERS:
        raise InvalidData(
            f"provider {provider!r} is not known", hint=f"one of {', '.join(PROVIDERS)}"
        )
    repairs: list[Repair] = []
    turns = read_turns(messages, provider, repairs)
    system = ""
    if provider == "openai":
        sent = openai_view(turns, repairs)
    else:
        sent, system = anthropic_view(turns, repairs)
    repairs.sort(key=lambda repair: repair.index)
    return Conversation(provider, sent, system=system, repairs=repairs)
