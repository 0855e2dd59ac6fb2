"""Watching what tasks use of the memory, while one of them has a limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from lilota_async.execution import measures

LOOK_SECONDS = 0.1
SHARE_OF_TIME = 0.05  # at most, where so many processes exist that looking takes long


class MemoryGuard:
    """One process group and its limit; `peak_bytes` is the most that was seen so far."""

    __slots__ = ("_limit_bytes", "_on_excess", "group", "peak_bytes")

    def __init__(self, group: int, limit_bytes: int, on_excess: Callable[[int], None]) -> None:
        self.group = group
        self.peak_bytes = 0
        self._limit_bytes = limit_bytes
        self._on_excess = on_excess

    def see(self, resident_bytes: int) -> bool:
        """Whether the group is within its limit; tells once when it is not."""
        self.peak_bytes = max(self.peak_bytes, resident_bytes)
        if resident_bytes <= self._limit_bytes:
            return True
        self._on_excess(self.peak_bytes)
        return False


class MemoryWatch:
    """Looks at the resident size of process groups, all of them in one look.

    A group is a task process with all that its task has started. Memory that its members
    share counts for each of them. Where there is no /proc nothing is ever seen.

    Example:
        >>> guard = watch.add(cell.pid, 512 * 1024 * 1024, lambda peak: attempt.stop(...))
        >>> ...
        >>> watch.remove(guard)
    """

    def __init__(self) -> None:
        self._guards: list[MemoryGuard] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, group: int, limit_bytes: int, on_excess: Callable[[int], None]) -> MemoryGuard:
        """Call `on_excess` with the peak, once, when the group's size is over the limit."""
        guard = MemoryGuard(group, limit_bytes, on_excess)
        self._guards.append(guard)
        if self._timer is None:
            self._arm(LOOK_SECONDS)
        return guard

    def remove(self, guard: MemoryGuard) -> None:
        """The task has ended."""
        if guard in self._guards:
            self._guards.remove(guard)
        if not self._guards:
            self.close()

    def close(self) -> None:
        """Look no more."""
        self._guards.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, after: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(after, self._look)

    def _look(self) -> None:
        self._timer = None
        started = time.perf_counter()
        sizes = measures.resident_bytes_by_group()
        took = time.perf_counter() - started
        for guard in list(self._guards):
            if not guard.see(sizes[guard.group]):
                self.remove(guard)
        if self._guards:
            self._arm(max(LOOK_SECONDS, took / SHARE_OF_TIME))
