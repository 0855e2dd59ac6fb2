"""Timing: closed loops of callers, samples and their medians, the lag of the event loop."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.settings import Figure

TICK_SECONDS = 0.002

Measurement = Callable[[], Awaitable[float]]


async def run_callers(count: int, callers: int, call: Callable[[int], Awaitable[Any]]) -> float:
    """Await `call` so many times, by so many callers one call after the other; seconds."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - started


async def timed(call: Awaitable[Any]) -> float:
    """The seconds that it takes."""
    started = time.perf_counter()
    await call
    return time.perf_counter() - started


async def one_by_one(count: int, call: Callable[[int], Awaitable[Any]]) -> list[float]:
    """The seconds of each of `count` calls."""
    return [await timed(call(number)) for number in range(count)]


async def interleave(repeats: int, *sides: Measurement) -> list[list[float]]:
    """The samples of each side, taken in turn, so that all see the same machine."""
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(repeats):
        order = list(enumerate(sides))
        for index, side in order if number % 2 == 0 else reversed(order):
            samples[index].append(await side())
    return samples


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that so large a share of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(
    row: str,
    what: str,
    aim: str,
    samples: Sequence[Sequence[float]],
    *,
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
    names: tuple[str, str] = ("lilota", "against"),
) -> Figure:
    """The figure of two sides by the ratio of their medians."""
    value, against = (statistics.median(side) for side in samples)
    ratio = value / against
    met: bool | None = None
    if at_least is not None:
        met = ratio >= at_least
    elif at_most is not None:
        met = ratio <= at_most
    return Figure(
        row=row,
        what=what,
        aim=aim,
        value=value,
        against=against,
        unit=unit,
        ratio=ratio,
        met=met,
        note=note,
        samples={name: list(side) for name, side in zip(names, samples, strict=True)},
    )


@asynccontextmanager
async def event_loop_lag() -> AsyncIterator[list[float]]:
    """How late each tick of a fixed grid was served, in seconds; filled during the block.

    A pause of the loop delays every tick that falls into it, and each of them counts.
    """
    lags: list[float] = []

    async def tick() -> None:
        due = time.perf_counter() + TICK_SECONDS
        while True:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            while due <= now:  # one turn of the loop serves all that are due
                lags.append(now - due)
                due += TICK_SECONDS

    ticking = asyncio.create_task(tick())
    try:
        yield lags
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
