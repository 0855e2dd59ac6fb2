"""Fan-out and fan-in: split a file, count the words of 1,000 parts, merge the counts.

The task that splits asks for the others by `current_task().schedule()`. Their rows are committed
together with its end: either all of them are there or, should it fail, none. The merge is asked
for with `after=`: it runs once, when every part has completed, wherever the parts were run.

Task processes have no connection to the database, so the parts leave their results in files.
Each may run again after a crash, and then writes the same again.

Run it with `python examples/11_split_and_merge.py`; it makes `words.txt` and a folder `counts`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lilota_async import Lilota, TaskId, current_task

PARTS = 1000
WORDS = ("night", "river", "stone", "house", "light", "winter")
COUNTS = Path("counts")


@dataclass
class Part:
    file: str
    number: int
    start: int
    end: int


@dataclass
class Merge:
    parts: int


lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))


@lilota.register
def split(file: str) -> str:
    """Asks for a task for each part and for the merge, whose id it returns."""
    task = current_task()
    assert task is not None
    content = Path(file).read_bytes()
    # At ends of lines, so that no word is cut in two.
    cuts = [content.index(b"\n", len(content) * n // PARTS) + 1 for n in range(1, PARTS)]
    parts = [
        task.schedule(count_words, Part(file, number, start, end))
        for number, (start, end) in enumerate(pairwise([0, *cuts, len(content)]))
    ]
    return str(task.schedule(merge, Merge(parts=len(parts)), after=parts))


@lilota.register
def count_words(part: Part) -> None:
    with open(part.file, "rb") as file:
        file.seek(part.start)
        text = file.read(part.end - part.start).decode()
    result = COUNTS / f"{part.number}.json"
    result.write_text(json.dumps(Counter(text.split())))


@lilota.register
def merge(data: Merge) -> dict[str, int]:
    total: Counter[str] = Counter()
    for number in range(data.parts):
        total.update(json.loads((COUNTS / f"{number}.json").read_text()))
    return dict(total)


def prepare(file: Path) -> Counter[str]:
    COUNTS.mkdir(exist_ok=True)
    chosen = random.choices(WORDS, weights=range(1, len(WORDS) + 1), k=200_000)
    lines = [" ".join(chosen[start : start + 10]) for start in range(0, len(chosen), 10)]
    file.write_text("\n".join(lines) + "\n")
    return Counter(chosen)


async def main() -> None:
    file = Path("words.txt")
    expected = prepare(file)
    async with lilota:
        split_id = await lilota.schedule(split, str(file))
        merge_id: TaskId[dict[str, int]] = TaskId(await lilota.result(split_id))
        counts = await lilota.result(merge_id)
    assert counts == expected
    print(f"{sum(counts.values())} words in {PARTS} parts")


if __name__ == "__main__":
    asyncio.run(main())
