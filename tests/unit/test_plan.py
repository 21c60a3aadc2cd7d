"""The plan: the same configuration always stands for the same names, MACs and addresses."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hosts.plan import derive_mac, plan_host
from schemas.config import HostConfig
from schemas.errors import ConfigError
from schemas.plan import Facts, HostPlan, Network

BIG = Facts(memory_mib=64 * 1024, cpus=16, disk_gib=500)


def config(**environments: object) -> HostConfig:
    return HostConfig.model_validate({"host": {"name": "te1"}, "environments": environments})


def planned(**environments: object) -> HostPlan:
    return plan_host(config(**environments), BIG)


def test_auto_count_is_the_least_of_what_each_resource_allows() -> None:
    count = planned().count
    assert count.value == 5
    assert count.limited_by == "cpus"
    assert {bound.resource: bound.allows for bound in count.bounds} == {
        "memory": (64 * 1024 - 1024) // (3 * 256),
        "cpus": (16 - 1) // 3,
        "disk": (500 - 5) // 3,
        "addresses": 90,
    }


def test_auto_count_is_limited_by_memory_on_a_host_with_little_of_it() -> None:
    count = plan_host(config(), Facts(memory_mib=4096, cpus=64, disk_gib=500)).count
    assert (count.value, count.limited_by) == (4, "memory")


def test_auto_count_is_limited_by_disk_when_nodes_have_large_ones() -> None:
    count = planned(nodes={"disk_gib": 200}).count
    assert (count.value, count.limited_by) == (1, "disk")


def test_auto_count_never_exceeds_the_seed_addresses() -> None:
    configuration = HostConfig.model_validate(
        {"public": {"seed_addresses": ["203.0.113.10", "203.0.113.12"]}}
    )
    count = plan_host(configuration, BIG).count
    assert (count.value, count.limited_by) == (3, "addresses")


def test_a_host_smaller_than_its_reserve_carries_nothing() -> None:
    count = plan_host(config(), Facts(memory_mib=512, cpus=1, disk_gib=2)).count
    assert count.value == 0


@pytest.mark.parametrize(
    ("overcommit", "environments", "limit"),
    [({}, 5, "cpus"), ({"cpus": 4}, 20, "cpus"), ({"cpus": 4, "memory": 0.1}, 8, "memory")],
)
def test_overcommit_promises_more_or_less_than_there_is(
    overcommit: dict[str, float], environments: int, limit: str
) -> None:
    count = planned(overcommit=overcommit).count
    assert (count.value, count.limited_by) == (environments, limit)


def test_a_tenth_more_of_ten_is_eleven() -> None:
    one_cpu = {"nodes": {"count": 0}, "reserve": {"cpus": 0}, "overcommit": {"cpus": 1.1}}
    facts = Facts(memory_mib=64 * 1024, cpus=10, disk_gib=500)
    assert plan_host(config(**one_cpu), facts).count.value == 11


def test_a_named_image_is_whichever_is_current() -> None:
    [base, *_] = [env.seed.disk.base for env in planned(seed={"image": "centos-9"}).environments]
    assert str(base) == "/var/lib/testenv/images/centos-9/current"


@pytest.mark.parametrize("image", ["images/seed", "Seed", "../seed"])
def test_an_image_is_a_name_or_an_absolute_path(image: str) -> None:
    with pytest.raises(ValueError, match="must be an image's name, or an absolute path"):
        config(seed={"image": image})


def test_a_given_count_is_taken_even_beyond_what_auto_would_give() -> None:
    plan = planned(count=12)
    assert len(plan.environments) == 12
    assert plan.count.wanted == 12


def test_more_environments_than_seed_addresses_are_refused_naming_the_key() -> None:
    with pytest.raises(ConfigError, match=r"te1\.toml: environments\.count: 91 environments"):
        plan_host(config(count=91), BIG, "te1.toml")


def test_names_are_those_of_toci() -> None:
    env = planned(count=3).environments[2]
    assert env.id == "te1/3"
    assert env.seed.name == "seed_3"
    assert [node.name for node in env.nodes] == ["baremetalbrbm3_0", "baremetalbrbm3_1"]
    assert env.bridge == "brbm3"


def test_seed_is_on_the_public_and_the_private_bridge_and_nodes_on_the_private_one() -> None:
    env = planned(count=1).environments[0]
    assert [(nic.network, nic.bridge) for nic in env.seed.nics] == [
        (Network.PUBLIC, "br-ctlplane"),
        (Network.PRIVATE, "brbm1"),
    ]
    for node in env.nodes:
        assert [(nic.network, nic.bridge) for nic in node.nics] == [(Network.PRIVATE, "brbm1")]


def test_seeds_have_consecutive_public_addresses() -> None:
    addresses = [env.seed.nics[0].address for env in planned(count=3).environments]
    assert addresses == [IPv4Address(f"203.0.113.{last}") for last in (10, 11, 12)]


def test_planning_again_gives_the_same_plan() -> None:
    assert planned() == planned()


def test_another_host_shares_no_mac_and_no_uuid() -> None:
    here = planned(count=5)
    elsewhere = plan_host(
        HostConfig.model_validate({"host": {"name": "te2"}, "environments": {"count": 5}}), BIG
    )
    assert not macs(here) & macs(elsewhere)
    assert not {d.uuid for d in here.domains} & {d.uuid for d in elsewhere.domains}


def test_all_names_of_taps_fit_into_a_linux_interface_name() -> None:
    configuration = config(count=90, nodes={"count": 100})
    plan = plan_host(configuration, BIG)
    ports = [nic.port for domain in plan.domains for nic in domain.nics]
    assert max(len(port) for port in ports) <= 15
    assert len(set(ports)) == len(ports)


def test_colliding_macs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hosts.plan.derive_mac", lambda *_: "52:00:00:00:00:01")
    with pytest.raises(ConfigError, match="two NICs would have the MAC 52:00:00:00:00:01"):
        planned(count=1)


@given(
    st.text(min_size=1, max_size=20), st.integers(1, 999), st.text(max_size=20), st.integers(0, 9)
)
def test_macs_are_unicast_locally_administered_and_not_reserved_by_libvirt(
    host: str, number: int, domain: str, nic: int
) -> None:
    first = int(derive_mac(host, number, domain, nic).split(":")[0], 16)
    assert first & 0b01 == 0
    assert first & 0b10
    assert first != 0xFE


def macs(plan: HostPlan) -> set[str]:
    return {nic.mac for domain in plan.domains for nic in domain.nics}
