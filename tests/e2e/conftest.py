"""One lab for all end-to-end tests; for each kind of broker, agents that build it anew."""

from collections.abc import Iterator

import pytest

from tests.e2e.fleet import BROKERS, Fleet, running_fleet


@pytest.fixture(scope="session")
def lab_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two configured hosts, te1 and te2."""
    with running_fleet(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("logs")) as fleet:
        yield fleet


@pytest.fixture(scope="module", params=sorted(BROKERS))
def fleet(request: pytest.FixtureRequest, lab_fleet: Fleet) -> Iterator[Fleet]:
    """A broker and both agents, four environments ready; destroyed again afterwards."""
    with lab_fleet.serving(request.param):
        for host in lab_fleet.lab.hosts.values():
            lab_fleet.start_agent(host)
        lab_fleet.wait_for_states(ALL_READY)
        yield lab_fleet


ALL_READY = {"te1/1": "ready", "te1/2": "ready", "te2/1": "ready", "te2/2": "ready"}
