"""What the replicas run: bodies that keep the ledger, and misbehave as their input says."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from lilota_async import Lilota, Retry, TaskProgress, current_task
from tests.faults.ledger import Ledger

MAX_ATTEMPTS = {"work": 4, "once": 1, "patient": 1, "limited": 1}
NAMES = tuple(MAX_ATTEMPTS)
HANG_TIMEOUT = 0.7
TICK_SECONDS = 0.02
QUICK_RETRY = Retry(max_attempts=MAX_ATTEMPTS["work"], delay=0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How long it takes, and in how many of its first attempts it dies, hangs or raises.

    With `holds` each attempt goes on until it is released (`harness.Run.release`).
    """

    token: str = ""
    value: int = 0
    seconds: float = 0.0
    holds: bool = False
    crashes: int = 0
    hangs: int = 0
    failures: int = 0


def work(data: Work) -> int:
    """Run for its time and return twice its value; dies, hangs or raises in early attempts."""
    return _perform(data)


def once(data: Work) -> int:
    """The same, but it must never be started twice."""
    return _perform(data)


def patient(data: Work) -> int:
    """The same; an application's death during it is no reason to give up."""
    return _perform(data)


def limited(data: Work) -> int:
    """The same; one death of an application during it is the most that it puts up with."""
    return _perform(data)


def hold_and_ask(directory_and_id: list[str]) -> list[str]:
    """Once released, ask for one task at once, and for one after another's end."""
    directory, task_id = directory_and_id
    task = current_task()
    assert task is not None
    Path(directory, "started").touch()
    while not Path(directory, "release").exists():
        time.sleep(0.01)
    children = [
        task.schedule("echo", 2, at_once=True),
        task.schedule("echo", 3, after=[UUID(task_id)]),
    ]
    return [str(each) for each in children]


def talk(directory: str, progress: TaskProgress) -> str:
    """Report progress and keep checkpoints a hundred times a second, until it is released."""
    task = current_task()
    assert task is not None
    Path(directory, "started").write_text(str(os.getpid()))
    number = 0
    while not Path(directory, "release").exists():
        number += 1
        progress.set(number % 90)
        task.checkpoint(number)
        time.sleep(0.01)
    progress.set(95)
    return "released"


def _perform(data: Work) -> int:
    task = current_task()
    assert task is not None
    ledger = Ledger.of_environment()
    ledger.write("start", task.id, attempt=task.attempt)
    early = task.attempt
    if early <= data.crashes:
        os.kill(os.getpid(), signal.SIGKILL)
    early -= data.crashes
    if 0 < early <= data.hangs:
        while True:
            time.sleep(TICK_SECONDS)
            ledger.write("tick", task.id, attempt=task.attempt)
    early -= data.hangs
    if 0 < early <= data.failures:
        raise ValueError("it was told to fail")
    end = time.monotonic() + data.seconds
    release = release_of(ledger.path, task.attempt)
    while (left := end - time.monotonic()) > 0 or (data.holds and not release.exists()):
        time.sleep(TICK_SECONDS if data.holds else min(left, TICK_SECONDS))
        ledger.write("tick", task.id, attempt=task.attempt)
    ledger.write("end", task.id, attempt=task.attempt, value=data.value * 2)
    return data.value * 2


def release_of(ledger: Path, attempt: int) -> Path:
    """The file that lets this attempt of every task that holds go."""
    return ledger.with_name(f"release-{attempt}")


def register(lilota: Lilota, names: tuple[str, ...] = NAMES) -> None:
    """Register the bodies under these names."""
    options: dict[str, Any] = {
        "work": {"retry": QUICK_RETRY, "timeout": HANG_TIMEOUT, "max_interruptions": 1000},
        "once": {"on_interrupt": "fail"},
        "patient": {"max_interruptions": 1000},
        "limited": {"max_interruptions": 1},
    }
    functions = {"work": work, "once": once, "patient": patient, "limited": limited}
    for name in names:
        lilota.register(name, **options[name])(functions[name])
