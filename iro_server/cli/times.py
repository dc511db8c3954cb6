"""Times as lists show them."""

from __future__ import annotations

from datetime import UTC, datetime

LAST_DAY = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


def local_time(seconds: int) -> str:
    """``seconds`` since 1970 on this machine's clock, with its offset from UTC; a time after the year 9999 as the last
    day before."""
    return datetime.fromtimestamp(min(seconds, LAST_DAY), UTC).astimezone().strftime("%Y-%m-%d %H:%M %z")
