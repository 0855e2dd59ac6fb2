"""A task with an input and an output model: 2 + 3 = 5.

Run it with `python examples/02_add_two_numbers.py`. It makes a file `lilota.db` in the current
directory; with LILOTA_DB_URL in the environment, it uses that database instead.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from lilota_async import Lilota


@dataclass
class AddInput:
    a: int
    b: int


@dataclass
class AddOutput:
    sum: int


lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))


@lilota.register("add", input_model=AddInput, output_model=AddOutput)
def add(data: AddInput) -> AddOutput:
    return AddOutput(sum=data.a + data.b)


async def main() -> None:
    await lilota.start()

    # When this returns, the task is in the database.
    task_id = await lilota.schedule("add", AddInput(a=2, b=3))

    # Finishes what was scheduled, then ends the task processes.
    await lilota.stop()

    # Reading works at any time: before start() and after stop() too.
    task = await lilota.get_task_by_id(task_id)
    assert task is not None
    add_output = AddOutput(**task.output)
    print(f"2 + 3 = {add_output.sum}")


if __name__ == "__main__":
    asyncio.run(main())
