"""A task that tells how far it is, and an application that watches it.

Run it with `python examples/05_progress.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from lilota_async import Lilota, TaskProgress


@dataclass
class Book:
    pages: int


# Manually: the progress stays at what the task has set last. Otherwise it becomes 100 at the end.
lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"), set_progress_manually=True)


@lilota.register("print_book")
def print_book(book: Book, progress: TaskProgress) -> None:
    for page in range(1, book.pages + 1):
        time.sleep(0.1)  # stands for work
        print(f"page {page} is printed")
        # Cheap, however often it is called: the row follows a few times a second.
        progress.set(100 * page / book.pages)


async def main() -> None:
    async with lilota:
        task_id = await lilota.schedule(print_book, Book(pages=10))
        async for event in lilota.watch(task_id):
            if event.kind == "progress":
                print(f"{event.progress_percentage} %")
            elif event.kind == "log":
                for line in (event.log or "").splitlines():
                    print(f"  it says: {line}")
            else:
                print(f"it is {event.status}")


if __name__ == "__main__":
    asyncio.run(main())
