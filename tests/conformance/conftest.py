"""The store is a parameter: every test of this folder runs on every store there is."""

import pytest
from tests.conformance.places import KINDS, wanted
from tests.conformance.ran import PROPERTY


@pytest.fixture(params=[pytest.param(name, marks=KINDS[name].marks) for name in wanted()])
def stores(request):
    """A maker of places: empty stores whose data outlives connections."""
    request.node.user_properties.append((PROPERTY, request.param))
    made = KINDS[request.param](request.getfixturevalue)
    yield made
    made.close()


@pytest.fixture
async def place(stores):
    """One empty store to connect to, again and again."""
    made = stores.place()
    yield made
    await made.close()


@pytest.fixture
async def store(place):
    """A connection to an empty store."""
    return await place.connect()
