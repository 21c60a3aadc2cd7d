"""Fixtures of the functional tests: real processes on loopback, no root."""

from collections.abc import Iterator

import pytest

from tests.functional.brokers import GEARMAND, OURS, RunningBroker, running_broker


@pytest.fixture(params=[OURS, GEARMAND], ids=str)
def broker(request: pytest.FixtureRequest) -> Iterator[RunningBroker]:
    """A broker of its own for the test: ours, then Debian's gearmand with default flags."""
    with running_broker(request.param) as running:
        yield running
