"""Consoles of the lease that runs and of those that have ended, as operators ask for them."""

from pathlib import Path

import pytest

from hosts.archive import CONSOLES, Archive, Shelf
from hosts.consoles import Consoles
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.control import MAX_PIECE, ConsoleRequest
from schemas.errors import HostError
from schemas.plan import Environment, Facts

OLD, NEW, RUNNING = "0" * 32, "1" * 32, "2" * 32


@pytest.fixture
def environments(tmp_path: Path) -> tuple[Environment, ...]:
    """Twelve, whose numbers begin alike."""
    sections = {"host": {"name": "te1", "state_dir": str(tmp_path)}, "environments": {"count": 12}}
    config = HostConfig.model_validate(sections)
    (tmp_path / CONSOLES).mkdir()
    return plan_host(config, Facts(memory_mib=65536, cpus=64, disk_gib=500)).environments


@pytest.fixture
def archive(tmp_path: Path, environments: tuple[Environment, ...]) -> Archive:
    """Of environment 1 with two leases that have ended, and all twelve's consoles of now."""
    keeper = Consoles(tmp_path / CONSOLES, keep=5)
    for lease in (OLD, NEW):
        for domain in environments[0].domains:
            domain.console.write_text(f"{domain.name} in {lease}")
        keeper.keep(environments[0], lease)
    for env in environments:
        for domain in env.domains:
            domain.console.write_text(f"{domain.name} now")
    return Archive(tmp_path / CONSOLES)


def read(archive: Archive, shelf: Shelf, lease: str, domain: str, offset: int = 0) -> bytes:
    request = ConsoleRequest(
        environment=shelf.environment, lease=lease, domain=domain, offset=offset
    )
    return archive.piece(shelf, request).data


def test_without_an_id_it_is_the_lease_that_runs_and_its_environment_s_domains_only(
    archive: Archive,
) -> None:
    shelf = Shelf("te1/1", RUNNING)
    found = archive.consoles(shelf, "")
    assert (found.lease, found.runs) == (RUNNING, True)
    assert list(found.sizes) == ["baremetalbrbm1_0", "baremetalbrbm1_1", "seed_1"]
    assert read(archive, shelf, RUNNING, "seed_1") == b"seed_1 now"
    assert found.sizes["seed_1"] == len("seed_1 now")


def test_while_none_runs_it_is_the_last_and_each_is_found_by_its_id_s_beginning(
    archive: Archive,
) -> None:
    shelf = Shelf("te1/1", None)
    assert archive.consoles(shelf, "").lease == NEW
    found = archive.consoles(shelf, OLD[:8])
    assert (found.lease, found.runs) == (OLD, False)
    assert read(archive, shelf, OLD, "seed_1") == f"seed_1 in {OLD}".encode()


def test_a_lease_that_ends_while_it_is_read_is_read_on(
    archive: Archive, environments: tuple[Environment, ...], tmp_path: Path
) -> None:
    assert read(archive, Shelf("te1/1", RUNNING), RUNNING, "seed_1") == b"seed_1 now"
    Consoles(tmp_path / CONSOLES, keep=5).keep(environments[0], RUNNING)
    assert read(archive, Shelf("te1/1", None), RUNNING, "seed_1", 7) == b"now"


def test_a_long_console_comes_in_pieces_with_what_was_moved_aside_first(
    archive: Archive, environments: tuple[Environment, ...]
) -> None:
    console = environments[0].seed.console
    console.with_name(f"{console.name}.1").write_bytes(b"a" * MAX_PIECE)
    console.with_name(f"{console.name}.0").write_bytes(b"b" * 10)
    console.write_bytes(b"c" * 10)
    shelf = Shelf("te1/1", RUNNING)
    assert archive.consoles(shelf, "").sizes["seed_1"] == MAX_PIECE + 20
    assert read(archive, shelf, RUNNING, "seed_1") == b"a" * MAX_PIECE
    assert read(archive, shelf, RUNNING, "seed_1", MAX_PIECE - 1) == b"a" + b"b" * 10 + b"c" * 10
    assert read(archive, shelf, RUNNING, "seed_1", MAX_PIECE + 20) == b""


def test_what_is_not_kept_is_refused_naming_what_is(archive: Archive) -> None:
    with pytest.raises(HostError, match=f"no console of lease ffff .* {NEW}, {OLD}"):
        archive.consoles(Shelf("te1/1", None), "ffff")
    with pytest.raises(HostError, match="no console of any lease is kept of te1/2; none ran yet"):
        archive.consoles(Shelf("te1/2", None), "")
    for lease, domain in ((OLD, "seed_2"), (OLD, "../seed_1"), ("../..", "seed_1"), ("", "kept")):
        with pytest.raises(HostError, match=f"no console of {domain}"):
            read(archive, Shelf("te1/1", RUNNING), lease, domain)
