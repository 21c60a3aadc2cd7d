"""What `testenv-host check` says of a plan that is too large for its host."""

import pytest

from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.plan import Facts

check = pytest.importorskip("hosts.check", reason="needs the host extra", exc_type=ImportError)


def findings(count: int | str, **facts: int) -> dict[str, bool]:
    config = HostConfig.model_validate({"environments": {"count": count}})
    machine = Facts(**{"memory_mib": 4096, "cpus": 8, "disk_gib": 50} | facts)
    plan = plan_host(config, machine)
    return {finding.name: finding.ok for finding in check.check_resources(plan)}


def test_a_plan_that_fits_is_fine() -> None:
    assert findings(2) == {"memory": True, "cpus": True, "disk": True}


def test_too_little_memory_or_disk_is_refused() -> None:
    assert findings(5, cpus=64) == {"memory": False, "cpus": True, "disk": True}
    assert findings(2, disk_gib=8) == {"memory": True, "cpus": True, "disk": False}


def test_cpus_may_be_overcommitted_by_an_explicit_count() -> None:
    assert findings(3)["cpus"]


def test_a_host_too_small_for_one_environment_is_refused() -> None:
    assert findings("auto", cpus=2) == {"environments": False}
