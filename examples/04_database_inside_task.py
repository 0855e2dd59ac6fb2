"""A task that uses the application's own database: it opens a connection of its own.

A connection belongs to the process that opened it and cannot be handed to another. So the
task is told where the database is, and connects there. lilota's own rows need nothing of
this: only the application writes them, a task process has no connection to them.

Run it with `python examples/04_database_inside_task.py`; it makes a file `shop.db`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass

from lilota_async import Lilota

SHOP = "shop.db"


@dataclass
class ReportInput:
    database: str
    customer: str


@dataclass
class ReportOutput:
    orders: int
    total: int


lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))


@lilota.register("report")
def report(data: ReportInput) -> ReportOutput:
    with closing(sqlite3.connect(data.database)) as connection, connection:
        orders, total = connection.execute(
            "SELECT count(*), coalesce(sum(amount), 0) FROM orders WHERE customer = ?",
            (data.customer,),
        ).fetchone()
        # A task may run again after a crash of the machine, so what it writes is written in a
        # way that can be repeated: one report for each customer, not one more for each run.
        connection.execute(
            "INSERT INTO reports VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET total = ?",
            (data.customer, total, total),
        )
    return ReportOutput(orders=orders, total=total)


def fill_shop() -> None:
    with closing(sqlite3.connect(SHOP)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS orders")
        connection.execute("CREATE TABLE orders (customer TEXT, amount INTEGER)")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS reports (customer TEXT PRIMARY KEY, total INTEGER)"
        )
        orders = [("Ada", 30), ("Ada", 12), ("Bob", 5)]
        connection.executemany("INSERT INTO orders VALUES (?, ?)", orders)


async def main() -> None:
    fill_shop()
    async with lilota:
        task_id = await lilota.schedule(report, ReportInput(database=SHOP, customer="Ada"))
        output = await lilota.result(task_id)
    print(f"Ada has {output.orders} orders, {output.total} in total")


if __name__ == "__main__":
    asyncio.run(main())
