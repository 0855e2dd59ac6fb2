"""A FastAPI application that stores an order and schedules its receipt in one transaction.

Either both are there or neither: no order without its receipt, and no receipt for an order that
was taken back. lilota and the application share one database, and here even the engine.

Run it with `python examples/09_order_and_receipt.py` (PORT is 8000 unless the environment says
otherwise), or with `uvicorn --app-dir examples 09_order_and_receipt:app`. It needs fastapi and
uvicorn besides lilota-async, and makes a file `shop.db`. Then:

    curl -X POST -H 'content-type: application/json' \\
        -d '{"customer": "Ada", "amount": 42}' http://127.0.0.1:8000/orders
    curl http://127.0.0.1:8000/orders/1
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import String
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lilota_async import Lilota, Task, TaskId

LIMIT = 1000

engine = create_async_engine(os.environ.get("LILOTA_DB_URL", "sqlite+aiosqlite:///shop.db"))
sessions = async_sessionmaker(engine)
lilota = Lilota(engine=engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(String(100))
    amount: Mapped[int]
    receipt_task: Mapped[str] = mapped_column(String(36))


class NewOrder(BaseModel):
    customer: str
    amount: int


@dataclass
class Receipt:
    order: int
    text: str


@lilota.register("receipt")
def make_receipt(data: Receipt) -> str:
    return f"Receipt {data.order}: {data.text}"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with lilota.lifespan(app) as state:
        yield state
    await engine.dispose()


async def transaction() -> AsyncIterator[AsyncSession]:
    """One transaction for each request: committed at its end, rolled back by an exception."""
    async with sessions.begin() as session:
        yield session


# "function": the commit comes before the response is sent, and not after it.
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]
app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def create_order(data: NewOrder, session: Transaction) -> dict[str, int]:
    task_id: TaskId[str] = TaskId()
    order = Order(customer=data.customer, amount=data.amount, receipt_task=str(task_id))
    session.add(order)
    await session.flush()  # gives the order its id
    receipt = Receipt(order=order.id, text=f"{data.amount} from {data.customer}")
    await lilota.schedule(make_receipt, receipt, task_id=task_id, session=session)
    if data.amount > LIMIT:
        raise HTTPException(409, "Too much")  # takes back the order and its receipt
    return {"id": order.id}


@app.get("/orders/{number}")
async def read_order(number: int, session: Transaction) -> dict[str, str | None]:
    order = await session.get(Order, number)
    if order is None:
        raise HTTPException(404, "There is no such order")
    task = await session.get(Task, TaskId(order.receipt_task))
    return {
        "customer": order.customer,
        "status": None if task is None else task.status,
        "receipt": None if task is None else task.output,
    }


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
