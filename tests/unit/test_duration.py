"""Spans of time, as people write and read them."""

import pytest

from testenv.duration import duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("7m05s", 425),
        ("1d", 86400),
        ("45", 45),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "x", "-1s", "1.5h", "30m1h", "1h 30m", "٣s", "2 h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 90s"):
        parse_duration(text)


def test_nobody_waits_longer_than_a_lease_can_last() -> None:
    assert parse_duration("31d")
    with pytest.raises(ValueError, match="more than 31 days"):
        parse_duration("31d1s")


@pytest.mark.parametrize("text", ["42s", "7m05s", "3h20m"])
def test_a_duration_that_was_told_can_be_read(text: str) -> None:
    assert duration(parse_duration(text)) == text
