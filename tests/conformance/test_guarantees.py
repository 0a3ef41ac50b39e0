"""The six guarantees that perdure gives, each with a test of its own that can fail.

The judge of what was acknowledged is what the writer itself noted when it was answered.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import sys

import pytest
from tests.conformance import reference
from tests.conformance.places import backend

import perdure
from perdure.model.event import NewEvent
from perdure.model.sequencing import Append
from perdure.model.upcast import Upcasters

WRITER = """
import asyncio, sys
import perdure

async def main():
    url, agent, writer, first = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    store = await perdure.connect(url)
    handle = await store.agent(agent)

    async def write(lane):
        number = first
        while True:
            event = await handle.emit(
                "decision.made", [lane, number], writer=f"{writer}-{lane}", writer_sequence=number
            )
            print(lane, number, event.sequence, flush=True)
            number += 1

    await asyncio.gather(*[write(lane) for lane in range(4)])

asyncio.run(main())
"""


async def test_guarantee_1_acknowledged_events_are_never_lost_doubled_or_reordered(place):
    """Through kills at random moments, each acknowledged event is there once, where it was said."""
    chance = random.Random(1)
    acknowledged, retried_from = {}, 1
    for _ in range(6):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, place.url, "airline/mia", "w", str(retried_from),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        lines = [await process.stdout.readline() for _ in range(chance.randrange(1, 60))]
        process.kill()
        rest, _ = await process.communicate()
        text = b"".join(lines) + rest
        # A line that the kill cut off was not said to its end.
        for line in text[: text.rfind(b"\n") + 1].decode().splitlines():
            lane, number, sequence = map(int, line.split())
            assert acknowledged.setdefault((lane, number), sequence) == sequence
        # The next process gives every write again from where the slowest lane may have stopped.
        last = [
            max((n for lane, n in acknowledged if lane == each), default=0) for each in range(4)
        ]
        retried_from = max(1, min(last) - 2)
    assert len(acknowledged) > 50
    view = (await place.connect()).view("airline/mia")
    recorded = [event async for event in view.events()]
    assert [event.sequence for event in recorded] == list(range(1, len(recorded) + 1))
    places = {tuple(event.data): event.sequence for event in recorded}
    assert len(places) == len(recorded)
    assert {key: places.get(key) for key in acknowledged} == acknowledged
    for lane in range(4):
        numbers = [
            number for each, number in map(tuple, (e.data for e in recorded)) if each == lane
        ]
        assert numbers == list(range(1, len(numbers) + 1))
    assert (await view.verify()).sound


async def test_guarantee_2_a_state_rebuilt_from_any_checkpoint_equals_the_folded_one(
    place, monkeypatch
):
    """With a state saved after every event, each state there ever was equals the plain fold."""
    monkeypatch.setattr("perdure.checkpointer.policy.due", lambda tail, state, at_rest=False: True)
    chance = random.Random(2)
    store = await place.connect()
    agent = await store.agent("airline/mia")
    for number in range(60):
        if chance.random() < 0.1:
            await agent.revert(to=chance.randrange(agent.state.sequence + 1))
        elif chance.random() < 0.3:
            await agent.records.put(f"r{chance.randrange(5)}", number)
        else:
            await agent.emit("decision.made", number)
        # Every few events there is time for a save to end; others overlap with writes.
        await asyncio.sleep(0.001 if number % 5 else 0.01)
    await agent.close()
    expected = reference.states("airline/mia", [event async for event in agent.events()])
    view = (await place.connect()).view("airline/mia")
    for at, state in enumerate(expected):
        assert reference.plain(await view.state_at(at)) == state


async def test_guarantee_3_old_data_loads_or_the_error_names_the_missing_upcaster(place):
    """Every version ever written is read by code with the upcasters, or refused by name without."""
    for level in (1, 2, 3):
        upcasters = Upcasters()
        for step in range(1, level):
            upcasters.upcaster("order.placed", step, step + 1)(lambda data: data)
        store = await place.connect(upcasters=upcasters)
        await store.emit("shop/ann", "order.placed", {"written": level})
        await store.close()

    async def read(steps):
        upcasters = Upcasters()
        for start, end in steps:

            def lift(data, end=end):
                return {**data, "lifted": [*data.get("lifted", []), end]}

            upcasters.upcaster("order.placed", start, end)(lift)
        store = await place.connect(upcasters=upcasters)
        return [event.data async for event in store.view("shop/ann").events()]

    assert await read([(1, 2), (2, 3)]) == [
        {"written": 1, "lifted": [2, 3]},
        {"written": 2, "lifted": [3]},
        {"written": 3},
    ]
    with pytest.raises(perdure.MissingUpcaster, match=r"order\.placed.*version 1 to 3"):
        await read([(2, 3)])
    with pytest.raises(perdure.MissingUpcaster, match=r"order\.placed.*version 3"):
        await read([(1, 2)])


async def test_guarantee_4_the_later_of_two_openers_wins_and_the_earlier_is_told(place):
    """Two that write one agent in turns: whoever opened last writes, the other is told, no mix."""
    a_store, b_store = await place.connect(), await place.connect()
    chance = random.Random(4)
    expected, told = [], 0
    handles = {"a": await a_store.agent("airline/mia"), "b": None}
    owner = "a"
    for number in range(60):
        who = chance.choice("ab")
        if handles[who] is None or chance.random() < 0.2:
            handles[who] = await (a_store if who == "a" else b_store).agent("airline/mia")
            owner = who
        try:
            await handles[who].emit("decision.made", [who, number])
        except perdure.WriterFenced:
            assert who != owner
            told += 1
        else:
            assert who == owner
            expected.append([who, number])
    assert told > 5
    recorded = [event async for event in handles[owner].events()]
    assert [event.data for event in recorded] == expected
    epochs = [event.epoch for event in recorded]
    assert epochs == sorted(epochs)


class Bomb:
    """An object that says how it wants to be unpickled: by running something."""

    def __reduce__(self):
        """What pickle would run."""
        return (print, ("boom",))


PICKLE = b"cbuiltins\nexec\n(S'import builtins; builtins.exploded = True'\ntR."
"""A pickle that runs code when it is loaded."""


async def test_guarantee_5_nothing_read_from_storage_is_executed(place):
    """An object that would run code can't be saved; bytes that would are refused."""
    import builtins

    store = await place.connect()
    agent = await store.agent("airline/mia")
    with pytest.raises(perdure.NotCheckpointable):
        await agent.checkpoint("policy", Bomb())
    digest = hashlib.sha256(PICKLE).hexdigest()
    ports = backend(store)
    with contextlib.suppress(perdure.Corrupt):
        await ports.blobs.put(digest, PICKLE)  # which a store may see at once, and refuse
    data = {"name": "policy", "digest": digest, "size": len(PICKLE), "stored": len(PICKLE)}
    await ports.log.append(
        Append(
            "airline/mia",
            (NewEvent(type="checkpoint.saved", data=data),),
            ports.writer,
            agent.epoch,
        ),
        "recorded",
    )
    with pytest.raises(perdure.PerdureError):
        await store.view("airline/mia").restore("policy")
    assert not hasattr(builtins, "exploded")


