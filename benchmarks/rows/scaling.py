"""Row 13: cost against concurrency, payload and number of cells."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

from benchmarks.ledgers import Ledger, open_ledger
from benchmarks.measure import Measurement, interleave, run_callers
from benchmarks.rows.throughput import end_to_end
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
    async with context.server.database() as url, end_to_end(url) as measured:
        sides = [
            partial(measured.rate, context.settings.count(full, least=max(callers, 100)), callers)
            for callers, full in CALLER_COUNTS.items()
        ]
        rates = await _in_turns(context, sides)
    return _curve("13 a", "by callers: 1, 10, 100, 1,000", CALLER_COUNTS, rates, "tasks/s")


async def _by_payload(context: Context) -> Figure:
    async with (
        context.server.database() as url,
        create_lilota(url) as lilota,
        open_ledger(url) as ledger,
    ):
        sides = [
            partial(Echo(lilota, ledger, size).rate, context.settings.count(full, least=20))
            for size, full in PAYLOADS.items()
        ]
        rates = await _in_turns(context, sides)
    return _curve("13 b", "by payload: 100 B, 10 kB, 1 MB", PAYLOADS, rates, "MB/s")


async def _by_cells(context: Context) -> Figure:
    count = context.settings.count(TASKS_PER_CELL_COUNT, least=500)
    async with context.server.database() as url:

        async def rate(cells: int) -> float:
            async with end_to_end(url, processes=cells) as measured:
                await measured.rate(count)  # by then each of its processes knows the module
                return await measured.rate(count)

        rates = await _in_turns(context, [partial(rate, cells) for cells in CELL_COUNTS])
    return _curve("13 c", "by cells: 1, 2, 4, 8", CELL_COUNTS, rates, "tasks/s")


async def _in_turns(context: Context, sides: Sequence[Measurement]) -> list[float]:
    """The median of each step, of samples that all see the same machine."""
    samples = await interleave(context.settings.repeats, *sides)
    return [statistics.median(side) for side in samples]


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
