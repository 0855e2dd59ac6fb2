"""A job of 1,000 steps that goes on where it was, after `kill -9` of the whole application.

Run it, kill it in the middle (`kill -9` with the PID that it prints), and run it again.
"""

import asyncio
import os
import time

from lilota_async import Lilota, TaskProgress, TaskStatus, current_task

STEPS = 1000
URL = os.environ.get("LILOTA_DB_URL", "sqlite:///lilota.db")

lilota = Lilota(db_url=URL, number_of_processes=1, set_progress_manually=True)


@lilota.register("job")
def job(progress: TaskProgress) -> None:
    task = current_task()
    assert task is not None
    first = task.last_checkpoint or 0
    print(f"attempt {task.attempt} begins at step {first}")
    for step in range(first, STEPS):
        time.sleep(0.005)  # the work
        task.checkpoint(step + 1)
        progress.set(100 * (step + 1) / STEPS)


async def main() -> None:
    print(f"PID {os.getpid()}", flush=True)
    async with lilota:
        # start() has taken over what an earlier run left behind; else there is a new job.
        left = await lilota.get_all_tasks(name="job", status=TaskStatus.PENDING)
        left += await lilota.get_all_tasks(name="job", status=TaskStatus.RUNNING)
        task_id = left[0].id if left else await lilota.schedule("job")
        async for event in lilota.watch(task_id):
            if event.progress_percentage % 10 == 0 and event.log is None:
                print(f"{event.status} {event.progress_percentage} %", flush=True)
        task = await lilota.wait(task_id)
        print(task.log, end="")


if __name__ == "__main__":
    asyncio.run(main())
