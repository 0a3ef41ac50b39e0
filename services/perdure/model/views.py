"""Turns written for one provider: OpenAI's Chat Completions, Anthropic's Messages API.

Sources of the rules: OpenAI's API reference, "Create chat completion" (the message and content part
types of each role); Anthropic's "Messages" reference, "Handle tool calls" ("tool result blocks must
immediately follow their corresponding tool use blocks", "tool_result blocks must come first in the
content array") and "Vision"; and the refusals of both APIs that name a rule of their own, quoted
where it is kept.

Invariants:
- What a turn says is in the view, or a `Repair` says that it is not.
- A turn that OpenAI takes is written for OpenAI as it came.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Final

import msgspec

from perdure.model.event import JSON
from perdure.model.turns import Call, Repair, Turn, json_text, shown, valid_name

INTERRUPTED: Final = (
    "Interrupted: no answer was recorded for this call. It may or may not have taken effect; "
    "check before calling it again."
)
"""The answer of a call that has none. It must not tell a model that nothing happened."""

BEGINNING: Final = "(The conversation begins with the assistant.)"
"""What the user says where a conversation for Anthropic would begin with the assistant."""

_FIELDS: Final[dict[str, frozenset[str]]] = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset(
        {"role", "content", "name", "refusal", "audio", "tool_calls", "function_call"}
    ),
    # `name` is not in the reference, but recorded runs have it and OpenAI takes it.
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_PARTS: Final[dict[str, frozenset[str]]] = {
    "system": frozenset({"text"}),
    "developer": frozenset({"text"}),
    "user": frozenset({"text", "image_url", "input_audio", "file"}),
    "assistant": frozenset({"text", "refusal"}),
    "tool": frozenset({"text"}),
}
_BINARY_PARTS: Final = frozenset({"image_url", "input_audio", "file"})
_IMAGE: Final = re.compile(
    r"data:(image/(?:jpeg|png|gif|webp));base64,([A-Za-z0-9+/]+={0,2})", re.ASCII
)
_URL: Final = re.compile(r"https://[^\s]+")

_Report = Callable[[str], None]


@dataclasses.dataclass(slots=True)
class _Said:
    """A message for Anthropic: blocks of one or more turns, `index` that of the last of them."""

    role: str
    blocks: list[JSON]
    index: int


# --- OpenAI --------------------------------------------------------------------------------------


def openai_view(turns: list[Turn], repairs: list[Repair]) -> list[dict[str, JSON]]:
    """The messages of a conversation as Chat Completions takes them.

    >>> openai_view([Turn(0, "user", {"role": "user", "content": "Hi"})], [])
    [{'role': 'user', 'content': 'Hi'}]
    """
    sent: list[dict[str, JSON]] = []
    for turn in turns:
        message = _openai_message(turn, repairs)
        if message is None:
            repairs.append(Repair("dropped", turn.index, "it says nothing: left out"))
            continue
        sent.append(message)
        sent.extend(_openai_answer(call, answer, repairs) for call, answer in turn.answers)
    return sent


def _openai_message(turn: Turn, repairs: list[Repair]) -> dict[str, JSON] | None:
    message = _openai_fields(turn, repairs)
    content = _openai_content(turn, repairs)
    if turn.role == "assistant":
        content = _openai_said(turn, message, content, repairs)
        if turn.calls:
            message["tool_calls"] = [_openai_call(call) for call in turn.calls]
        elif content in (None, ""):
            return None
    elif content is None:
        return None
    if content is not None or "content" in message:
        message["content"] = content
    return message


def _openai_answer(call: Call, answer: Turn | None, repairs: list[Repair]) -> dict[str, JSON]:
    if answer is None:
        return {"role": "tool", "tool_call_id": call.id, "content": INTERRUPTED}
    message = _openai_fields(answer, repairs)
    content = _openai_content(answer, repairs)
    if content is None:
        repairs.append(
            Repair("content", answer.index, "an answer without content gets an empty one")
        )
        content = ""
    message["role"] = "tool"
    message["tool_call_id"] = call.id
    message["content"] = content
    return message


def _openai_fields(turn: Turn, repairs: list[Repair]) -> dict[str, JSON]:
    """A message without what its role has no field for; content and calls are written later."""
    message: dict[str, JSON] = {}
    unknown = []
    for key, value in turn.message.items():
        if key not in _FIELDS[turn.role] or not _openai_has(key, value):
            unknown.append(key)
        elif key == "name":
            message[key] = _openai_name(turn, str(value), repairs)
        elif value is None or key not in ("tool_calls", "function_call"):
            message[key] = value
    if unknown:
        repairs.append(
            Repair("field", turn.index, f"left out of the message: {shown(', '.join(unknown))}")
        )
    return message


def _openai_has(key: str, value: JSON) -> bool:
    """Whether a field of a message may have such a value; calls were read before, as far as sound.

    "[] is too short - 'messages.1.tool_calls'", and null is no list; the audio that could be sent
    is an id that expires.
    """
    if value is None:
        return key not in ("name", "tool_calls")
    if key in ("name", "refusal"):
        return isinstance(value, str) and (value != "" or key == "refusal")
    return key != "audio" and not (key == "tool_calls" and value == [])


def _openai_name(turn: Turn, name: str, repairs: list[Repair]) -> str:
    valid = valid_name(name)
    if valid != name:
        repairs.append(Repair("name", turn.index, f"the name {shown(name)} is {valid!r}"))
    return valid


def _openai_content(turn: Turn, repairs: list[Repair]) -> JSON:
    """Text or a list of at least one valid part; None for nothing."""
    content = turn.message.get("content")
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        repairs.append(Repair("content", turn.index, "content is written as JSON text"))
        return json_text(content)
    if not content:
        repairs.append(Repair("content", turn.index, "an empty list of parts is no content"))
        return None

    def report(detail: str) -> None:
        repairs.append(Repair("content", turn.index, detail))

    parts = [_openai_part(part, turn.role, report) for part in content]
    refusals = [part for part in parts if part.get("type") == "refusal"]
    if refusals and len(parts) > 1:
        # The reference: "one or more of type text, or exactly one of type refusal".
        report("a refusal beside other parts is written as text")
        parts = [
            {"type": "text", "text": part["refusal"]} if part.get("type") == "refusal" else part
            for part in parts
        ]
    return [*parts]


def _openai_part(part: JSON, role: str, report: _Report) -> dict[str, JSON]:
    kind = part.get("type") if isinstance(part, dict) else None
    valid = _openai_valid_part(part)
    if valid is not None and kind in _PARTS[role]:
        if valid != part:
            report(f"left out of a part of type {kind}: what it has no field for")
        return valid
    return {"type": "text", "text": _part_text(part, report)}


def _openai_valid_part(part: JSON) -> dict[str, JSON] | None:
    """The part with the fields the API knows, or None where one of them is missing."""
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        return None
    body = part.get(kind)
    if kind in ("text", "refusal"):
        return {"type": kind, kind: body} if isinstance(body, str) else None
    if kind not in _BINARY_PARTS or not isinstance(body, dict):
        return None
    texts = {key: value for key, value in body.items() if isinstance(value, str) and value}
    fields: dict[str, JSON] = {}
    if kind == "image_url" and "url" in texts:
        fields["url"] = texts["url"]
        if texts.get("detail") in ("auto", "low", "high"):
            fields["detail"] = texts["detail"]
    elif kind == "input_audio" and "data" in texts and texts.get("format") in ("wav", "mp3"):
        fields = {"data": texts["data"], "format": texts["format"]}
    elif kind == "file" and ("file_id" in texts or "file_data" in texts):
        fields = {key: texts[key] for key in ("file_id", "file_data", "filename") if key in texts}
    return {"type": kind, kind: fields} if fields else None


def _openai_said(
    turn: Turn, message: dict[str, JSON], content: JSON, repairs: list[Repair]
) -> JSON:
    """What an assistant said, from `content`, or else from a refusal or a spoken answer."""
    if content not in (None, ""):
        return content
    refusal = turn.message.get("refusal")
    if isinstance(refusal, str) and refusal:
        # The reference: content is "required unless tool_calls or function_call is specified".
        del message["refusal"]
        repairs.append(Repair("content", turn.index, "a refusal without content is its content"))
        return [{"type": "refusal", "refusal": refusal}]
    if (spoken := _transcript(turn)) is not None:
        repairs.append(
            Repair("content", turn.index, "spoken words are written as their transcript")
        )
        return spoken
    return content


def _openai_call(call: Call) -> JSON:
    if call.custom:
        return {
            "id": call.id,
            "type": "custom",
            "custom": {"name": call.name, "input": call.arguments},
        }
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


# --- Anthropic -----------------------------------------------------------------------------------


def anthropic_view(turns: list[Turn], repairs: list[Repair]) -> tuple[list[dict[str, JSON]], str]:
    """The messages of a conversation as the Messages API takes them, and its system text.

    >>> anthropic_view([Turn(0, "system", {"role": "system", "content": "Be brief."}),
    ...                 Turn(1, "user", {"role": "user", "content": "Hi"})], [])
    ([{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}], 'Be brief.')
    """
    sent: list[_Said] = []
    system: list[str] = []
    for turn in turns:
        blocks = _anthropic_blocks(turn, repairs)
        if not blocks and not turn.calls:
            repairs.append(Repair("dropped", turn.index, "it says nothing: left out"))
        elif turn.role in ("system", "developer"):
            if sent:
                repairs.append(
                    Repair("moved", turn.index, f"what the {turn.role} said is in the system text")
                )
            system.extend(str(block["text"]) for block in blocks)
        else:
            calls = [_anthropic_call(call) for call in turn.calls]
            _say(sent, _Said(turn.role, [*blocks, *calls], turn.index), repairs)
            if turn.answers:
                results = [
                    _anthropic_answer(call, answer, repairs) for call, answer in turn.answers
                ]
                _say(sent, _Said("user", results, turn.index), repairs)
    if sent and sent[-1].role == "assistant":
        _strip_end(sent[-1], repairs)
    return [{"role": said.role, "content": said.blocks} for said in sent], "\n\n".join(system)


def _say(sent: list[_Said], said: _Said, repairs: list[Repair]) -> None:
    """Add a message, to the one before it if that has the same role: roles alternate."""
    if sent and sent[-1].role == said.role:
        sent[-1].blocks.extend(said.blocks)
        sent[-1].index = said.index
        return
    if not sent and said.role == "assistant":
        # The API: "first message must use the user role".
        repairs.append(Repair("inserted", said.index, "before it the user says that it begins"))
        sent.append(_Said("user", [{"type": "text", "text": BEGINNING}], said.index))
    sent.append(said)


def _anthropic_blocks(turn: Turn, repairs: list[Repair]) -> list[dict[str, JSON]]:
    """What a message says, as content blocks without empty ones."""

    def report(detail: str) -> None:
        repairs.append(Repair("content", turn.index, detail))

    content = turn.message.get("content")
    if turn.role == "assistant" and content in (None, "", []):
        refusal = turn.message.get("refusal")
        content = refusal if isinstance(refusal, str) else _transcript(turn)
    if content is None:
        return []
    if not isinstance(content, str | list):
        report("content is written as JSON text")
        content = json_text(content)
    parts: list[JSON] = [content] if isinstance(content, str) else content
    with_images = turn.role in ("user", "tool")
    blocks: list[dict[str, JSON]] = []
    for part in parts:
        block = _anthropic_image(part) if with_images else None
        if block is None:
            text = part if isinstance(part, str) else _part_text(part, report)
            # The API: "text content blocks must contain non-whitespace text".
            if not text.strip():
                continue
            block = {"type": "text", "text": text}
        blocks.append(block)
    return blocks


def _anthropic_image(part: JSON) -> dict[str, JSON] | None:
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return None
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        return None
    if (data := _IMAGE.fullmatch(url)) is not None and len(data[2]) % 4 == 0:
        source: JSON = {"type": "base64", "media_type": data[1], "data": data[2]}
        return {"type": "image", "source": source}
    if _URL.fullmatch(url) is not None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    return None


def _anthropic_call(call: Call) -> JSON:
    arguments: JSON = (
        {"input": call.arguments} if call.custom else msgspec.json.decode(call.arguments)
    )
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _anthropic_answer(call: Call, answer: Turn | None, repairs: list[Repair]) -> JSON:
    result: dict[str, JSON] = {"type": "tool_result", "tool_use_id": call.id}
    if answer is None:
        return {**result, "content": INTERRUPTED, "is_error": True}
    # `content` is optional, and an empty text in it is refused: no text, no content.
    if blocks := _anthropic_blocks(answer, repairs):
        content = answer.message.get("content")
        result["content"] = content if isinstance(content, str) else [*blocks]
    return result


def _strip_end(said: _Said, repairs: list[Repair]) -> None:
    # The API: "final assistant content cannot end with trailing whitespace".
    last = said.blocks[-1]
    if isinstance(last, dict) and isinstance(text := last.get("text"), str):
        stripped = text.rstrip()
        if stripped != text:
            last["text"] = stripped
            repairs.append(Repair("content", said.index, "white space at its end is left out"))


# --- Both ----------------------------------------------------------------------------------------


def _part_text(part: JSON, report: _Report) -> str:
    """A content part as text: its own, or a note where it is binary, or its JSON."""
    if isinstance(part, str):
        report("a part that is plain text is written as a text part")
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict):
        own = part.get("text", part.get("refusal"))
        if kind in ("text", "refusal") and isinstance(own, str):
            if kind == "refusal":
                report("a refusal is written as text")
            return own
        if isinstance(kind, str) and kind in _BINARY_PARTS:
            report(f"a part of type {kind} is left out: it can't be sent here")
            return f"[{kind}: left out]"
    report(f"a part of type {shown(kind)} is written as text")
    return json_text(part)


def _transcript(turn: Turn) -> str | None:
    audio = turn.message.get("audio")
    transcript = audio.get("transcript") if isinstance(audio, dict) else None
    return transcript if isinstance(transcript, str) and transcript else None
