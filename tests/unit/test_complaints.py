"""How much strangers can make a broker log."""

import pytest

from broker.server.complaints import ADDRESSES, LINES, OTHERS, WINDOW_S, Complaints
from tests.unit.exchange_rig import HandClock


def test_stranger_who_comes_in_a_loop_gets_a_few_lines_and_a_sum(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = HandClock()
    complaints = Complaints(clock)
    for _ in range(LINES + 500):
        complaints.warn("203.0.113.1", "no handshake with %s", "203.0.113.1")
    complaints.warn("203.0.113.2", "no handshake with %s", "203.0.113.2")
    assert caplog.messages.count("no handshake with 203.0.113.1") == LINES
    assert caplog.messages.count("no handshake with 203.0.113.2") == 1
    clock.pass_time(WINDOW_S)
    assert caplog.messages[-1] == "500 more lines like those about 203.0.113.1"
    complaints.warn("203.0.113.1", "again")
    assert caplog.messages[-1] == "again"


def test_strangers_from_many_addresses_are_counted_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = HandClock()
    complaints = Complaints(clock)
    for number in range(ADDRESSES + 500):
        complaints.warn(f"2001:db8::{number:x}", "no handshake")
    assert len(caplog.messages) == ADDRESSES + LINES
    clock.pass_time(WINDOW_S)
    assert caplog.messages[-1] == f"{500 - LINES} more lines like those about {OTHERS}"
