"""An application whose tasks ask for others: `python -m tests.faults.flows URL`.

It runs what there is until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from lilota_async import Lilota, current_task

PARTS = 12
TICK_SECONDS = 0.25


def root(number: int) -> str:
    """Asks for parts and for a merge after them; the id of that."""
    task = current_task()
    assert task is not None
    time.sleep(0.02)
    parts = [task.schedule("part", [number, part]) for part in range(PARTS)]
    time.sleep(0.02)
    return str(task.schedule("merge", number, after=parts))


def part(_which: list[int]) -> None:
    time.sleep(0.02)


def merge(number: int) -> int:
    time.sleep(0.01)
    return number


def tick() -> None:
    pass


def application(url: str, **options: Any) -> Lilota:
    """A Lilota with these tasks, which put up with any number of deaths."""
    lilota = Lilota(url, lease=1.0, **options)
    for function in (root, part, merge):
        lilota.register(max_interruptions=1000)(function)
    lilota.register(every=TICK_SECONDS, catch_up="all", max_interruptions=1000)(tick)
    return lilota


async def main() -> None:
    async with application(sys.argv[1], number_of_processes=2):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
