"""How the services listen to Kafka: what FastStream does by default must not come through."""

import importlib

import pytest
from faststream import AckPolicy

from perdure.cli.serve.command import MODULES
from perdure.settings import Cluster

DEAF_MILLISECONDS_MAX = 500
LIFETIME_MILLISECONDS = 50 * 365 * 24 * 3600 * 1000
SERVICES = sorted(set(MODULES) - {"gateway"})


def subscribers(service):
    """What a service listens with."""
    broker = importlib.import_module(MODULES[service]).application(Cluster()).broker
    assert broker.subscribers
    return broker.subscribers


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_was_idle_for_long_is_not_deaf(service):
    """FastStream sleeps after a wait in vain, as long again: it waits for ever, or for a moment."""
    for subscriber in subscribers(service):
        waits = subscriber.batch_timeout_ms
        assert waits <= DEAF_MILLISECONDS_MAX or waits >= LIFETIME_MILLISECONDS


@pytest.mark.parametrize("service", SERVICES)
def test_no_position_is_committed_before_the_work_is_done(service):
    """Every subscriber commits by itself, and nothing is committed for it."""
    for subscriber in subscribers(service):
        assert subscriber.ack_policy is AckPolicy.MANUAL
        assert not subscriber._connection_args.get("enable_auto_commit")
