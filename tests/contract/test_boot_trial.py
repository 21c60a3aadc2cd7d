"""An image is booted before it is used, on a real libvirt."""

from pathlib import Path

import pytest

from hosts.drivers.base import DiskInfo
from hosts.drivers.connect import boot_test
from hosts.drivers.kvm import BOOT_DISK
from schemas.config import (
    EnvironmentsSection,
    HostConfig,
    HostSection,
    HypervisorSection,
    SeedSection,
)
from schemas.errors import ImageError
from tests.contract.rigs import LIBVIRT, RealRig

RAW = DiskInfo("raw", len(BOOT_DISK))


@pytest.fixture
def config(real: RealRig) -> HostConfig:
    seed = SeedSection(image=Path("seed"), memory_mib=32)
    return HostConfig(
        host=HostSection(name="te1", state_dir=real.directory),
        hypervisor=HypervisorSection(uri=LIBVIRT, domain_type="qemu"),
        environments=EnvironmentsSection(seed=seed),
    )


@pytest.fixture
def image(real: RealRig) -> Path:
    """It says K, and no more."""
    path = real.directory / "image"
    path.write_bytes(BOOT_DISK)
    return path


def test_image_that_boots_to_its_marker_passes(
    real: RealRig, config: HostConfig, image: Path
) -> None:
    boot_test(config, "K", within_s=30)(image, RAW)
    assert image.read_bytes() == BOOT_DISK
    assert real.domains() == {}
    assert list(real.directory.iterdir()) == [image]


def test_image_that_does_not_say_its_marker_in_time_fails_with_what_it_said(
    real: RealRig, config: HostConfig, image: Path
) -> None:
    with pytest.raises(ImageError, match=r"did not say 'login:' within 2 s .* last words: .*K"):
        boot_test(config, "login:", within_s=2)(image, RAW)
    assert real.domains() == {}
    assert list(real.directory.iterdir()) == [image]
