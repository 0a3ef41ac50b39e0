"""Makes `format-1/`, the frozen store of format 1, and what has to be read from it for ever.

Run it once, before the first release of a format: `python tests/embedded/data/make_format_1.py`.
A later format gets a script and a folder of its own; this one is never made again.
"""

import asyncio
import hashlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

import perdure
from perdure.embedded.folder import DATABASE

HERE = Path(__file__).parent
FOLDER = HERE / "format-1"
EXPECTED = HERE / "format-1.json"
ONE, FORK, GUEST = "frozen/one", "frozen/what-if", "frozen/guest"


async def write(folder: Path) -> None:
    """One of everything that a store keeps."""
    async with perdure.connect(folder) as store:
        agent = await store.agent(ONE)
        await agent.emit("message.added", {"role": "user", "content": "Grüezi, a seat please 🪑"})
        await agent.emit("plan.generated", {"steps": ["look", "book"]}, id="an-id-of-its-own")
        await agent.emit("decision.made", {"choice": "12A"}, writer="w", writer_sequence=7)
        # Enough for a saved state, and for rows that are sealed.
        await agent.emit_many(
            [("message.added", {"role": "assistant", "content": f"{n} " * 4000}) for n in range(20)]
        )
        await agent.records.put("profile", {"tier": "gold"})
        await agent.records.put("draft", 1.5)
        await agent.records.delete("draft")
        memory = await agent.remember("prefers aisle seats", source="chat", context={"task": "t"})
        await agent.remember("is called Mia", mood="good")
        await agent.forget(memory)
        await agent.checkpoint("policy", {"weights": [0.5, -1], "tags": {"a"}, "at": (1, b"x")})
        at = agent.state.sequence
        await agent.emit("decision.made", {"choice": "undone"})
        await agent.revert(to=at)
        twin = await agent.fork(at=5, name=FORK)
        await twin.emit("tool.called", {"id": "c1", "name": "search", "arguments": {"q": "x"}})
        await twin.emit("tool.executed", {"id": "c1", "name": "search", "result": [1, None]})
        await store.emit(GUEST, "sensor.read", {"celsius": 21.25, "ok": True})
        await agent.refresh()
    # Not closed one by one: so there are single rows too.


async def read(folder: Path) -> dict[str, Any]:
    """What the store says, as JSON values."""
    said: dict[str, Any] = {}
    async with perdure.connect(folder) as store:
        for name in (ONE, FORK, GUEST):
            view = store.view(name)
            sequence = await view.sequence()
            verification = await view.verify()
            points = sorted({1, 5, sequence - 1, sequence} & set(range(1, sequence + 1)))
            said[name] = {
                "events": [event.to_cloudevent() async for event in view.events(lift=False)],
                "states": {str(at): _plain(await view.state_at(at)) for at in points},
                "checkpoints": {
                    key: repr(sorted((await view.restore(key)).items()))
                    for key in await view.checkpoints()
                },
                "sound": verification.sound,
            }
    short = _short(said)
    assert isinstance(short, dict)
    return short


def _short(value: object) -> object:
    """JSON in which long texts stand as their hash: the file is there to be read by people too."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, str) and len(value) > 500:
        return f"{len(value)} characters, SHA-256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value


def _plain(state: perdure.State) -> object:
    from perdure.model.projection import DEFAULT

    return msgspec.json.decode(DEFAULT.encode(state))


def main() -> None:
    """Make both, in place of what is there."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    asyncio.run(write(FOLDER))
    connection = sqlite3.connect(FOLDER / DATABASE)
    connection.execute("VACUUM")
    connection.close()
    said = asyncio.run(read(FOLDER))
    EXPECTED.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")


if __name__ == "__main__":
    main()
