"""The newest verdicts in memory: who waits is woken, and memory is bounded."""

import asyncio

import msgspec
import pytest

from perdure.gateway.verdicts import HEARD_MAX, Verdicts
from perdure.kafka.journal import Entry, JournalRecord

SOON = 0.05
LONG = 30.0


def record(*offsets, store="default", agent="airline/mia", partition=3, through=-1, **entry):
    """A journal record that tells of these offsets."""
    entry = {"outcome": "recorded", **entry}
    entries = [Entry(offset, **entry) for offset in offsets]
    return JournalRecord(store, agent, partition, entries, through=through)


def raw(sequence):
    """What stands for a stored event."""
    return msgspec.Raw(msgspec.json.encode({"sequence": sequence}))


async def started(awaitable):
    """A task that has come to where it waits."""
    task = asyncio.create_task(awaitable)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_verdict_that_is_known_is_answered_at_once():
    """What the journal told before the question needs no waiting."""
    verdicts = Verdicts()
    verdicts.note(record(7, 8), 100)
    [found] = await verdicts.any_of([(3, 7), (3, 99)], LONG)
    assert (found.partition, found.offset, found.agent) == (3, 7, "airline/mia")


async def test_the_record_itself_wakes_who_waits_for_it():
    """Several questions for one record are all answered by it, each with what it asked for."""
    verdicts = Verdicts()
    one = await started(verdicts.any_of([(3, 7)], LONG))
    many = await started(verdicts.any_of([(3, 6), (3, 7), (3, 8)], LONG))
    verdicts.note(record(7, 8), 100)
    assert [found.offset for found in await one] == [7]
    assert [found.offset for found in await many] == [7, 8]


async def test_nothing_is_left_of_a_question_that_ran_out_of_time():
    """Who asks again and again for something that never comes takes no memory."""
    verdicts = Verdicts()
    assert await verdicts.any_of([(3, 7)], SOON) == []
    assert not await verdicts.reached(3, 7, SOON)
    assert verdicts._waits == {}
    assert verdicts._levels == {3: {}}


async def test_kept_verdicts_are_bounded_by_bytes():
    """The oldest are let go of; the newest is there however large it is."""
    verdicts = Verdicts(kept_bytes_max=1_000)
    for offset in range(100):
        verdicts.note(record(offset), 100)
    assert verdicts.known(3, 0) is None
    assert verdicts.known(3, 99) is not None
    assert len(verdicts._kept) == 10
    verdicts.note(record(100), 5_000)
    assert verdicts.known(3, 100) is not None


async def test_a_position_is_reached_when_the_journal_says_so():
    """`through` covers records of all agents, and never goes back."""
    verdicts = Verdicts()
    waiting = await started(verdicts.reached(3, 10, LONG))
    verdicts.note(record(9, through=9), 10)
    verdicts.settle()
    await asyncio.sleep(0)
    assert not waiting.done()
    verdicts.note(record(11, agent="airline/ben", through=11), 10)
    verdicts.note(record(4, through=4), 10)
    verdicts.settle()
    assert await waiting
    assert verdicts.through(3) == 11
    assert verdicts.through(0) == -1


async def test_a_change_of_a_store_wakes_who_watches_it_and_nobody_else():
    """Each store has its version; what was refused changes none."""
    verdicts = Verdicts()
    lab, crew = verdicts.version("lab"), verdicts.version("crew")
    watching = await started(verdicts.changed("lab", lab, LONG))
    verdicts.note(record(1, store="crew"), 10)
    verdicts.note(record(2, store="lab", outcome="refused"), 10)
    await asyncio.sleep(0)
    assert not watching.done()
    verdicts.note(record(3, store="lab"), 10)
    assert await watching == verdicts.version("lab") != lab
    assert verdicts.version("crew") != crew


async def test_a_version_of_the_past_is_answered_at_once():
    """Who asks with a number of before, or of an earlier process, doesn't wait."""
    verdicts = Verdicts()
    assert await verdicts.changed("lab", 0, LONG) == verdicts.version("lab") > 0


async def test_records_that_were_missed_wake_everybody():
    """When the topic lost what comes next, whoever waits for changes looks again."""
    verdicts = Verdicts()
    watching = await started(verdicts.changed("lab", verdicts.version("lab"), LONG))
    with verdicts.listening("lab", "airline/mia") as listener:
        verdicts.lost()
        assert listener.missed
    assert await watching == verdicts.version("lab")


async def test_a_listener_hears_its_agent_alone_and_in_order():
    """Events of other agents and of other stores' agents of the same name stay out."""
    verdicts = Verdicts()
    with verdicts.listening("default", "airline/mia") as listener:
        verdicts.note(record(1, events=[raw(1), raw(2)]), 10)
        verdicts.note(record(2, agent="airline/ben", events=[raw(9)]), 10)
        verdicts.note(record(3, store="lab", events=[raw(9)]), 10)
        verdicts.note(record(4, events=[raw(3)]), 10)
        heard = await listener.take(LONG)
    assert [msgspec.json.decode(event)["sequence"] for event in heard] == [1, 2, 3]
    assert verdicts._listeners == {}


async def test_a_slow_listener_is_told_that_it_missed_something():
    """What waits for one listener is bounded; it then reads the table instead."""
    verdicts = Verdicts()
    with verdicts.listening("default", "airline/mia") as listener:
        verdicts.note(record(1, events=[raw(n) for n in range(HEARD_MAX + 1)]), 10)
        assert listener.missed
        assert len(await listener.take(LONG)) == 1


@pytest.mark.parametrize("ask", ["any_of", "reached", "changed", "listener"])
async def test_when_it_ends_nobody_waits_any_more(ask):
    """A service that is told to stop answers its polls at once, and new ones as well."""
    verdicts = Verdicts()

    async def listen():
        with verdicts.listening("lab", "airline/mia") as listener:
            await listener.take(LONG)

    def question():
        return {
            "any_of": lambda: verdicts.any_of([(3, 7)], LONG),
            "reached": lambda: verdicts.reached(3, 7, LONG),
            "changed": lambda: verdicts.changed("lab", verdicts.version("lab"), LONG),
            "listener": listen,
        }[ask]()

    waiting = await started(question())
    verdicts.end()
    async with asyncio.timeout(5):
        await waiting
        await question()
