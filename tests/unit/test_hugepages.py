"""Huge pages: how they are counted, planned for, checked, and asked for in a definition."""

from pathlib import Path

import pytest
from lxml import etree

from hosts.drivers.base import HugePages
from hosts.drivers.fake import FakeMachine, FakeMemory
from hosts.drivers.memory import LinuxMemory, hugetlbfs_mount
from hosts.plan import plan_host
from hosts.tables import explain
from schemas.config import HostConfig
from schemas.errors import ConfigError, MemoryDriverError
from schemas.plan import Facts, HostPlan

MEMINFO = """\
MemTotal:       24576000 kB
HugePages_Total:    {total}
HugePages_Free:     {free}
HugePages_Rsvd:     {reserved}
HugePages_Surp:        0
Hugepagesize:       2048 kB
"""


def planned(pages: int = 1000, page_kib: int = 2048, **environments: object) -> HostPlan:
    config = HostConfig.model_validate(
        {"host": {"name": "te1"}, "environments": {"memory_backing": "hugepages"} | environments}
    )
    facts = Facts(memory_mib=4096, cpus=64, disk_gib=500, hugepages=pages, hugepage_kib=page_kib)
    return plan_host(config, facts, "host.toml")


@pytest.mark.parametrize(
    ("total", "free", "reserved", "left"), [(0, 0, 0, 0), (64, 48, 0, 48), (64, 48, 40, 8)]
)
def test_what_is_promised_to_somebody_is_not_free(
    tmp_path: Path, total: int, free: int, reserved: int, left: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO.format(total=total, free=free, reserved=reserved))
    assert LinuxMemory(meminfo).hugepages() == HugePages(2048, total, left)


def test_a_kernel_without_huge_pages_has_none(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24576000 kB\n")
    assert LinuxMemory(meminfo).hugepages() == HugePages(0, 0, 0)
    with pytest.raises(MemoryDriverError, match="cannot be read: No such file"):
        LinuxMemory(tmp_path / "nowhere").hugepages()


def test_their_mount_is_found(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert hugetlbfs_mount(mounts) is None
    mounts.write_text("proc /proc proc rw 0 0\nhuge /run/huge hugetlbfs rw,pagesize=2M 0 0\n")
    assert hugetlbfs_mount(mounts) == "/run/huge"


def test_the_pool_takes_the_place_of_memory_when_environments_are_counted() -> None:
    count = planned(pages=1000).count
    assert (count.value, count.limited_by) == (1000 // (3 * 128), "hugepages")
    assert "memory" not in {bound.resource for bound in count.bounds}
    assert "  hugepages: 1000 pages / 384 pages each allows 2" in explain(count)
    assert all(domain.hugepages for domain in planned().domains)


def test_a_host_without_pages_carries_nothing() -> None:
    assert planned(pages=0).count.value == 0


@pytest.mark.parametrize(
    ("environments", "page_kib", "message"),
    [
        (
            {"seed": {"memory_mib": 255, "image": "/images/seed.qcow2"}},
            2048,
            (
                "host.toml: environments.seed.memory_mib: 255 MiB is no whole number of huge pages"
                " of 2048 KiB; round it up, or use another default_hugepagesz"
            ),
        ),
        (
            {"nodes": {"memory_mib": 1536}, "seed": {"memory_mib": 1024, "image": "/i"}},
            1024 * 1024,
            (
                "host.toml: environments.nodes.memory_mib: 1536 MiB is no whole number of huge"
                " pages of 1048576 KiB; round it up, or use another default_hugepagesz"
            ),
        ),
    ],
)
def test_no_guest_gets_a_part_of_a_page(
    environments: dict[str, object], page_kib: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(1000, page_kib, **environments)
    assert str(caught.value) == message


def test_pages_are_promised_once() -> None:
    with pytest.raises(ValueError, match=r"overcommit.memory must be 1 with hugepages"):
        planned(overcommit={"memory": 1.5})
    planned(overcommit={"memory": 1.0, "cpus": 4.0})


def test_a_pool_that_is_too_small_for_the_count_fails_the_check_with_what_to_do() -> None:
    check = pytest.importorskip("hosts.check", reason="needs the host extra", exc_type=ImportError)
    [finding] = [
        one for one in check.check_resources(planned(100, count=1)) if one.name == "hugepages"
    ]
    assert finding.line() == (
        "hugepages: FAILED: 384 pages needed with the reserve, 100 pages here; lower"
        " environments.count or the machines' sizes, or reserve more: sysctl vm.nr_hugepages=384"
    )


@pytest.mark.parametrize(
    ("pages", "mount", "line"),
    [
        (64, "/dev/hugepages", "huge pages: ok: 64 of 64 are free, of 2048 KiB, at /dev/hugepages"),
        (
            64,
            None,
            (
                "huge pages: FAILED: 64 of 64 are free, of 2048 KiB, but they are mounted nowhere;"
                " mount -t hugetlbfs hugetlbfs /dev/hugepages, and restart libvirt"
            ),
        ),
    ],
)
def test_the_check_says_what_is_free_and_where(pages: int, mount: str | None, line: str) -> None:
    probe = pytest.importorskip(
        "hosts.drivers.probe", reason="needs the host extra", exc_type=ImportError
    )
    assert probe.check_hugepages(FakeMemory(FakeMachine(hugepages=pages)), mount).line() == line


def test_only_those_who_want_them_ask_libvirt_for_them() -> None:
    from hosts.drivers.domain_xml import domain_xml

    seed = planned().domains[0]
    for domain, asked in ((seed, 1), (seed.model_copy(update={"hugepages": False}), 0)):
        xml = domain_xml(domain, host="te1", domain_type="kvm", datapath_type="system")
        assert len(etree.fromstring(xml).findall("memoryBacking/hugepages")) == asked
