"""Task functions that fork, use memory, write a lot and keep checkpoints.

`directory` is where a task leaves its marks, as in `tests.api.tasks`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

from lilota_async import TaskProgress, current_task
from lilota_async.execution import runtime
from lilota_async.execution.context import CurrentTask
from tests.api.tasks import mark, wait_for

MEBIBYTE = 1024 * 1024
KEPT: list[bytearray] = []


def _task() -> CurrentTask:
    task = current_task()
    assert task is not None
    return task


# --- forks and deaths ------------------------------------------------------------------------


def fork_and_return() -> str:
    """Both processes come back from the function."""
    child = os.fork()
    if child == 0:
        return "the fork's"
    os.waitpid(child, 0)
    return "the task's"


def daemonise(directory: str) -> None:
    """As daemons are made: two forks, a session of its own, and the task's process exits with 0."""
    if os.fork():
        wait_for(directory, "daemon")
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    mark(directory, "daemon", str(os.getpid()))
    time.sleep(1000)
    os._exit(0)


def die_while_sending() -> str:
    """5 MB are on their way when the process is gone."""
    worker = runtime._worker.get()
    assert worker is not None
    channel = worker.channel

    def send_half(data: bytes) -> None:
        half = memoryview(data)[: len(data) // 2]
        while half:
            half = half[os.write(channel._descriptor, half) :]
        os.kill(os.getpid(), signal.SIGKILL)

    channel.write = send_half  # type: ignore[method-assign]
    return "x" * 5_000_000


def segfault() -> None:
    ctypes.string_at(0)


# --- what it costs ---------------------------------------------------------------------------


def burn(seconds: float) -> int:
    """Use the processor, and 64 MiB that are given back at the end."""
    memory = _touched(64)
    _burn(seconds)
    return len(memory)


def burn_and_end(how: str) -> None:
    """Burn 0.2 s with 64 MiB, say so, and end in some way that is not a return."""
    memory = _touched(64)
    _burn(0.2)
    _task().progress.set(50)
    if how == "exception":
        raise ValueError(len(memory))
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "SIGSEGV":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(1)
    time.sleep(1000)


def _burn(seconds: float) -> None:
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def _touched(megabytes: int) -> bytearray:
    memory = bytearray(megabytes * MEBIBYTE)
    memory[::4096] = b"x" * len(memory[::4096])
    return memory


def use_memory(directory: str) -> None:
    """More and more, until somebody ends it."""
    _task().checkpoint("begun")
    mark(directory, "started", str(os.getpid()))
    while True:
        KEPT.append(_touched(16))
        time.sleep(0.01)


def use_memory_in_a_child(directory: str) -> None:
    code = "import time; memory = b'x' * 300_000_000; time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code])
    mark(directory, "child", str(child.pid))
    child.wait()


def keep(megabytes: int) -> int:
    """Leave memory behind; returns the process."""
    KEPT.append(_touched(megabytes))
    return os.getpid()


def pid() -> int:
    return os.getpid()


# --- what it says ----------------------------------------------------------------------------


def speak() -> None:
    print("python says grüezi")
    print("error", file=sys.stderr)
    ctypes.CDLL(None).printf(b"from C\n")
    os.system("echo from the shell")
    _task().logger.warning("from %s", "the logger")
    logging.getLogger("tests.own").info("from its own logger")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("tests.own").exception("from a handler")


def flood(megabytes: int) -> None:
    line = "x" * 1023
    for _ in range(megabytes * 1024):
        print(line)
    print("the end")


def speak_and_end(how: str) -> None:
    """Some 100 KiB, and then some end."""
    for number in range(10_000):
        print(f"line {number:05}")
    print(f"ends by {how}")
    if how == "exit":
        sys.stdout.flush()
        os._exit(1)
    burn_and_end(how)


def speak_when_asked(directory: str) -> None:
    print("first", flush=True)
    mark(directory, "started")
    wait_for(directory, "release")
    print("second", flush=True)


def count_when_asked(directory: str) -> None:
    mark(directory, "started")
    wait_for(directory, "release")
    for number in range(5):
        print(number, flush=True)
        time.sleep(0.01)  # a piece for each
    mark(directory, "counted")
    wait_for(directory, "more")
    print("the last", flush=True)
    wait_for(directory, "end")


# --- checkpoints -----------------------------------------------------------------------------


def count(target: int) -> dict[str, Any]:
    """Go on where the last attempt was."""
    task = _task()
    first = task.last_checkpoint or 0
    for step in range(first, target):
        task.checkpoint(step + 1)
    return {"first": first, "attempt": task.attempt}


def checkpoint_and_end(how: str) -> Any:
    """On the first attempt three checkpoints and an end, on the second what is left of them."""
    task = _task()
    if task.attempt > 1:
        return task.last_checkpoint
    for step in (1, 2, 3):
        task.checkpoint({"step": step, "how": how})
    if how == "memory":
        KEPT.append(_touched(400))
    if how != "sleep":
        burn_and_end(how)
    time.sleep(1000)
    return None


def checkpoint_what_is_none(kind: str) -> None:
    values: dict[str, Any] = {
        "large": "x" * (MEBIBYTE + 1),
        "nan": float("nan"),
        "object": object(),
        "zero": "a\0b",
    }
    _task().checkpoint({"good": 1})
    _task().checkpoint(values[kind])


def checkpoint_and_hold(directory: str, progress: TaskProgress) -> Any:
    task = _task()
    if task.attempt > 1:
        return task.last_checkpoint
    task.checkpoint({"step": 7})
    mark(directory, f"attempt-{task.attempt}", str(os.getpid()))
    time.sleep(1000)
    return None


def report_often(times: int) -> None:
    for number in range(times):
        _task().progress.set(number % 100)
        _task().checkpoint(number)
