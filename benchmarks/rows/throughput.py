"""Rows 1 and 2: no-op tasks end to end."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.baselines import BarePool
from benchmarks.ledgers import Ledger, open_ledger
from benchmarks.measure import compare, interleave, run_callers, timed
from benchmarks.settings import CALLERS, Context, Figure
from benchmarks.tasks import AddInput, AddOutput, create_lilota
from lilota_async import Lilota, TaskId

TASKS = 10_000
BULK_TASKS = 20_000
BARE_CALLS = 5_000
WARM_UP = 200
_OTHER_WAYS = {
    "1 b": "enqueued by schedule_many()",
    "1 r": "each caller awaits its result()",
    "1 g": "then the result() of all of them",
}


class EndToEnd:
    """Measures a started Lilota: from the first `schedule()` until every output is stored.

    With `keeps_rows` the table is not emptied in between.
    """

    def __init__(self, lilota: Lilota, ledger: Ledger, *, keeps_rows: bool = False) -> None:
        self._lilota = lilota
        self._ledger = ledger
        self._keeps_rows = keeps_rows

    async def rate(self, count: int, callers: int = CALLERS) -> float:
        """Tasks per second, with concurrent callers of `schedule()`."""
        await self._begin()
        started = time.perf_counter()
        await run_callers(count, callers, self._schedule)
        return await self._rate_since(started, count)

    async def bulk_rate(self, count: int) -> float:
        """Tasks per second, enqueued by `schedule_many()`."""
        await self._begin()
        started = time.perf_counter()
        await self._lilota.schedule_many("add", (AddInput(a=n, b=3) for n in range(count)))
        return await self._rate_since(started, count)

    async def results_rate(self, count: int) -> float:
        """Tasks per second, where each of the callers awaits the result before its next task."""
        await self._begin()

        async def call(number: int) -> None:
            await self._lilota.result(await self._schedule(number))

        seconds = await run_callers(count, CALLERS, call)
        await self._ledger.check_stored(count)
        return count / seconds

    async def later_results_rate(self, count: int) -> float:
        """Tasks per second, where all results are asked for when all tasks are scheduled."""
        await self._begin()
        ids: list[TaskId[AddOutput]] = []

        async def call(number: int) -> None:
            ids.append(await self._schedule(number))

        seconds = await run_callers(count, CALLERS, call)
        seconds += await timed(asyncio.gather(*map(self._lilota.result, ids)))
        await self._ledger.check_stored(count)
        return count / seconds

    async def _schedule(self, number: int) -> TaskId[AddOutput]:
        return await self._lilota.schedule("add", AddInput(a=number, b=3))

    async def _begin(self) -> None:
        await (self._ledger.keep() if self._keeps_rows else self._ledger.clear())

    async def _rate_since(self, started: float, count: int) -> float:
        await self._ledger.until_done()
        seconds = time.perf_counter() - started
        await self._ledger.check_stored(count)
        return count / seconds


@asynccontextmanager
async def end_to_end(url: str, **options: int) -> AsyncIterator[EndToEnd]:
    """A Lilota of its own that has learnt how short the tasks are."""
    async with create_lilota(url, **options) as lilota, open_ledger(url) as ledger:
        measured = EndToEnd(lilota, ledger)
        await measured.rate(WARM_UP)
        yield measured


async def on_postgresql(context: Context) -> list[Figure]:
    count = context.settings.count(BULK_TASKS, least=1000)
    async with context.server.database() as url, end_to_end(url) as measured:
        what = "no-op tasks end to end, 100 callers, PostgreSQL"
        figure = await _against_bare_pool(context, measured, row="1", what=what)
        sides = (measured.bulk_rate, measured.results_rate, measured.later_results_rate)
        rates = await interleave(
            context.settings.repeats, *(partial(side, count) for side in sides)
        )
    return [
        figure,
        *(
            Figure(
                row=row,
                what=f"the same, {how}",
                aim="",
                value=statistics.median(samples),
                unit="tasks/s",
                samples={"lilota": samples},
            )
            for (row, how), samples in zip(_OTHER_WAYS.items(), rates, strict=True)
        ),
    ]


async def on_sqlite(context: Context) -> list[Figure]:
    figures = []
    for row, synchronous in (("2", "FULL"), ("2 n", "NORMAL")):
        file = context.directory / f"{synchronous}.db"
        async with end_to_end(f"sqlite:///{file}?synchronous={synchronous}") as measured:
            what = f"row 1 on SQLite, synchronous={synchronous}"
            figures.append(await _against_bare_pool(context, measured, row=row, what=what))
    return figures


async def _against_bare_pool(
    context: Context, measured: EndToEnd, *, row: str, what: str
) -> Figure:
    count = context.settings.count(TASKS, least=500)
    bare_count = context.settings.count(BARE_CALLS, least=500)
    async with BarePool() as bare:
        samples = await interleave(
            context.settings.repeats,
            lambda: measured.rate(count),
            lambda: bare.rate(bare_count),
        )
    return compare(
        row,
        what,
        ">= 1.5 x the bare pool" if row in ("1", "2") else "",
        samples,
        unit="tasks/s",
        at_least=1.5 if row in ("1", "2") else None,
        names=("lilota", "bare pool"),
    )


ROWS = {"1": on_postgresql, "2": on_sqlite}
