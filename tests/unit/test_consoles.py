"""What domains said during earlier leases: kept for a while, and bounded."""

import logging
import os
from pathlib import Path

import pytest

from hosts.consoles import Consoles, kept_leases, log_files
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.plan import Environment, Facts


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    """Environment 1 of a host whose consoles are in `tmp_path`/console."""
    config = HostConfig.model_validate(
        {
            "host": {"name": "te1", "state_dir": tmp_path},
            "environments": {"count": 1, "nodes": {"count": 1}},
        }
    )
    plan = plan_host(config, Facts(memory_mib=65536, cpus=64, disk_gib=500))
    (tmp_path / "console").mkdir()
    return plan.environments[0]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "console"


def end_lease(env: Environment, directory: Path, lease: str, number: int, keep: int = 2) -> None:
    """`lease` ends as the `number`th; its seed has said its name."""
    env.seed.console.write_text(lease)
    Consoles(directory, keep).keep(env, lease)
    if (shelf := directory / "kept" / "1" / lease).exists():
        os.utime(shelf, (number, number))


def kept(directory: Path, lease: str) -> dict[str, str]:
    """What is kept of `lease`, by file."""
    shelf = directory / "kept" / "1" / lease
    return {path.name: path.read_text() for path in shelf.iterdir()}


def test_the_last_leases_are_kept_the_newest_first(env: Environment, directory: Path) -> None:
    for number, lease in enumerate(("aa", "bb", "cc", "dd"), start=1):
        end_lease(env, directory, lease, number)
    assert kept_leases(directory, 1) == ("dd", "cc")
    assert kept(directory, "cc") == {"seed_1.log": "cc"}
    assert not env.seed.console.exists()


def test_nothing_is_kept_where_none_is_wanted(env: Environment, directory: Path) -> None:
    end_lease(env, directory, "aa", 1, keep=0)
    assert kept_leases(directory, 1) == ()


def test_each_domain_has_its_own_log(env: Environment, directory: Path) -> None:
    env.nodes[0].console.write_text("iPXE")
    end_lease(env, directory, "aa", 1)
    assert kept(directory, "aa") == {"seed_1.log": "aa", "baremetalbrbm1_0.log": "iPXE"}


def test_what_virtlogd_has_moved_aside_goes_along_and_comes_first(
    env: Environment, directory: Path
) -> None:
    console = env.seed.console
    for number, text in (("10", "1"), ("2", "2"), ("0", "3")):
        console.with_name(f"{console.name}.{number}").write_text(text)
    console.write_text("4")
    assert [path.read_text() for path in log_files(console)] == ["1", "2", "3", "4"]
    Consoles(directory, 1).keep(env, "aa")
    shelf = directory / "kept" / "1" / "aa"
    assert [path.read_text() for path in log_files(shelf / console.name)] == ["1", "2", "3", "4"]
    assert log_files(console) == []


def test_what_is_kept_of_a_lease_is_not_replaced_by_later_boots(
    env: Environment, directory: Path
) -> None:
    end_lease(env, directory, "aa", 1)
    env.seed.console.write_text("a boot of a turnover that was cut short")
    env.nodes[0].console.write_text("which had not moved this yet")
    Consoles(directory, 2).keep(env, "aa")
    assert kept(directory, "aa") == {
        "seed_1.log": "aa",
        "baremetalbrbm1_0.log": "which had not moved this yet",
    }


def test_clearing_leaves_an_empty_log_and_may_be_repeated(
    env: Environment, directory: Path
) -> None:
    console = env.seed.console
    console.write_text("x")
    console.with_name(f"{console.name}.0").write_text("x")
    for _ in ("once", "and again"):
        Consoles(directory, 1).clear(env.seed)
        assert list(directory.iterdir()) == []


def test_a_disk_that_refuses_does_not_fail_a_fence(
    env: Environment, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "kept").write_text("no directory")
    with caplog.at_level(logging.WARNING):
        Consoles(directory, 1).keep(env, "aa")
    assert "consoles of lease aa are not kept" in caplog.text
