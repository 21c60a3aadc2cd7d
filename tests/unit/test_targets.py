"""What operators mean by a target."""

import pytest

from schemas.errors import HostError
from testenv.targets import Chosen, UnknownTarget, choose, everything, find_environment
from tests.unit.fleet_rig import a_fleet, a_host, a_silent_host, an_environment

FLEET = a_fleet(
    *(
        a_host(name, an_environment(f"{name}/1"), an_environment(f"{name}/2"))
        for name in ("te-host-01", "te-host-02", "other")
    ),
    a_silent_host("te-host-03"),
)


def chosen(*targets: str) -> dict[str, tuple[str, ...]]:
    """What is meant of each host; nothing means that the whole host is."""
    return {each.host: each.asked_for for each in choose(FLEET, targets)}


def test_a_host_means_all_that_it_has() -> None:
    [host] = choose(FLEET, ["te-host-01"])
    assert host == Chosen(FLEET.hosts[0], ("te-host-01/1", "te-host-01/2"), whole=True)


def test_an_environment_means_itself() -> None:
    assert chosen("te-host-01/2") == {"te-host-01": ("te-host-01/2",)}


def test_a_glob_means_all_hosts_or_all_environments_that_it_matches() -> None:
    whole: dict[str, tuple[str, ...]] = {f"te-host-0{n}": () for n in (1, 2, 3)}
    assert chosen("te-host-*") == whole
    assert chosen("*/2") == {
        "te-host-01": ("te-host-01/2",),
        "te-host-02": ("te-host-02/2",),
        "other": ("other/2",),
        "te-host-03": (),
    }
    assert chosen("te-host-01/*") == {"te-host-01": ("te-host-01/1", "te-host-01/2")}


def test_a_host_is_there_once_however_often_it_is_meant() -> None:
    assert chosen("te-host-01/2", "te-host-01/1", "*-01/2") == {
        "te-host-01": ("te-host-01/1", "te-host-01/2")
    }
    assert chosen("te-host-01/2", "te-host-*1") == {"te-host-01": ()}
    assert chosen("te-host-01", "te-host-01/2") == {"te-host-01": ()}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("te-host-1", "no host te-host-1; did you mean te-host-01"),
        ("te-hst-*", "no host te-hst-*; did you mean te-host-0"),
        ("te-host-01/7", "no environment te-host-01/7; did you mean te-host-01/"),
        ("te-host-01/", "no environment te-host-01/; did you mean te-host-01/"),
        ("nobody", "no host nobody; see testenv status"),
        ("", "no host ; see testenv status"),
    ],
)
def test_what_nobody_knows_is_refused_naming_the_nearest(target: str, words: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        choose(FLEET, ["te-host-02", target])
    assert words in str(caught.value)


def test_everything_is_every_host_also_the_silent_one() -> None:
    assert [(each.host, each.whole) for each in everything(FLEET)] == [
        (view.host, True) for view in FLEET.hosts
    ]


def test_one_environment_is_found_on_its_host() -> None:
    assert find_environment(FLEET, "te-host-02/1") is FLEET.hosts[1]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("te-host-01", "is not one environment; name it: HOST/NUMBER"),
        ("te-host-01/*", "is not one environment"),
        ("*/1", "is not one environment"),
        ("te-host-03/1", "no answer within 3 s"),
        ("te-host-01/7", "did you mean"),
    ],
)
def test_what_is_not_one_environment_is_refused(target: str, words: str) -> None:
    with pytest.raises(HostError) as caught:
        find_environment(FLEET, target)
    assert words in str(caught.value)
