"""Task functions of the API's tests, importable by task processes.

`directory` is where a task leaves its marks: `started` when its code runs (with its PID), and
`release` is what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lilota_async import Abort, RetryLater, TaskProgress, current_task
from tests.api.models import (
    AttrsPoint,
    Opaque,
    Order,
    PlainPoint,
    Point,
    PointDict,
    PydanticOrder,
    StructPoint,
)

PAUSE = 0.005
AMBIENT: ContextVar[str] = ContextVar("ambient", default="unset")


@dataclass
class AddInput:
    a: int
    b: int


@dataclass
class AddOutput:
    sum: int


def add(data: AddInput) -> AddOutput:
    return AddOutput(sum=data.a + data.b)


def nothing() -> None:
    pass


def echo(value: Any) -> Any:
    return value


def text_of(length: int) -> str:
    return "x" * length


def quotes_of(length: int) -> str:
    return "'" * length


def echo_or_default(value: int = 7) -> int:
    return value


def swap_dataclass(data: Point) -> Point:
    return Point(x=data.y, y=data.x)


def swap_struct(data: StructPoint) -> StructPoint:
    return StructPoint(x=data.y, y=data.x)


def swap_typed_dict(data: PointDict) -> PointDict:
    return {"x": data["y"], "y": data["x"]}


def swap_attrs(data: AttrsPoint) -> AttrsPoint:
    return AttrsPoint(x=data.y, y=data.x)


def swap_as_dict(data: PlainPoint) -> PlainPoint:
    return PlainPoint(x=data.y, y=data.x)


def swap_dict(data: dict[str, int]) -> dict[str, int]:
    return {"x": data["y"], "y": data["x"]}


def echo_order(order: Order) -> Order:
    order.points.reverse()
    return order


def echo_pydantic(order: PydanticOrder) -> PydanticOrder:
    order.points.reverse()
    return order


def input_only(data: Point) -> None:
    assert data.x == 1


def output_only() -> Point:
    return Point(x=3, y=4)


def wrong_type() -> Point:
    return {"x": "three", "y": 4}  # type: ignore[return-value]


def returns(kind: str) -> Any:
    values: dict[str, Any] = {
        "nan": {"a": [1.0, float("nan")]},
        "infinity": float("inf"),
        "zero": "a\0b",
        "surrogate": "\ud800",
        "large": 2**64,
        "opaque": [Opaque(1)],
        "keys": {(1, 2): 3},
        "deep": _nested(200),
        "big": "x" * 2_000_000,
        "tuple": (1, (2, 3)),
        "number_keys": {1: "one"},
    }
    return values[kind]


def _nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


# --- failing ---------------------------------------------------------------------------------


class OutOfPaper(Exception):
    pass


class OutOfInk(OutOfPaper):
    pass


def fail(message: str) -> None:
    raise ValueError(message)


def run_out(kind: str) -> None:
    raise {"paper": OutOfPaper, "ink": OutOfInk, "os": OSError}[kind](kind)


def abort(reason: str) -> None:
    raise Abort(reason)


def crash(exit_code: int) -> None:
    os._exit(exit_code)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_until(attempt: int) -> int:
    number = _attempt()
    if number < attempt:
        raise OSError(f"attempt {number}")
    return number


def snooze_until(attempt: int) -> int:
    number = _attempt()
    if number < attempt:
        raise RetryLater(delay=0.05)
    return number


def mark_attempts(directory: str) -> None:
    """Count its own starts, and die in each of them."""
    with open(Path(directory, "attempts"), "a") as file:
        file.write(f"{_attempt()}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def _attempt() -> int:
    task = current_task()
    assert task is not None
    return task.attempt


def attempt_number() -> int:
    return _attempt()


def note_and_fail(directory: str) -> None:
    """Write down when each attempt began; the clock is the same in all processes."""
    with open(Path(directory, "times"), "a") as file:
        file.write(f"{time.monotonic()}\n")
    raise OSError("again")


def raise_odd(kind: str) -> None:
    odd: dict[str, BaseException] = {
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "stop": StopIteration(1),
        "cancelled": asyncio.CancelledError(),
        "generator": GeneratorExit(),
        "group": ExceptionGroup("several", [ValueError(1), OSError(2)]),
    }
    raise odd[kind]


async def raise_odd_async(kind: str) -> None:
    await asyncio.sleep(0)
    raise_odd(kind)


# --- running for long ------------------------------------------------------------------------


def mark(directory: str, name: str, text: str = "") -> None:
    """Leave a mark; whoever sees it sees it whole."""
    unfinished = Path(directory, f".{name}.{os.getpid()}.{threading.get_ident()}")
    unfinished.write_text(text)
    unfinished.rename(Path(directory, name))


def hold_if_told(directory: str) -> None:
    if directory:
        hold(directory)


def hold(directory: str) -> str:
    mark(directory, "started", str(os.getpid()))
    wait_for(directory, "release")
    return "released"


def fail_and_hold(directory: str) -> str:
    """Raise on the first attempt, and hold on any later one."""
    if _attempt() == 1:
        raise ValueError("the first one")
    return hold(directory)


async def hold_async(directory: str) -> str:
    mark(directory, "started", str(os.getpid()))
    while not _is_there(directory, "release"):
        await asyncio.sleep(PAUSE)
    return "released"


def _is_there(directory: str, name: str) -> bool:
    return Path(directory, name).exists()


def wait_for(directory: str, name: str) -> None:
    while not _is_there(directory, name):
        time.sleep(PAUSE)


def hold_counted(directory: str) -> int:
    """Hold on the first attempt, and return the number of any later one."""
    number = _attempt()
    mark(directory, f"attempt-{number}", str(os.getpid()))
    if number == 1:
        wait_for(directory, "release")
    return number


def spin(directory: str) -> None:
    mark(directory, "started", str(os.getpid()))
    while True:
        pass


def spin_and_clean_up(directory: str) -> None:
    try:
        spin(directory)
    finally:
        mark(directory, "cleaned")


def swallow(directory: str) -> None:
    mark(directory, "started", str(os.getpid()))
    while True:
        with contextlib.suppress(BaseException):
            while True:
                time.sleep(PAUSE)


def hold_the_interpreter(directory: str) -> None:
    """Sleep in C with the GIL held: no Python code of this process runs meanwhile."""
    mark(directory, "started", str(os.getpid()))
    ctypes.PyDLL(None).sleep(1000)


def start_a_child(directory: str) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    mark(directory, "child", str(child.pid))
    spin(directory)


def stop_itself(directory: str) -> None:
    mark(directory, "started", str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


async def sleep_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


def cooperate(directory: str) -> str:
    """Look now and then, as a task in a thread should."""
    task = current_task()
    assert task is not None
    mark(directory, "started")
    while not task.cancelled:
        time.sleep(PAUSE)
    mark(directory, "stopped")
    return "stopped early"


# --- looking around --------------------------------------------------------------------------


def describe_itself(progress: TaskProgress) -> dict[str, Any]:
    progress.set(40)
    return _description()


async def describe_itself_async(progress: TaskProgress) -> dict[str, Any]:
    await asyncio.sleep(0)
    progress.set(40)
    return _description()


def _description() -> dict[str, Any]:
    task = current_task()
    assert task is not None
    ambient = AMBIENT.get()
    AMBIENT.set("left behind by a task")
    return {
        "id": str(task.id),
        "name": task.name,
        "attempt": task.attempt,
        "tags": list(task.tags),
        "cancelled": task.cancelled,
        "percentage": task.progress.percentage,
        "ambient": ambient,
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
    }


# --- progress --------------------------------------------------------------------------------


def set_progress(value: float, progress: TaskProgress) -> int | None:
    progress.set(value)
    return progress.percentage


def set_odd_progress(progress: TaskProgress) -> int | None:
    """Values that are no percentage: ignored, and the last good one stays."""
    progress.set(20)
    odd: list[Any] = [float("nan"), None, "30", [], 1j]
    for value in odd:
        progress.set(value)
    return progress.percentage


def set_progress_often(times: int, progress: TaskProgress) -> float:
    start = time.monotonic()
    for number in range(times):
        progress.set(number % 97)
    progress.set(55)
    return time.monotonic() - start


def progress_and_hold(directory: str, progress: TaskProgress) -> None:
    progress.set(30)
    hold(directory)


async def progress_async(value: float, progress: TaskProgress) -> None:
    await asyncio.sleep(0)
    progress.set(value)


def progress_through_current_task(value: float) -> None:
    task = current_task()
    assert task is not None
    task.progress.set(value)


MEMORY: dict[str, str] = {}


def remembered() -> str | None:
    return MEMORY.get("word")


def nominal_time() -> str | None:
    """The tick that this run is for."""
    task = current_task()
    assert task is not None
    return None if task.nominal_time is None else task.nominal_time.isoformat()
