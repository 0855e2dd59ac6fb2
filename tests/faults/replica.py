"""One application of a run: `python -m tests.faults.replica CONFIGURATION`, as JSON.

It starts a Lilota, schedules what it is told to and keeps the client's ledger. SIGUSR1 ends
the scheduling, SIGTERM stops it in order. It can be told to break the library (`faults`) or
to die at a point of it (`failpoint`).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import psutil

from lilota_async import Lilota, NotRunning, TaskId
from lilota_async.errors import ScheduleUnknown, StoreUnavailable
from tests.faults import failpoints, seeded
from tests.faults.ledger import Ledger
from tests.faults.tasks import MAX_ATTEMPTS, NAMES, Work, register

AT_A_TIME = 8
TRIES = 3
STOP_SECONDS = 60.0
THREAD_SECONDS = 5.0
NO_DATABASE = 3  # the exit code of one whose start() has found none


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a replica schedules: so many tasks, or on and on; `pause` seconds after each.

    Shares of 1: how many tasks die, hang or raise in their first attempt, raise in all of
    them, or are called `once`, `patient` or `limited`.
    """

    tasks: int | None = 0
    pause: float = 0.0
    seconds: tuple[float, float] = (0.001, 0.05)
    holds: bool = False
    crashing: float = 0.0
    hanging: float = 0.0
    failing: float = 0.0
    hopeless: float = 0.0
    once: float = 0.0
    patient: float = 0.0
    limited: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How one replica is set up."""

    url: str
    seed: int = 0
    processes: int = 2
    lease: float = 30.0
    store_timeout: float = 30.0
    names: tuple[str, ...] = NAMES
    load: Load = field(default_factory=Load)
    fault: str | None = None
    failpoint: str | None = None
    failpoint_turn: int = 1
    drain: bool = True
    stop_timeout: float | None = None
    stop_after_load: bool = False

    def encode(self) -> str:
        """The command's argument."""
        return msgspec.json.encode(asdict(self)).decode()


class Client:
    """Schedules a load and writes down what it was told."""

    def __init__(self, lilota: Lilota, configuration: Configuration, ledger: Ledger) -> None:
        self._lilota = lilota
        self._load = configuration.load
        self._ledger = ledger
        self._drawn = random.Random(configuration.seed)  # the tasks depend on nothing else
        self._chance = random.Random(configuration.seed)
        self._stopped = asyncio.Event()
        self._places = asyncio.Semaphore(AT_A_TIME)
        self._scheduling: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Schedule no more."""
        self._stopped.set()

    async def run(self) -> None:
        """Schedule until the load is done or `stop()` is called; waits for the answers."""
        count = 0
        while count != self._load.tasks and not self._stopped.is_set():
            count += 1
            await self._places.acquire()
            one = asyncio.create_task(self._schedule(*draw(self._load, self._drawn)))
            self._scheduling.add(one)
            one.add_done_callback(self._scheduling.discard)
            if self._load.pause:
                await asyncio.sleep(self._load.pause * self._chance.uniform(0.5, 1.5))
        await asyncio.gather(*self._scheduling)

    async def _schedule(self, name: str, data: Work) -> None:
        token = data.token
        # With an id of its own the client knows what to ask for whatever happens.
        task_id: TaskId[Any] | None = TaskId() if self._chance.random() < 0.5 else None
        self._ledger.write("intent", token=token)
        try:
            for _ in range(TRIES):
                try:
                    scheduled = await self._lilota.schedule(name, data, task_id=task_id)
                except ScheduleUnknown as unknown:  # the same id again is safe
                    task_id = TaskId(unknown.task_id)
                    self._ledger.write("unknown", task_id, token=token)
                except (StoreUnavailable, NotRunning):
                    self._ledger.write("refused", token=token)
                    return
                else:
                    self._ledger.write("ack", scheduled, token=token)
                    return
        finally:
            self._places.release()


def draw(load: Load, chance: random.Random) -> tuple[str, Work]:
    """The name and the input of the next task."""
    others = ("once", "patient", "limited")
    shares = [getattr(load, name) for name in others]
    (name,) = chance.choices(("work", *others), (1 - sum(shares), *shares))
    fates = ("crashing", "hanging", "failing", "hopeless")
    weights = [getattr(load, fate) for fate in fates]
    (fate,) = chance.choices(("none", *fates), (1 - sum(weights), *weights))
    if name != "work":
        fate = "none"
    return name, Work(
        token=f"{chance.getrandbits(64):016x}",
        value=chance.randrange(1_000_000),
        seconds=chance.uniform(*load.seconds),
        holds=load.holds,
        crashes=int(fate == "crashing"),
        hangs=int(fate == "hanging"),
        failures={"failing": 1, "hopeless": MAX_ATTEMPTS["work"] * 2}.get(fate, 0),
    )


async def main(configuration: Configuration) -> None:
    """Run until SIGTERM, or until the load is done if so told."""
    ledger = Ledger.of_environment()
    lilota = Lilota(
        configuration.url,
        number_of_processes=configuration.processes,
        lease=configuration.lease,
        store_timeout=configuration.store_timeout,
        grace=0.2,
    )
    register(lilota, configuration.names)
    if configuration.fault:
        seeded.apply(configuration.fault)
    if configuration.failpoint:
        failpoints.plant(configuration.failpoint, configuration.failpoint_turn)
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    try:
        await lilota.start()
    except StoreUnavailable:
        sys.exit(NO_DATABASE)
    client = Client(lilota, configuration, ledger)
    loop.add_signal_handler(signal.SIGUSR1, client.stop)
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    ledger.write("ready")
    scheduling = asyncio.create_task(client.run())
    if configuration.stop_after_load:
        await scheduling
    else:
        await ending.wait()
    client.stop()
    async with asyncio.timeout(STOP_SECONDS):
        await lilota.stop(drain=configuration.drain, timeout=configuration.stop_timeout)
        await scheduling
    end = loop.time() + THREAD_SECONDS
    while (left := leftovers()) and loop.time() < end:
        await asyncio.sleep(0.01)  # a thread that was told to end is on its way
    ledger.write("stopped", value=left)


def leftovers() -> list[str]:
    """What stop() should not have left in this process: task processes, zombies, threads."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                found.append(f"the zombie {process.pid}")
            elif os.getsid(process.pid) == process.pid:
                found.append(f"the task process {process.pid}")
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    found.extend(
        f"the thread {thread.name}"
        for thread in threading.enumerate()
        # asyncio's own pool for names and files lives as long as its loop.
        if thread is not threading.main_thread() and not thread.name.startswith("asyncio_")
    )
    return found


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Configuration)))
