"""An application that is killed: `python -m tests.api.crashing_app URL DIRECTORY`.

It schedules tasks that hold, each with a directory of its own, says so, and waits.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lilota_async import Lilota
from tests.api.tasks import hold_counted

PROCESSES = 2
TASKS = 6


async def main(url: str, directory: Path) -> None:
    lilota = Lilota(url, number_of_processes=PROCESSES)
    lilota.register(hold_counted)
    async with lilota:
        for number in range(TASKS):
            own = directory / str(number)
            own.mkdir()
            await lilota.schedule(hold_counted, str(own))
        (directory / "scheduled").touch()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
