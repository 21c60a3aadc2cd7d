"""What every Disks promises, and what only real files can break."""

import json
from pathlib import Path
from typing import Any

import pytest

from hosts.drivers.base import DiskInfo
from schemas.errors import DiskError
from schemas.plan import Disk
from tests.contract.rigs import RealRig, Rig, tool

GIB = 1 << 30


def test_a_usable_image_passes_and_a_missing_one_is_named(rig: Rig) -> None:
    rig.drivers.disks.check_image(rig.plant_image("base.qcow2"))
    with pytest.raises(DiskError, match=r"missing\.qcow2.*no such file"):
        rig.drivers.disks.check_image(rig.directory / "missing.qcow2")
    with pytest.raises(DiskError, match=r"vmlinuz.*no such file"):
        rig.drivers.disks.check_readable(rig.directory / "vmlinuz")


def test_an_overlay_needs_its_base(rig: Rig) -> None:
    disk = Disk(
        path=rig.directory / "a.qcow2", size_gib=1, format="qcow2", base=rig.directory / "none"
    )
    with pytest.raises(DiskError, match="none"):
        rig.drivers.disks.make_fresh(disk)


def test_a_disk_is_seen_as_it_was_made(rig: Rig) -> None:
    base = rig.plant_image("base.qcow2")
    blank = Disk(path=rig.directory / "a", size_gib=3, format="raw")
    overlay = Disk(path=rig.directory / "b", size_gib=2, format="qcow2", base=base)
    disks = rig.drivers.disks
    for disk in (blank, overlay):
        disks.make_fresh(disk)
    assert disks.inspect(blank.path) == DiskInfo("raw", 3 * GIB)
    assert disks.inspect(overlay.path) == DiskInfo("qcow2", 2 * GIB, base, "qcow2")
    assert disks.inspect(rig.directory / "none") is None


def test_removing_a_disk_may_be_repeated(rig: Rig) -> None:
    disk = Disk(path=rig.directory / "a.qcow2", size_gib=1, format="qcow2")
    rig.drivers.disks.make_fresh(disk)
    rig.drivers.disks.remove(disk.path)
    rig.drivers.disks.remove(disk.path)


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_a_blank_disk_has_its_size_and_takes_no_space(real: RealRig, image_format: str) -> None:
    disk = Disk(path=real.directory / "new" / "a", size_gib=3, format=image_format)
    real.drivers.disks.make_fresh(disk)
    info = info_of(disk.path)
    assert (info["format"], info["virtual-size"]) == (image_format, 3 * GIB)
    assert info["actual-size"] < 1 << 20


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
def test_an_overlay_is_backed_by_its_base_in_the_bases_format(
    real: RealRig, base_format: str
) -> None:
    base = make_image(real, base_format, "2G")
    disk = Disk(path=real.directory / "a.qcow2", size_gib=1, format="qcow2", base=base)
    real.drivers.disks.make_fresh(disk)
    info = info_of(disk.path)
    assert info["backing-filename"] == str(base)
    assert info["backing-filename-format"] == base_format
    assert info["virtual-size"] == 2 * GIB


def test_an_overlay_may_be_larger_than_its_base(real: RealRig) -> None:
    base = make_image(real, "qcow2", "1G")
    disk = Disk(path=real.directory / "a.qcow2", size_gib=4, format="qcow2", base=base)
    real.drivers.disks.make_fresh(disk)
    assert info_of(disk.path)["virtual-size"] == 4 * GIB


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
def test_a_raw_disk_with_a_base_is_a_copy_of_it(real: RealRig, base_format: str) -> None:
    base = make_image(real, base_format, "1G")
    tool("qemu-io", "-f", base_format, "-c", "write -P 0x42 0 64k", base)
    disk = Disk(path=real.directory / "a.raw", size_gib=2, format="raw", base=base)
    real.drivers.disks.make_fresh(disk)
    info = info_of(disk.path)
    assert (info["format"], info["virtual-size"]) == ("raw", 2 * GIB)
    assert info["actual-size"] < 1 << 20
    with disk.path.open("rb") as file:
        assert file.read(65536) == b"\x42" * 65536


def test_what_a_disk_held_is_gone_and_its_base_is_as_it_was(real: RealRig) -> None:
    base = make_image(real, "qcow2", "1G")
    tool("qemu-io", "-c", "write -P 0x42 0 64k", base)
    disk = Disk(path=real.directory / "a.qcow2", size_gib=1, format="qcow2", base=base)
    real.drivers.disks.make_fresh(disk)
    tool("qemu-io", "-c", "write -P 0x99 0 64k", disk.path)
    real.drivers.disks.make_fresh(disk)
    assert (
        "pattern verification failed"
        not in tool("qemu-io", "-c", "read -P 0x42 0 64k", disk.path).casefold()
    )


def test_a_disk_that_cannot_be_made_leaves_the_old_one(real: RealRig) -> None:
    disk = Disk(path=real.directory / "a.qcow2", size_gib=1, format="qcow2")
    real.drivers.disks.make_fresh(disk)
    before = disk.path.read_bytes()
    with pytest.raises(DiskError):
        real.drivers.disks.make_fresh(disk.model_copy(update={"base": real.directory / "none"}))
    assert disk.path.read_bytes() == before
    assert list(real.directory.iterdir()) == [disk.path]


def test_an_image_behind_a_closed_directory_is_refused_with_a_remedy(real: RealRig) -> None:
    closed = real.directory / "closed"
    closed.mkdir(mode=0o700)
    image = closed / "base.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", image, "1G")
    with pytest.raises(DiskError, match="namei -l"):
        real.drivers.disks.check_image(image)
    with pytest.raises(DiskError, match="namei -l"):
        real.drivers.disks.check_readable(image)


def test_an_image_whose_own_base_is_unreadable_is_refused(real: RealRig) -> None:
    base = make_image(real, "qcow2", "1G")
    image = real.directory / "image.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
    base.chmod(0o600)
    with pytest.raises(DiskError, match=r"base\.qcow2"):
        real.drivers.disks.check_image(image)


@pytest.mark.parametrize("image_format", ["vmdk", "vdi"])
def test_an_image_in_another_format_is_refused(real: RealRig, image_format: str) -> None:
    image = make_image(real, image_format, "1G")
    with pytest.raises(DiskError, match="not qcow2 or raw"):
        real.drivers.disks.check_image(image)


def test_an_empty_file_is_no_image(real: RealRig) -> None:
    image = real.directory / "base.raw"
    image.touch()
    with pytest.raises(DiskError, match="empty"):
        real.drivers.disks.check_image(image)


def make_image(real: RealRig, image_format: str, size: str) -> Path:
    image = real.directory / f"base.{image_format}"
    tool("qemu-img", "create", "-q", "-f", image_format, image, size)
    return image


def info_of(path: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(tool("qemu-img", "info", "--output=json", path))
    return info
