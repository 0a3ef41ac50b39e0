"""What goes over HTTP: errors keep their class, and streams that are cut are noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import errors
from perdure.errors import Corrupt, NotFound, PerdureError, Unreachable, WriterFenced
from perdure.gateway import messages
from perdure.gateway.messages import Lines, as_error, error_body, lines, status_of
from perdure.model.timeline import Revert, Stream

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PerdureError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_what_it_was(kind):
    """Every class of the tree goes there and back, with its message and hint."""
    error = kind("agent airline/mia is away", hint="look elsewhere")
    again = as_error(error_body(error))
    assert type(again) is kind
    assert (again.message, again.hint) == (error.message, error.hint)
    assert 400 <= status_of(error) < 600


def test_an_error_of_a_newer_gateway_is_told_all_the_same():
    """A class that is not known here is Unavailable, and named."""
    error = as_error(messages.ErrorBody("Overrun", "too many of them"))
    assert isinstance(error, errors.Unavailable)
    assert "Overrun: too many of them" in str(error)


def test_what_the_caller_did_wrong_is_told_apart_from_what_the_service_did():
    """Statuses: 4xx asks for another question, 5xx for another time."""
    assert status_of(WriterFenced("x")) == 409
    assert status_of(NotFound("x")) == 404
    assert status_of(errors.EventTooLarge("x")) == 413
    assert status_of(errors.InvalidName("x")) == 400
    assert status_of(Unreachable("x")) == 503
    assert status_of(Corrupt("x")) == 500


async def stream(batches, failure=None):
    """A stream of lines as it goes over the wire."""

    async def source():
        for batch in batches:
            yield batch
        if failure is not None:
            raise failure

    return b"".join([piece async for piece in lines(source())])


def read(data, cuts=()):
    """The lines of a stream that arrives in pieces."""
    reader = Lines("the events")
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        for part in reader.take(data[start:end]):
            found += part.splitlines()
    reader.finish()
    return found


values = st.lists(st.lists(st.integers().map(lambda n: b'{"id":"%d"}' % n), max_size=5), max_size=5)


@given(batches=values, data=st.data())
async def test_lines_arrive_however_the_stream_is_cut_into_pieces(batches, data):
    """What comes in is what went out, whatever pieces the network makes of it."""
    sent = await stream(batches)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    assert read(sent, cuts) == [value for batch in batches for value in batch]


@given(batches=values, data=st.data())
async def test_a_stream_that_is_cut_off_is_noticed(batches, data):
    """Whatever is missing at the end, reading it to the end raises."""
    sent = await stream(batches)
    with pytest.raises(Unreachable, match="cut off"):
        read(sent[: data.draw(st.integers(0, len(sent) - 1))])


async def test_what_goes_wrong_on_the_way_is_raised_where_the_stream_is_read():
    """A damaged row in the middle arrives as the error that it was."""
    sent = await stream([[b'{"id":"1"}']], Corrupt("row 2 is damaged", hint="restore it"))
    with pytest.raises(Corrupt, match="row 2 is damaged"):
        read(sent)


def test_lineages_go_there_and_back():
    """A fork with undone events is read as it was written."""
    stream = Stream("airline/twin", 9, "airline/mia", 4, (Revert(7, 5),))
    assert messages.stream_of(messages.stream_body(stream)) == stream
