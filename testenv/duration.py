"""Spans of time as people write and read them: `90s`, `30m`, `2h`, `1h30m`."""

import re

MAX_S = 31 * 24 * 3600.0
"""No lease is longer, so that nobody has to wait longer."""

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_WRITTEN = re.compile("".join(rf"(?:(\d{{1,9}}){unit})?" for unit in _SECONDS))


def parse_duration(text: str) -> float:
    """Seconds. A number without a unit is seconds, too. Raises ValueError, in words."""
    found = _WRITTEN.fullmatch(f"{text}s" if text.isdigit() else text) if text.isascii() else None
    if not text or not found:
        raise ValueError(f"{text!r} is not a duration such as 90s, 30m, 2h or 1h30m")
    parts = zip(found.groups(), _SECONDS.values(), strict=True)
    seconds = float(sum(int(count) * unit for count, unit in parts if count))
    if seconds > MAX_S:
        raise ValueError(f"{text!r} is more than 31 days")
    return seconds


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42s`, `7m05s`, `3h20m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
