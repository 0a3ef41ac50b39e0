"""`docs/wire.md` says what the code does: its example, its command, its numbers."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
from ops.contract.values import sent_attributes
from tests.node import PROGRAMS

from perdure.kafka import journal, wire
from perdure.kafka.topics import KINDS
from perdure.model import event
from perdure.model.names import KEY_CHARS_MAX, NAME_CHARS_MAX
from perdure.model.sequencing import first_chain, link
from perdure.recorder import buckets
from perdure.settings import Cluster

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")


def block(language):
    """The page's one block of code in a language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return found


def test_example_is_the_program_that_is_tested():
    """What a reader copies is what runs against the real engines."""
    assert block("js") == (PROGRAMS / "producer.mjs").read_text(encoding="utf-8")


def test_command_sends_an_event():
    """The headers of the command make an event that is read, with the key it should have."""
    words = shlex.split(block("sh").replace("\\\n", " "))
    options = list(itertools.pairwise(words))
    headers = [
        (name, value.encode())
        for option, text in options
        if option == "-H"
        for name, _, value in [text.partition("=")]
    ]
    [key] = [value for option, value in options if option == "-k"]
    incoming = wire.decode(key.encode(), words[1].encode(), headers, 1_700_000_000_000)
    assert (incoming.store, incoming.append.agent) == ("default", key)
    assert incoming.append.events[0].data == {"row": 12}
    assert ("-t", Cluster().topic("events")) in options


@pytest.mark.parametrize("name", sent_attributes())
def test_each_attribute_is_explained(name):
    """A row of the table names it."""
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert name == "specversion" or any(f"`{name}`" in row for row in rows)


def test_partitions_are_those_of_the_table():
    """The numbers by which a client checks its partitioner are Kafka's."""
    found = re.findall(r"^\| `(\S+/\S+)` \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(found) == 3
    for key, *numbers in found:
        assert [int(number) for number in numbers] == [
            wire.partition_of(key.encode(), count) for count in (4, 8, 12)
        ]


def test_journal_record_is_one():
    """The example is read as it is, and its chain is that of the event that it shows."""
    text = block("json")
    record = journal.decode(text.encode())
    assert json.loads(journal.encode(record)) == json.loads(text)
    [recorded] = record.entries[0].answers()
    assert link(first_chain(record.agent), event.encode(recorded)).hex() == record.chain
    assert record.partition == wire.partition_of(b"airline/mia", Cluster().partitions)


def test_limits_and_names_are_those_of_the_code():
    """Limits, outcomes, topics and headers are named, with their numbers."""
    outcomes = journal.Outcome.__args__
    assert all(re.search(rf"^\| .*`{outcome}`", PAGE, re.MULTILINE) for outcome in outcomes)
    assert all(f"`{Cluster().topic(kind)}`" in PAGE for kind in KINDS if kind != "events")
    for number in (event.EVENT_BYTES_MAX, wire.RECORD_BYTES_MAX, buckets.ANSWER_BYTES_MAX):
        assert f"{number:,} bytes" in PAGE
    assert f"{buckets.ROWS_MAX // buckets.ROWS_EACH:,} events" in PAGE
    assert f"{buckets.MUTATION_BYTES_MAX:,}" in PAGE
    assert f"{event.NESTING_MAX} levels" in PAGE
    assert f"1 to {KEY_CHARS_MAX} characters" in PAGE
    assert f"1 to {NAME_CHARS_MAX} of" in PAGE
    for kind in (wire.JSON_TYPE, wire.STRUCTURED_TYPE, wire.BATCH_TYPE):
        assert f"| `{kind.decode()}`" in PAGE
