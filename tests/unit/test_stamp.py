"""Who asked, read from a job's handle."""

import pytest

from broker.server.job import new_handle
from broker.stamp import submitter


@pytest.mark.parametrize("subject", ["job/ci-7", "host/te-1.example.org", "operator/ann"])
def test_submitter_is_what_our_broker_stamps(subject: str) -> None:
    assert submitter(new_handle(subject)) == subject


@pytest.mark.parametrize(
    "handle",
    [
        b"",
        new_handle("unverified"),
        b"H:broker:17",
        b"H:127.0.0.1:17",
        b"H:AAAAAAAAAAAAAAAA:root/a",
        b"H:AAAAAAAAAAAAAAAA:job/",
        b"H:AAAAAAAAAAAAAAAA:job/a\n",
        b"H:AAAAAAAAAAAAAAAA:job/a:b",
        b"H:AAAAAAAAAAAAAAA:job/a",
        b"xH:AAAAAAAAAAAAAAAA:job/a",
    ],
)
def test_anything_else_is_unverified(handle: bytes) -> None:
    assert submitter(handle) == "unverified"
