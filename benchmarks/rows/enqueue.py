"""Rows 3 to 5: only scheduling, on a node that runs nothing."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.baselines import RawPostgresql, raw_postgresql
from benchmarks.children import run_child
from benchmarks.measure import compare, interleave, one_by_one, run_callers, timed
from benchmarks.settings import CALLERS, Context, Figure
from benchmarks.tasks import AddInput, create_lilota
from lilota_async import Lilota

LONE_CALLS = 300
CALLS = 5_000
BULK_ROWS = 10_000
BULK_ROWS_PER_SECOND = 50_000
BULK_GROWTH_MIB = 16.0


async def one_after_another(context: Context) -> list[Figure]:
    """Row 3. Blocks of both sides in turn; every call is a sample."""
    count = context.settings.count(LONE_CALLS, least=50)
    figures = []
    async with context.server.database() as url:
        for processes, where in ((0, "node that runs nothing"), (2, "while 2 cells run them")):
            async with create_lilota(url, processes) as lilota, raw_postgresql(url) as raw:
                samples = await _lone_samples(lilota, raw, count, context.settings.repeats)
            figures.append(
                compare(
                    "3" if processes == 0 else "3 r",
                    f"one schedule() after another, {where}",
                    "median <= 1.8 x a raw INSERT" if processes == 0 else "",
                    samples,
                    unit="ms",
                    at_most=1.8 if processes == 0 else None,
                    names=("lilota", "raw asyncpg"),
                )
            )
    return figures


async def _lone_samples(
    lilota: Lilota, raw: RawPostgresql, count: int, repeats: int
) -> list[list[float]]:
    ours: list[float] = []
    theirs: list[float] = []

    async def schedule(number: int) -> None:
        await lilota.schedule("add", AddInput(a=number, b=3))

    await one_by_one(20, raw.insert)
    await one_by_one(20, schedule)
    for _ in range(repeats):
        theirs += await one_by_one(count, raw.insert)
        ours += await one_by_one(count, schedule)
    return [[1000 * each for each in ours], [1000 * each for each in theirs]]


async def hundred_callers(context: Context) -> list[Figure]:
    """Row 4."""
    count = context.settings.count(CALLS, least=500)
    async with (
        context.server.database() as url,
        create_lilota(url, processes=0) as lilota,
        raw_postgresql(url) as raw,
    ):

        async def schedule(number: int) -> None:
            await lilota.schedule("add", AddInput(a=number, b=3))

        async def ours() -> float:
            return count / await run_callers(count, CALLERS, schedule)

        async def theirs() -> float:
            return count / await run_callers(count, CALLERS, raw.insert_pooled)

        await ours()
        await theirs()
        samples = await interleave(context.settings.repeats, ours, theirs)
    return [
        compare(
            "4",
            "100 concurrent callers of schedule()",
            ">= 2 x raw asyncpg, pool of 10",
            samples,
            unit="rows/s",
            at_least=2.0,
            names=("lilota", "raw asyncpg"),
        )
    ]


async def bulk(context: Context) -> list[Figure]:
    """Row 5. Its memory is measured in processes of their own, for one and ten times as much."""
    count = context.settings.count(BULK_ROWS, least=2000)
    async with context.server.database() as url:
        async with create_lilota(url, processes=0) as lilota:
            inputs = [AddInput(a=number, b=3) for number in range(count)]
            await lilota.schedule_many("add", inputs[:1000])
            rates = [
                count / await timed(lilota.schedule_many("add", inputs))
                for _ in range(context.settings.repeats)
            ]
        small, large = [
            (await asyncio.to_thread(run_child, "bulk", url, str(size)))["growth_mib"]
            for size in (count, 10 * count)
        ]
    rate = statistics.median(rates)
    return [
        Figure(
            row="5",
            what=f"schedule_many() of {count:,}",
            aim=f">= {BULK_ROWS_PER_SECOND:,} rows/s",
            value=rate,
            unit="rows/s",
            met=rate >= BULK_ROWS_PER_SECOND,
            samples={"lilota": rates},
        ),
        Figure(
            row="5 m",
            what=f"peak memory for {10 * count:,} over that for {count:,}",
            aim=f"<= {BULK_GROWTH_MIB:g} MiB more",
            value=large - small,
            unit="MiB",
            met=large - small <= BULK_GROWTH_MIB,
            samples={"growth": [small, large]},
        ),
    ]


ROWS = {"3": one_after_another, "4": hundred_callers, "5": bulk}
