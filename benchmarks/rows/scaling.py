"""Row 13: cost against concurrency, payload and number of cells."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

from benchmarks.ledgers import Ledger, open_ledger
from benchmarks.measure import Measurement, run_callers
from benchmarks.rows.throughput import EndToEnd, end_to_end
from benchmarks.settings import CALLERS, Context, Figure
from benchmarks.tasks import create_lilota
from lilota_async import Lilota

CALLER_COUNTS = {1: 500, 10: 2_500, 100: 6_000, 1_000: 6_000}
PAYLOADS = {100: 4_000, 10_000: 2_000, 1_000_000: 60}
CELL_COUNTS = (1, 2, 4, 8)
TASKS_PER_CELL_COUNT = 5_000
LEAST_STEP = 0.7  # less of the step before than this is a cliff


class Echo:
    """Tasks whose input and output are so many bytes of JSON."""

    def __init__(self, lilota: Lilota, ledger: Ledger, size: int) -> None:
        self._lilota = lilota
        self._ledger = ledger
        self._size = size
        self._payload = "x" * (size - 2)

    async def rate(self, count: int) -> float:
        """MB of input per second, end to end."""
        await self._ledger.clear()
        started = time.perf_counter()
        await run_callers(count, CALLERS, self._schedule)
        await self._ledger.until_done()
        seconds = time.perf_counter() - started
        await self._ledger.check_stored(count)
        return count * self._size / seconds / 1e6

    async def _schedule(self, _: int) -> None:
        await self._lilota.schedule("echo", self._payload)


async def curves(context: Context) -> list[Figure]:
    return [await _by_callers(context), await _by_payload(context), await _by_cells(context)]


async def _by_callers(context: Context) -> Figure:
    rates: list[float] = []
    async with context.server.database() as url, end_to_end(url) as measured:
        for callers, full in CALLER_COUNTS.items():
            count = context.settings.count(full, least=max(callers, 100))

            async def rate(count: int = count, callers: int = callers) -> float:
                return await measured.rate(count, callers)

            rates.append(await _median(context, rate))
    return _curve("13 a", "by callers: 1, 10, 100, 1,000", CALLER_COUNTS, rates, "tasks/s")


async def _by_payload(context: Context) -> Figure:
    rates: list[float] = []
    async with (
        context.server.database() as url,
        create_lilota(url) as lilota,
        open_ledger(url) as ledger,
    ):
        for size, full in PAYLOADS.items():
            echo = Echo(lilota, ledger, size)
            count = context.settings.count(full, least=20)

            async def rate(echo: Echo = echo, count: int = count) -> float:
                return await echo.rate(count)

            rates.append(await _median(context, rate))
    return _curve("13 b", "by payload: 100 B, 10 kB, 1 MB", PAYLOADS, rates, "MB/s")


async def _by_cells(context: Context) -> Figure:
    rates: list[float] = []
    count = context.settings.count(TASKS_PER_CELL_COUNT, least=500)
    async with context.server.database() as url:
        for cells in CELL_COUNTS:
            async with end_to_end(url, processes=cells) as measured:

                async def rate(measured: EndToEnd = measured) -> float:
                    return await measured.rate(count)

                rates.append(await _median(context, rate))
    return _curve("13 c", "by cells: 1, 2, 4, 8", CELL_COUNTS, rates, "tasks/s")


async def _median(context: Context, measurement: Measurement) -> float:
    repeats = min(2, context.settings.repeats)
    return statistics.median([await measurement() for _ in range(repeats)])


def _curve(row: str, what: str, steps: Iterable[int], rates: Sequence[float], unit: str) -> Figure:
    worst = min(after / before for before, after in pairwise(rates))
    return Figure(
        row=row,
        what=what,
        aim=f"no step under {LEAST_STEP:g} of the one before",
        value=rates[-1],
        unit=unit,
        ratio=worst,
        met=worst >= LEAST_STEP,
        note=", ".join(f"{rate:,.0f}" for rate in rates) + f" {unit}",
        samples={"steps": [float(step) for step in steps], "rates": list(rates)},
    )


ROWS = {"13": curves}
