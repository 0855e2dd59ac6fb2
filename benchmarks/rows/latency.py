"""Rows 6 and 10: how long a lone task takes, and how long the event loop stands still."""

from __future__ import annotations

import asyncio

from benchmarks.baselines import BarePool, RawPostgresql, raw_postgresql
from benchmarks.children import run_child
from benchmarks.measure import compare, one_by_one, percentile
from benchmarks.rows.throughput import TASKS
from benchmarks.settings import Context, Figure
from benchmarks.tasks import AddInput, create_lilota
from lilota_async import Lilota

LONE_TASKS = 200
WARM_UP = 20
LAG_AIM_MS = 10.0


async def lone_tasks(url: str, count: int) -> list[float]:
    """The seconds of so many lone tasks, on a Lilota of their own."""
    async with create_lilota(url) as lilota:
        await one_by_one(WARM_UP, lambda number: _schedule_and_wait(lilota, number))
        return await one_by_one(count, lambda number: _schedule_and_wait(lilota, number))


async def lone_task(context: Context) -> list[Figure]:
    """Row 6. Blocks of both sides in turn; every task is a sample."""
    count = context.settings.count(LONE_TASKS, least=30)
    ours: list[float] = []
    floor: list[float] = []
    async with (
        context.server.database() as url,
        create_lilota(url) as lilota,
        raw_postgresql(url) as raw,
        BarePool() as bare,
    ):

        async def schedule_and_wait(number: int) -> None:
            await _schedule_and_wait(lilota, number)

        async def least(number: int) -> None:
            await _two_commits_and_a_call(raw, bare, number)

        await one_by_one(WARM_UP, schedule_and_wait)
        await one_by_one(WARM_UP, least)
        for _ in range(context.settings.repeats):
            floor += await one_by_one(count, least)
            ours += await one_by_one(count, schedule_and_wait)
    return [
        compare(
            "6",
            "lone task, schedule() to wait() done",
            "median <= 1.8 x (2 raw commits + 1 pool call)",
            [[1000 * each for each in ours], [1000 * each for each in floor]],
            unit="ms",
            at_most=1.8,
            names=("lilota", "2 raw commits + 1 pool call"),
        )
    ]


async def _schedule_and_wait(lilota: Lilota, number: int) -> None:
    task_id = await lilota.schedule("add", AddInput(a=number, b=3))
    task = await lilota.wait(task_id)
    assert task.output == {"sum": number + 3}


async def _two_commits_and_a_call(raw: RawPostgresql, bare: BarePool, number: int) -> None:
    task_id = await raw.insert(number)
    await bare.add(number)
    await raw.finish(task_id)


async def lag_under_load(context: Context) -> list[Figure]:
    """Row 10, in a process that has done nothing else: its garbage is that of this load."""
    count = context.settings.count(TASKS, least=500)
    async with context.server.database() as url:
        sizes = (str(count), str(context.settings.repeats))
        samples = (await asyncio.to_thread(run_child, "lag", url, *sizes))["samples"]
    high = 1000 * percentile(samples, 0.99)
    return [
        Figure(
            row="10",
            what="event loop lag under row 1's load, p99",
            aim=f"<= {LAG_AIM_MS:g} ms",
            value=high,
            unit="ms",
            met=high <= LAG_AIM_MS,
            note=f"median {1000 * percentile(samples, 0.5):.1f}, most {1000 * max(samples):.1f}",
            samples={"percentiles": [1000 * percentile(samples, n / 100) for n in range(101)]},
        )
    ]


ROWS = {"6": lone_task, "10": lag_under_load}
