"""Which process this is, so that another can tell for certain whether it still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process among all of its machine's since boot.

    `machine` is the kernel's boot id with the PID namespace: containers of one machine have
    different ones. Empty where the system has neither; nobody can then tell from outside.
    `started` is the process's start in clock ticks since boot: a PID alone is used again.
    """

    machine: str
    host: str
    pid: int
    started: int


def own_identity() -> ProcessIdentity:
    """This process."""
    pid = os.getpid()
    try:
        started = _started(pid) or 0
    except OSError:  # a system without /proc
        started = 0
    return ProcessIdentity(
        machine=_machine(), host=socket.gethostname()[:255], pid=pid, started=started
    )


def is_certainly_dead(machine: str, pid: int, started: int) -> bool:
    """Whether the process ran on this machine and is gone; False whenever that is unknown."""
    if not machine or machine != _machine():
        return False
    try:
        return _started(pid) != started
    except (FileNotFoundError, ProcessLookupError):
        return not _exists(pid)  # /proc may hide the processes of other users
    except OSError:
        return False


def _machine() -> str:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """The start time of a process; None when only its zombie is left. OSError without any."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The command in parentheses may hold anything: count from behind it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
