"""Rates: what their texts mean, and that no window of time ever has too many starts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lilota_async.errors import ConfigurationError
from lilota_async.models.rates import BUCKETS, Rate


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [("100/minute", 100, 60), ("5/second", 5, 1), (" 1 / Hour ", 1, 3600), ("7/d", 7, 86400)],
)
def test_texts(text: str, count: int, seconds: float) -> None:
    """A number per unit of time."""
    assert Rate.parse(text) == Rate(count, seconds)


@pytest.mark.parametrize("value", ["", "100", "0/minute", "-1/minute", "1.5/s", "1/week", 100])
def test_texts_that_are_none(value: Any) -> None:
    """Anything else is refused, and the error shows how it is written."""
    with pytest.raises(ConfigurationError, match="100/minute"):
        Rate.parse(value)


@pytest.mark.parametrize("seed", range(20))
def test_no_window_has_too_many(seed: int) -> None:
    """Whenever starts are asked for: never too many, and not much fewer."""
    chance = random.Random(seed)
    rate = Rate(chance.randint(1, 20), chance.choice([1.0, 60.0]))
    now = 1_700_000_000.0 + chance.random()
    starts: list[tuple[int, int]] = []
    started: list[float] = []
    end = now + 20 * rate.seconds
    while now < end:
        room = rate.room(starts, now)
        if room:
            assert rate.seconds_to_room(starts, now) == 0
            starts = rate.with_starts(starts, now, room)
            started += [now] * room
            now += chance.choice([0, rate.seconds / 1000, rate.seconds / 7])
        else:
            pause = rate.seconds_to_room(starts, now)
            assert 0 < pause <= rate.seconds * (1 + 1 / BUCKETS) + 1e-6
            assert rate.room(starts, now + pause + 1e-6) > 0
            now += pause + 1e-6
        assert len(starts) <= BUCKETS + 2
    for first, beyond in zip(started, started[rate.count :], strict=False):
        assert beyond - first >= rate.seconds
    assert len(started) >= 20 * rate.count * 0.85
