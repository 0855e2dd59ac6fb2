"""What the cells of these tests are given to run: mostly bad behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio

from lilota_async.execution import runtime
from lilota_async.execution.context import current_task
from lilota_async.models.values import TaskProgress


def echo(text: str) -> str:
    return text


def ok() -> str:
    return "ok"


def pid() -> int:
    return os.getpid()


def say(text: str) -> None:
    print(text)


def touch(path: str) -> None:
    Path(path).touch()


# Deaths


def exit_7() -> NoReturn:
    os._exit(7)


def exit_0() -> NoReturn:
    os._exit(0)


def segfault() -> None:
    ctypes.string_at(0)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def burn_then_sleep(path: str) -> NoReturn:
    memory = bytearray(64 * 1024 * 1024)
    memory[::4096] = b"x" * len(memory[::4096])
    ends = time.process_time() + 0.2
    while time.process_time() < ends:
        pass
    Path(path).touch()
    time.sleep(600)
    os._exit(0)


def die_while_sending() -> str:
    channel = runtime._worker.get().channel  # type: ignore[union-attr]

    def send_half(data: bytes) -> None:
        half = memoryview(data)[: len(data) // 2]
        while half:
            half = half[os.write(channel._descriptor, half) :]
        os.kill(os.getpid(), signal.SIGKILL)

    channel.write = send_half  # type: ignore[method-assign]
    return "x" * 5_000_000


def daemonise_and_die(path: str) -> NoReturn:
    """As daemons are made: the one that lives on has every descriptor, and another session."""
    if os.fork():
        _wait_for(path)
        os._exit(3)
    os.setsid()
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
    os._exit(0)


def fork_and_return(path: str) -> str:
    child = os.fork()
    if child == 0:
        return "of the fork"
    _, status = os.waitpid(child, 0)
    Path(path).write_text(str(os.waitstatus_to_exitcode(status)))
    return "of the task"


def fork_and_raise() -> int:
    child = os.fork()
    if child == 0:
        raise ValueError("in the fork")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def log_in_fork() -> str:
    child = os.fork()
    if child == 0:
        logging.getLogger("forked").error("from the fork")
        os._exit(0)
    os.waitpid(child, 0)
    return "ok"


def sleep_with_child(path: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(path).write_text(str(child.pid))
    time.sleep(600)


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def hold_gil(path: str) -> None:
    library = ctypes.PyDLL(None)
    Path(path).touch()
    library.sleep(600)


def stop_itself(path: str) -> None:
    Path(path).touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def leave_thread() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


def replace_channel() -> None:
    channel = runtime._worker.get().channel  # type: ignore[union-attr]
    os.dup2(os.open(os.devnull, os.O_WRONLY), channel._descriptor)


def close_everything() -> None:
    os.closerange(3, 256)


def leave_alarm(path: str) -> None:
    """What a handler raises later must not cross to the parent, where it would be unpickled."""

    def on_alarm(_number: int, _frame: object) -> NoReturn:
        raise Evil(path)

    signal.signal(signal.SIGALRM, on_alarm)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGALRM)).start()


# Outcomes


class NeedsArgs(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"needs {first} and {second}")


class FailsToPickle(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickle of me")


class FailsToSpeak(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text of me")


class Evil(Exception):
    """Runs code wherever it is unpickled."""

    def __init__(self, path: str) -> None:
        super().__init__("evil")
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return touch, (self.path,)


def raise_needs_args() -> NoReturn:
    raise NeedsArgs(1, 2)


def raise_fails_to_pickle() -> NoReturn:
    raise FailsToPickle("here")


def raise_fails_to_speak() -> NoReturn:
    raise FailsToSpeak


def raise_group() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), NeedsArgs(1, 2)])


def raise_system_exit() -> NoReturn:
    sys.exit(3)


def raise_keyboard_interrupt() -> NoReturn:
    raise KeyboardInterrupt


def raise_stop_iteration() -> NoReturn:
    raise StopIteration("value")


def raise_cancelled() -> NoReturn:
    raise asyncio.CancelledError("of my own")


def raise_generator_exit() -> NoReturn:
    raise GeneratorExit


def raise_evil(path: str) -> NoReturn:
    raise Evil(path)


def return_evil(path: str) -> Evil:
    return Evil(path)


def return_object() -> object:
    return object()


def return_deep() -> Any:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def return_large() -> str:
    return "x" * 20_000_000


def raise_oddly_named() -> NoReturn:
    class Odd(Exception):
        pass

    Odd.__module__ = "\udc80"
    raise Odd


# Interruption


def loop_for_ever(path: str) -> None:
    try:
        Path(path).touch()
        while True:
            pass
    finally:
        print("cleaned up")


def sleep_for_ever(path: str) -> None:
    try:
        Path(path).touch()
        time.sleep(600)
    finally:
        print("cleaned up")


async def wait_for_ever(path: str) -> None:
    try:
        touch(path)
        await anyio.sleep(600)
    finally:
        print("cleaned up")


def signal_while_a_request_is_read() -> None:
    """From now on a second signal comes before the first has done what it is for."""
    read = os.read

    def read_and_be_signalled(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        if size == select.PIPE_BUF:  # no ticket
            os.kill(os.getpid(), signal.SIGTERM)
        return data

    os.read = read_and_be_signalled


async def loop_for_ever_async(path: str) -> None:
    loop_for_ever(path)


async def wait_and_clean_up(path: str) -> None:
    try:
        touch(path)
        await anyio.sleep(600)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.001)
        print("cleaned up")


def clean_up_slowly(path: str) -> None:
    try:
        touch(path)
        time.sleep(600)
    finally:
        time.sleep(0.6)
        print("cleaned up")


def swallow(path: str) -> None:
    while True:
        try:
            Path(path).touch()
            time.sleep(600)
        except BaseException:
            print("swallowed")


def swallow_and_return(path: str) -> str:
    with contextlib.suppress(BaseException):
        Path(path).touch()
        time.sleep(600)
    return "all the same"


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def wait_for_file(path: str) -> str:
    _wait_for(path)
    return "there"


def wait_until_cancelled(path: str) -> None:
    Path(path).touch()
    task = current_task()
    assert task is not None
    while not task.cancelled:
        time.sleep(0.01)


# Output


def speak_everywhere() -> None:
    print("python out")
    print("python error", file=sys.stderr)
    ctypes.CDLL(None).printf(b"c out\n")
    os.write(1, b"descriptor\n")
    subprocess.run(["echo", "child"], check=True)


def print_without_newline() -> None:
    print("half a line", end="")


def flood(megabytes: int) -> str:
    line = b"x" * 1023 + b"\n"
    block = line * 1024
    for _ in range(megabytes):
        view = memoryview(block)
        while view:
            view = view[os.write(1, view) :]
    print("the end")
    return "flooded"


def flood_logging(records: int) -> str:
    for number in range(records):
        logging.getLogger("flood").warning("record %d %s", number, "x" * 200)
    return "logged"


def log() -> None:
    logger = logging.getLogger("somewhere")
    logger.debug("not wanted")
    logger.warning("seen %d", 1)
    try:
        raise ValueError("in the log")
    except ValueError:
        logger.exception("caught")
    logging.getLogger("odd\udc80").warning("odd \udc80 \0")


def break_streams() -> None:
    sys.stdout = None
    sys.stderr = Path()


def close_output() -> None:
    os.write(1, b"before")
    os.close(1)
    os.close(2)


def report(steps: int, progress: TaskProgress) -> None:
    task = current_task()
    assert task is not None
    for step in range(steps):
        progress.set(step)
    task.checkpoint({"step": steps})


def grow(megabytes: int) -> int:
    memory = bytearray(megabytes * 1024 * 1024)
    memory[::4096] = b"x" * len(memory[::4096])
    KEPT.append(memory)
    return len(memory)


def use_memory(megabytes: int) -> int:
    memory = bytearray(megabytes * 1024 * 1024)
    memory[::4096] = b"x" * len(memory[::4096])
    return len(memory)


def use_memory_in_child(path: str) -> None:
    code = "import time; memory = b'x' * 150_000_000; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code])
    Path(path).write_text(str(child.pid))
    time.sleep(600)


KEPT: list[bytearray] = []


def _wait_for(path: str) -> None:
    ends = time.monotonic() + 30
    while not (Path(path).exists() and Path(path).stat().st_size >= 0):
        if time.monotonic() > ends:
            raise TimeoutError(path)
        time.sleep(0.005)
