"""Row 7: what is left of two cores for tasks that compute."""

from __future__ import annotations

import time
from itertools import chain

from benchmarks.baselines import BarePool
from benchmarks.ledgers import open_ledger
from benchmarks.measure import compare, interleave, percentile, run_callers
from benchmarks.settings import Context, Figure
from benchmarks.tasks import SpinInput, bare_spin, create_lilota

TASKS = 64
TASK_SECONDS = 0.05
WARM_UP = 16
# Where its memory happens to lie makes a process faster or slower by some hundredths for all of
# its life, and three hundredths are what counts.
LIVES = 4


def rounds_for(seconds: float) -> int:
    """How many rounds of `bare_spin` take so long, on a core that is free."""
    probe = 200_000
    times = []
    for _ in range(9):
        started = time.perf_counter()
        bare_spin(probe)
        times.append(time.perf_counter() - started)
    return round(probe * seconds / percentile(times, 0.5))


async def pure_python(context: Context) -> list[Figure]:
    rounds = rounds_for(TASK_SECONDS)
    tasks = context.settings.count(TASKS, least=16)
    lives = LIVES if context.settings.repeats > 1 else 1
    pairs = [await _in_new_processes(context, tasks, rounds) for _ in range(lives)]
    samples = [list(chain.from_iterable(side)) for side in zip(*pairs, strict=True)]
    return [
        compare(
            "7",
            f"{tasks} tasks of 50 ms pure Python on 2 cells",
            ">= 0.97 of the bare pool",
            samples,
            unit="tasks/s",
            at_least=0.97,
            names=("lilota", "bare pool"),
        )
    ]


async def _in_new_processes(context: Context, tasks: int, rounds: int) -> list[list[float]]:
    async with (
        context.server.database() as url,
        create_lilota(url) as lilota,
        open_ledger(url) as ledger,
        BarePool() as bare,
    ):

        async def call(_: int) -> None:
            await lilota.result(await lilota.schedule("spin", SpinInput(rounds=rounds)))

        async def ours() -> float:
            await ledger.clear()
            # As with the pool, the caller has the results at the end.
            seconds = await run_callers(tasks, tasks, call)
            await ledger.check_stored(tasks)
            return tasks / seconds

        async def theirs() -> float:
            return tasks / await bare.spin(tasks, rounds)

        await run_callers(WARM_UP, WARM_UP, call)  # until it is known how long they take
        return await interleave(context.settings.repeats, ours, theirs)


ROWS = {"7": pure_python}
