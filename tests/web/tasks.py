"""Tasks for the web tests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lilota_async import TaskProgress


@dataclass
class Order:
    amount: int
    secret: str = ""
    lines: list[int] = field(default_factory=list)


class Person(BaseModel):
    name: str
    age: int
    emails: list[str] = []


def greet(person: Person) -> str:
    return f"Hello {person.name}"


def bill(order: Order) -> dict[str, Any]:
    """Says its secret, and gives it back."""
    print(f"billing with {order.secret}")
    return {"total": order.amount, "secret": order.secret}


def add(amount: int) -> int:
    return amount + 1


def fail(message: str) -> None:
    print(message)
    raise RuntimeError(message)


def wait_for_mark(path: str, progress: TaskProgress) -> str:
    """Goes on when the file is there."""
    print("waiting")
    progress.set(10)
    while not Path(path).exists():
        time.sleep(0.01)
    progress.set(90)
    print("seen")
    return "done"


def earn(order: Order) -> dict[str, str]:
    """Says what its output keeps secret, which its input does not know."""
    print("earned lion-23")
    return {"secret": "lion-23"}


def fail_with_secret(order: Order) -> None:
    raise RuntimeError(f"no access for {order.secret}")
