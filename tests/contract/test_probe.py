"""What `testenv-host check` and `run` learn from a real host."""

from typing import Any

import pytest

from hosts.drivers.connect import connect
from hosts.drivers.hypervisor import LibvirtHypervisor
from hosts.drivers.probe import check_drivers
from schemas.config import HostConfig
from schemas.errors import DomainError
from tests.contract.plans import build, planned_domain
from tests.contract.rigs import RealRig


def configured(real: RealRig, **sections: dict[str, Any]) -> HostConfig:
    image = real.plant_image("seed.qcow2")
    defaults: dict[str, Any] = {
        "host": {"name": "contract", "state_dir": real.directory},
        "environments": {"seed": {"image": image}},
    }
    return HostConfig.model_validate(defaults | sections)


def test_a_host_that_has_everything_passes_every_check(real: RealRig) -> None:
    checks = check_drivers(configured(real))
    assert [check.line() for check in checks if not check.ok] == []
    assert [check.name for check in checks] == [
        *("libvirt", "qemu", "kvm", "state_dir", "image"),
        *("open vswitch", "dnsmasq"),
    ]
    assert real.domains() == {}
    assert real.bridges() == {}


def test_each_thing_that_is_missing_is_named(real: RealRig) -> None:
    missing = real.directory / "missing.qcow2"
    config = configured(
        real,
        environments={"seed": {"image": missing}},
        switch={"ovsdb": f"unix:{real.directory}/none.sock"},
    )
    failed = {check.name: check for check in check_drivers(config) if not check.ok}
    assert set(failed) == {"image", "open vswitch"}
    assert str(missing) in failed["image"].detail
    assert "none.sock" in failed["open vswitch"].line()


def test_without_libvirt_what_it_would_tell_is_not_asked_for(real: RealRig) -> None:
    config = configured(real, hypervisor={"uri": "qemu+unix:///system?socket=/none"})
    checks = {check.name: check for check in check_drivers(config)}
    assert not checks["libvirt"].ok
    assert "kvm" not in checks
    assert checks["dnsmasq"].ok
    with pytest.raises(DomainError, match="libvirtd running"):
        connect(config)


def test_connecting_finds_out_what_is_left_to_auto(real: RealRig) -> None:
    drivers = connect(configured(real))
    try:
        assert isinstance(drivers.hypervisor, LibvirtHypervisor)
        build(real, planned_domain(real))
        drivers.hypervisor.start_domain("seed_1")
        assert real.domains() == {"seed_1": True}
    finally:
        drivers.close()
