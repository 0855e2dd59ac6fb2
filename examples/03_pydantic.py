"""Pydantic models: validated before anything is written, and rebuilt in the task.

Run it with `python examples/03_pydantic.py`; it needs pydantic besides lilota-async.
"""

from __future__ import annotations

import asyncio
import os
from datetime import date
from decimal import Decimal

from pydantic import BaseModel, Field

from lilota_async import InvalidInput, Lilota


class Line(BaseModel):
    text: str
    quantity: int = Field(gt=0)
    price: Decimal


class Order(BaseModel):
    number: str
    day: date
    lines: list[Line]


class Invoice(BaseModel):
    order: str
    due: date
    total: Decimal


lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))


@lilota.register  # the name and the models are those of the function
def make_invoice(order: Order) -> Invoice:
    total = sum((line.quantity * line.price for line in order.lines), Decimal(0))
    return Invoice(order=order.number, due=order.day.replace(day=28), total=total)


async def main() -> None:
    pens = Line(text="Pens", quantity=3, price=Decimal("1.20"))
    order = Order(number="A-17", day=date(2025, 3, 1), lines=[pens])
    async with lilota:
        # Given the function instead of its name, type checkers know what comes out.
        task_id = await lilota.schedule(make_invoice, order)
        invoice = await lilota.result(task_id)
        print(f"Invoice for {invoice.order}: {invoice.total}, due on {invoice.due}")

        # A dict does as well where it fits the model; where it does not, nothing is written.
        bad = {"number": "A-18", "day": "2025-03-02", "lines": [{"text": "Ink", "price": "4"}]}
        try:
            await lilota.schedule(make_invoice, bad)
        except InvalidInput as error:
            print(f"Refused at {error.field}: {error.reason}")


if __name__ == "__main__":
    asyncio.run(main())
