"""A run: a database with its history, a ledger, and replicas that are killed and frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import psutil

from lilota_async import Lilota
from tests.faults.history import Tables
from tests.faults.invariants import Evidence, Facts, Freeze, Violation, check
from tests.faults.ledger import VARIABLE, Ledger
from tests.faults.replica import Configuration
from tests.faults.tasks import MAX_ATTEMPTS, release_of

ROOT = Path(__file__).parents[2]
RUN_VARIABLE = "LILOTA_FAULTS_RUN"
DEADLINE = 60.0
POLL_SECONDS = 0.02
RESTING_SECONDS = 0.1
ORPHAN_SECONDS = 15.0
LOCKED_SECONDS = 0.2  # for longer only one that stands still holds the lock of SQLite


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait until `condition` holds; fails with `what` did not happen."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {deadline:g} s"
        time.sleep(POLL_SECONDS)


class Replica:
    """An application in a process of its own."""

    def __init__(self, run: Run, configuration: Configuration) -> None:
        self.configuration = configuration
        self._run = run
        self._frozen_at: float | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.replica", configuration.encode()],
            cwd=ROOT,
            env=run.environment,
            stdin=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def is_frozen(self) -> bool:
        """Whether it stands still."""
        return self._frozen_at is not None

    @property
    def is_ready(self) -> bool:
        """Whether it has said that start() returned."""
        return any(entry.pid == self.pid for entry in self._run.ledger.read(["ready"]))

    def has_started(self) -> bool:
        """Wait until start() has returned in it, or raised."""
        wait_until(lambda: self.is_ready or not self.is_alive, "the start of a replica")
        return self.is_ready

    def wait_until_ready(self) -> Self:
        """Wait until start() has returned in it."""
        assert self.has_started(), f"a replica ended with {self._process.returncode} while starting"
        return self

    def task_processes(self) -> list[int]:
        """The processes of its cells: each leads a session of its own."""
        found: list[int] = []
        try:
            children = psutil.Process(self.pid).children(recursive=True)
            found.extend(each.pid for each in children if os.getsid(each.pid) == each.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
        return found

    def kill(self) -> None:
        """SIGKILL; a frozen one dies as well."""
        self._run.facts.ended[self.pid] = time.time()  # others may see it before we do
        self._process.kill()
        self.wait()

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for its end, and note when it was; the exit code."""
        code = self._process.wait(timeout)
        self._thawed()
        self._run.facts.ended.setdefault(self.pid, time.time())
        return code

    def freeze(self) -> None:
        """SIGSTOP, while it does not hold the lock of SQLite; its task processes go on."""
        self._frozen_at = time.time()
        self._stand_still()
        while not self._run.tables.is_writable(within=LOCKED_SECONDS):
            os.kill(self.pid, signal.SIGCONT)
            time.sleep(POLL_SECONDS)
            self._stand_still()

    def _stand_still(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")  # one may still come back from a system call
        wait_until(lambda: all(map(_has_stopped, threads.glob("*/stat"))), "the stop")

    def thaw(self) -> None:
        """SIGCONT."""
        self._thawed()
        os.kill(self.pid, signal.SIGCONT)

    def _thawed(self) -> None:
        if self._frozen_at is not None:
            freeze = Freeze(pid=self.pid, start=self._frozen_at, end=time.time())
            self._run.facts.freezes.append(freeze)
            self._frozen_at = None

    def schedule_no_more(self) -> None:
        """SIGUSR1: its client is done."""
        os.kill(self.pid, signal.SIGUSR1)

    def stop(self) -> None:
        """SIGTERM: it stops in order, and must leave nothing."""
        self._process.terminate()
        assert self.wait() == 0, "a replica did not stop in order"


class Run:
    """One database and all that is known of what happens on it."""

    def __init__(self, url: str, directory: Path, *, lease: float = 30.0) -> None:
        self.url = url
        self.tables = Tables(url)
        self.ledger = Ledger(directory / "ledger.jsonl")
        self.facts = Facts(lease_seconds=lease, max_attempts=MAX_ATTEMPTS, never_repeated=("once",))
        self.replicas: list[Replica] = []
        self._name = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            VARIABLE: str(self.ledger.path),
            RUN_VARIABLE: self._name,
        }

    def __enter__(self) -> Self:
        asyncio.run(_make_tables(self.url))
        self.tables.install()
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            if replica.is_alive:
                replica.kill()
        for process in self._family():
            process.kill()

    def start(self, **options: object) -> Replica:
        """Start a replica; it is not ready yet."""
        seed = len(self.replicas) + 1
        base = Configuration(url=self.url, lease=self.facts.lease_seconds, seed=seed)
        replica = Replica(self, replace(base, **options))  # type: ignore[arg-type]
        self.replicas.append(replica)
        return replica

    def release(self, attempt: int) -> None:
        """Let this attempt of every task that holds come to its end."""
        release_of(self.ledger.path, attempt).touch()

    def started(self, count: int, name: str = "start") -> bool:
        """Whether so many bodies have started."""
        return len(self.ledger.read([name])) >= count  # type: ignore[list-item]

    def wait_for_rest(self, deadline: float = DEADLINE, *, load: int = 0) -> bool:
        """Wait until every row is final; False when that does not come to be.

        `load` schedules have to be answered first.
        """
        wait_until(lambda: self.started(load, "ack"), "the scheduling")
        end = time.monotonic() + deadline
        while self.tables.unfinished():
            if time.monotonic() > end:
                return False
            time.sleep(RESTING_SECONDS)
        return True

    def violations(self) -> list[Violation]:
        """All that the evidence shows."""
        evidence = Evidence(
            ledger=self.ledger.read(),
            history=self.tables.history(),
            nodes=self.tables.node_history(),
            rows=self.tables.rows(),
        )
        return [*check(evidence, self.facts), *self._left_behind()]

    def _left_behind(self) -> list[Violation]:
        """I9: what those that stopped in order have left, and what lives without its replica."""
        found = [
            Violation(invariant="I9", id=str(entry.pid), what=f"left {', '.join(entry.value)}")
            for entry in self.ledger.read(["stopped"])
            if entry.value
        ]
        if not any(replica.is_alive for replica in self.replicas):
            end = time.monotonic() + ORPHAN_SECONDS
            while (alive := self._family()) and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
            found += [
                Violation(invariant="I9", id=str(process.pid), what="lives without its replica")
                for process in alive
            ]
            left = self._connections()
            if left:
                what = f"{left} connections are open"
                found.append(Violation(invariant="I9", id="database", what=what))
        return found

    def _connections(self) -> int:
        if self.tables.is_sqlite:
            return 0
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        # The server notices the end of its client by and by.
        end = time.monotonic() + ORPHAN_SECONDS
        while (left := int(self.tables.fetch(others)[0][0])) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return left

    def _family(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(RUN_VARIABLE) == self._name:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # a zombie has no environment, and nobody here to bury it
        return found


def _has_stopped(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in ("T", "Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True  # that thread has ended


async def _make_tables(url: str) -> None:
    async with Lilota(url, number_of_processes=0):
        pass
