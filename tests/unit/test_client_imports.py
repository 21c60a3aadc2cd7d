"""What a client loads on its way to the command: a CI job pays for every module."""

import subprocess
import sys

import pytest

_PLAIN = """
import sys
from testenv.client import _openssl_left_out
with _openssl_left_out(unless={tls}):
    import asyncio
import testenv.run
print(*sys.modules)
import ssl
asyncio.run(asyncio.sleep(0))
"""


def loaded(*, tls: bool) -> set[str]:
    """Modules of a fresh interpreter that is about to connect."""
    code = _PLAIN.format(tls=tls)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["click", "cryptography", "dataclasses", "gear", "logging.config", "pydantic", "random",
     "rich", "shutil", "uuid"],
)  # fmt: skip
def test_client_does_not_load(module: str) -> None:
    assert module not in loaded(tls=True)


def test_openssl_is_loaded_for_tls_only_and_can_be_later() -> None:
    assert "ssl" in loaded(tls=True)
    assert not {"ssl", "_ssl"} & loaded(tls=False)
