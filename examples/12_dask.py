"""Tasks on a Dask cluster, which has more processors than the machine of the application.

What is registered runs where the cluster wants it; its row is in the application's database, as
ever. The workers need lilota-async, and the module of the functions, and no connection to the
database.

Run it with `python examples/12_dask.py`; it needs the extra `dask`.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from distributed import Client, get_worker

from lilota_async import Lilota


@dataclass
class Numbers:
    start: int
    end: int


@dataclass
class Primes:
    count: int
    worker: str


def count_primes(numbers: Numbers) -> Primes:
    found = [n for n in range(max(2, numbers.start), numbers.end) if is_prime(n)]
    return Primes(count=len(found), worker=str(get_worker().name))


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


async def main() -> None:
    # Two workers on this machine; of a cluster of yours, it is Client("tcp://its-scheduler:8786").
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        lilota = Lilota(
            db_url=os.environ.get("LILOTA_DB_URL"),
            executor=client.get_executor(),
            number_of_processes=2,
        )
        lilota.register(count_primes)
        async with lilota:
            parts = [Numbers(start, start + 10_000) for start in range(0, 100_000, 10_000)]
            ids = await lilota.schedule_many(count_primes, parts)
            results = [await lilota.result(task_id) for task_id in ids]
    workers = {result.worker for result in results}
    print(f"{sum(result.count for result in results)} primes below 100000")
    print(f"{len(results)} tasks on {len(workers)} workers")


if __name__ == "__main__":
    asyncio.run(main())
