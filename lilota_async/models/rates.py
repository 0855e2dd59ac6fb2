"""How many tasks of a name may start in how long."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from lilota_async.errors import ConfigurationError

BUCKETS = 100  # a start is counted until the end of its hundredth of the time, and that long
_RATE = re.compile(r"(\d{1,9})\s*/\s*([a-z]+)", re.IGNORECASE)
_UNITS = {
    unit: seconds
    for units, seconds in {
        ("s", "sec", "second"): 1.0,
        ("m", "min", "minute"): 60.0,
        ("h", "hour"): 3600.0,
        ("d", "day"): 86_400.0,
    }.items()
    for unit in units
}

Starts = Sequence[tuple[int, int]]
"""How many were started in which bucket of time, in its order."""


class Rate(msgspec.Struct, frozen=True):
    """At most `count` starts in any `seconds`.

    Pure: what has started is given as buckets, times as seconds since the epoch.
    """

    count: int
    seconds: float

    @staticmethod
    def parse(value: object) -> Rate:
        """The rate of a text such as "100/minute"; ConfigurationError otherwise."""
        found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
        seconds = _UNITS.get(found[2].lower()) if found else None
        if found is None or seconds is None or int(found[1]) == 0:
            raise ConfigurationError(
                f'rate must be a text like "100/minute", per second, minute, hour or day, '
                f"not {value!r}"
            )
        return Rate(int(found[1]), seconds)

    def recent(self, starts: Starts, now: float) -> list[tuple[int, int]]:
        """Those buckets that still count."""
        return [(bucket, count) for bucket, count in starts if self._end(bucket) > now]

    def room(self, starts: Starts, now: float) -> int:
        """How many may start now."""
        return max(0, self.count - sum(count for _, count in self.recent(starts, now)))

    def seconds_to_room(self, starts: Starts, now: float) -> float:
        """How long until one more may start."""
        left = self.recent(starts, now)
        started, pause = sum(count for _, count in left), 0.0
        for bucket, count in left:
            if started < self.count:
                break
            started -= count
            pause = self._end(bucket) - now
        return pause

    def with_starts(self, starts: Starts, now: float, more: int) -> list[tuple[int, int]]:
        """The buckets that count, after `more` have started now."""
        current = int(now / self._width)
        left = dict(self.recent(starts, now))
        left[current] = left.get(current, 0) + more
        return sorted(left.items())

    @property
    def _width(self) -> float:
        return self.seconds / BUCKETS

    def _end(self, bucket: int) -> float:
        return (bucket + 1) * self._width + self.seconds
