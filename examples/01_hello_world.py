"""The smallest task: it takes nothing, returns nothing, and what it prints is kept.

Run it with `python examples/01_hello_world.py`. It makes a file `lilota.db` in the current
directory; with LILOTA_DB_URL in the environment, it uses that database instead.
"""

from __future__ import annotations

import asyncio
import os

from lilota_async import Lilota

# Task processes import this file to find the function: nothing is connected or started here.
lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))


@lilota.register
def hello() -> None:
    print(f"Hello from process {os.getpid()}")


async def main() -> None:
    async with lilota:
        task_id = await lilota.schedule(hello)
        task = await lilota.wait(task_id)
    # What a task prints goes to its row, not to this terminal.
    print(f"Process {os.getpid()} reads the row: {task.status}, log: {task.log!r}")


if __name__ == "__main__":  # without it, each task process would start the application again
    asyncio.run(main())