BAD_INPUTS = [
    ("note", float("nan")),
    ("note", {1: 2}),
    ("note", {"x": {1, 2}}),
    ("note", "\ud800"),
    ("note", object()),
    ("note", "x" * 2_000_000),
    ("", 1),
    ("a b", 1),
    ("x" * 1000, 1),
    (None, 1),
    ("message.added", "no object"),
    ("record.put", {"value": 1}),
    ("agent.reverted", {"to": 0}),
]


async def test_guarantee_6_bad_input_gets_a_clear_error_and_harms_nothing(store):
    """Every bad input raises an error that names what was wrong; the agent goes on."""
    agent = await store.agent("airline/mia")
    for number, (kind, data) in enumerate(BAD_INPUTS, 1):
        for write in (agent.emit, lambda *given: store.emit("airline/mia", *given)):
            with pytest.raises(perdure.InvalidInput) as caught:
                await write(kind, data)
            assert caught.value.message
            assert caught.value.hint
        with pytest.raises(perdure.InvalidInput):
            await agent.emit_many([("note", 1), (kind, data)])
        event = await agent.emit("decision.made", number)
        assert event.sequence == number
    assert json.loads(json.dumps(list(agent.state.decisions))) == list(
        range(1, len(BAD_INPUTS) + 1)
    )
