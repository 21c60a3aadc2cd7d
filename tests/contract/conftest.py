"""Fixtures of the contract suite: every promise is kept by the fakes and by the real drivers."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.rigs import FakeRig, RealRig, Rig

REAL_DIRECTORY = Path("/var/lib/testenv/contract")
"""QEMU's user can get here, and not into pytest's own temporary directories."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real drivers act on the machine that they are on, so that must be a lab host."""
    if "TESTENV_LAB_HOST" in os.environ:
        return
    if "CI" in os.environ:
        raise pytest.UsageError("the contract suite must not skip in CI: run it by make contract")
    skip = pytest.mark.skip(reason="needs a lab host: run make test")
    for item in items:
        names = getattr(item, "fixturenames", ())
        callspec = getattr(item, "callspec", None)
        if "real" in names or (callspec and callspec.params.get("rig") == "real"):
            item.add_marker(skip)


@pytest.fixture(params=["fake", "real"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A machine without anything of ours, once in memory and once for real."""
    if request.param == "real":
        yield request.getfixturevalue("real")
    else:
        yield FakeRig(tmp_path)


@pytest.fixture
def real() -> Iterator[RealRig]:
    """This lab host, for promises that only real things can break."""
    shutil.rmtree(REAL_DIRECTORY, ignore_errors=True)
    REAL_DIRECTORY.mkdir(parents=True)
    machine = RealRig(REAL_DIRECTORY)
    try:
        yield machine
    finally:
        machine.close()
