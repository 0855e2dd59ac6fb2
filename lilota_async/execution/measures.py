"""What the kernel tells of processes from outside: what they use, who is in a group.

Linux's /proc; elsewhere nothing is known, and every answer says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
OOM_LOOK_SECONDS = 1.0
_STAT_SIZE = 2048  # no stat is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process has used: itself and its children that ended; None is unknown."""

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Stat:
    state: bytes
    group: int
    ticks: int
    resident_bytes: int


def usage_of(pid: int) -> Usage:
    """The processor time and the largest resident size of a process so far."""
    stat = _stat(pid)
    if stat is None:
        return Usage()
    return Usage(cpu_seconds=stat.ticks / _TICKS_PER_SECOND, peak_memory_bytes=_peak(pid))


def resident_bytes(pid: int) -> int | None:
    """The resident size of a process."""
    stat = _stat(pid)
    return None if stat is None else stat.resident_bytes


def resident_bytes_by_group() -> Counter[int]:
    """The resident sizes of all living processes, summed by process group."""
    sizes: Counter[int] = Counter()
    for _, stat in _living():
        sizes[stat.group] += stat.resident_bytes
    return sizes


def is_group_gone(group: int) -> bool:
    """Whether no process of the group lives; False where that cannot be known."""
    if not os.path.exists("/proc/self/stat"):
        return False
    return all(stat.group != group for _, stat in _living())


def oom_kills() -> int | None:
    """How often the kernel ended a process of this one's cgroup because memory ran out."""
    for path in _oom_files():
        try:
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        except (OSError, ValueError):
            continue
    return None


class OomKills:
    """Whether the kernel has ended a process for want of memory since the last look."""

    def __init__(self) -> None:
        self._count: int | None = None
        self._looked = float("-inf")

    def look(self) -> None:
        """Note how many there were; once a second at most."""
        now = time.monotonic()
        if now - self._looked > OOM_LOOK_SECONDS:
            self._looked = now
            self._count = oom_kills()

    def are_more(self) -> bool:
        """Whether there are more now."""
        count = oom_kills()
        return count is not None and self._count is not None and count > self._count


def _oom_files() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        below = group.lstrip("/")
        if not controllers:
            yield root / below / "memory.events"
            yield root / "memory.events"  # a container sees its own group as the root
        elif "memory" in controllers.split(","):
            yield root / "memory" / below / "memory.oom_control"
            yield root / "memory" / "memory.oom_control"
    yield Path("/proc/vmstat")  # no group of our own: the whole system's


def _living() -> Iterator[tuple[int, _Stat]]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            stat = _stat(int(name))
            if stat is not None and stat.state not in (b"Z", b"X"):
                yield int(name), stat


def _stat(pid: int) -> _Stat | None:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        content = os.read(descriptor, _STAT_SIZE)
    except OSError:  # it ended meanwhile
        return None
    finally:
        os.close(descriptor)
    # The command in parentheses may hold anything: count from behind it.
    fields = content[content.rindex(b")") + 2 :].split(None, 22)
    return _Stat(
        state=fields[0],
        group=int(fields[2]),
        ticks=sum(map(int, fields[11:15])),
        resident_bytes=int(fields[21]) * _PAGE,
    )


def _peak(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None  # a zombie has no memory any more
