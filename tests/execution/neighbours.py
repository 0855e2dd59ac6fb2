"""Tasks that leave something behind, or say something odd."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from lilota_async import current_task
from lilota_async.execution import runtime

RECORDS: dict[str, dict[str, Any]] = {
    "line": {"lineno": None},
    "time": {"created": "noon"},
    "no time": {"created": float("nan")},
    "level": {"levelno": 40.5},
}


def pass_on(json: str) -> Any:
    """Return JSON as it is."""
    return msgspec.Raw(json.encode())


def log_record(kind: str) -> str:
    """Log a record that somebody has made of a dict."""
    logging.getLogger().handle(
        logging.makeLogRecord({"name": "odd", "msg": "odd", "levelno": 40, **RECORDS[kind]})
    )
    return "logged"


def write_nonsense(path: str) -> None:
    """Write to whatever descriptors there are, that which goes to the application first.

    The fork server and the executor, which have some of the others, end this process for it.
    """
    worker = runtime._worker.get()
    assert worker is not None
    for descriptor in [worker.channel._descriptor, *range(3, 64)]:
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:"):
                os.set_blocking(descriptor, False)
                os.write(descriptor, b"nonsense\n")
        except OSError:
            pass
    Path(path).touch()
    time.sleep(60)


def say_fatal_error() -> str:
    """Print what looks like the last words of an interpreter, and live on."""
    print("Fatal Python error: a secret of this task")
    return "alive"


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 60)


def leave_another_directory() -> None:
    os.chdir("/")


def leave_logging_off() -> None:
    logging.disable(logging.CRITICAL)


def leave_the_signal_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def look_around() -> str:
    """Log something, see that no alarm is to come, and tell the directory."""
    logging.getLogger().error("still heard")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    return os.getcwd()


def hold_the_signal(path: str) -> str:
    """Have the signal of an interruption kill, until there is another file."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path(path).touch()
    while not Path(path + ".release").exists():
        time.sleep(0.005)
    signal.signal(signal.SIGTERM, before)
    return "undisturbed"


def hold_the_interpreter(path: str) -> int:
    """Be in C for a while, where nothing of Python runs."""
    Path(path).touch()
    return sum(range(40_000_000)) and 7


def close_the_tickets() -> None:
    """Close the one pipe to the application that is read without waiting and is no control."""
    worker = runtime._worker.get()
    assert worker is not None
    os.close(worker._tickets.fileno())


def leave_a_thread_that_looks(path: str) -> str:
    """Have a thread of this task's ask whether it was cancelled, for as long as there is a file."""
    task = current_task()
    assert task is not None

    def look() -> None:
        while Path(path).exists():
            if task.cancelled:
                Path(path + ".told").touch()
            time.sleep(0.001)

    Path(path).touch()
    threading.Thread(target=look, daemon=True).start()
    return "left"


def wait_for_release(path: str) -> int:
    """Never look whether it was cancelled."""
    Path(path + ".begun").touch()
    while not Path(path + ".release").exists():
        time.sleep(0.005)
    return 7
