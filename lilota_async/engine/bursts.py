"""How many tasks a cell gets at once: one, unless tasks prove short.

Those that are much shorter than their dispatch come in bursts; one that takes no longer than
the moment that people wait for has the next one behind it, so that the cell does not stand
still between. What waits behind a task that takes longer than expected is taken back.

Pure policy. A burst forms only while everything that is claimed is known to be short; the
first claim that brings something else ends that, and what would have to wait goes back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

SHORT_SECONDS = 0.1
BURST_SECONDS = 0.02  # the longest that a task should wait for its turn in a burst
LARGEST_BURST = 1024  # and so many at most wait when a short task hangs
LARGEST_CLAIM = 256  # for each cell: its rows come all at once, and hold up the event loop
SAMPLES_BEFORE_TRUST = 8
WEIGHT_OF_NEWEST = 0.2

Place = TypeVar("Place")
T = TypeVar("T")


class Bursts:
    """What is known of how long tasks take, by name, and what follows for the next claim."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._samples: dict[str, int] = {}
        self._last_was_short = False
        self._slowest_of_last = 0.0

    def observe(self, name: str, seconds: float) -> None:
        """An attempt of this task took so long."""
        known = self._seconds.get(name)
        if known is None:
            self._seconds[name] = seconds
        else:  # one that waited for a processor is forgiven, one that is really long is not
            self._seconds[name] = known + WEIGHT_OF_NEWEST * (seconds - known)
        self._samples[name] = self._samples.get(name, 0) + 1

    def is_short(self, name: str) -> bool:
        """Whether others may wait behind a task of this name."""
        trusted = self._samples.get(name, 0) >= SAMPLES_BEFORE_TRUST
        return trusted and self._seconds[name] <= SHORT_SECONDS

    def room(self, name: str) -> int:
        """How many tasks like this one fit into a cell at once."""
        return _fitting(self._seconds[name], LARGEST_BURST) if self.is_short(name) else 1

    @property
    def depth(self) -> int:
        """How many tasks to claim for each cell."""
        if not self._last_was_short:
            return 1
        return _fitting(self._slowest_of_last, LARGEST_CLAIM)

    def learn(self, names: Sequence[str]) -> None:
        """A claim brought tasks of these names."""
        if names:
            self._last_was_short = all(self.is_short(name) for name in set(names))
            self._slowest_of_last = max(self._seconds.get(name, 0.0) for name in names)

    def arrange(
        self, claimed: Sequence[tuple[Place, str, T]]
    ) -> tuple[list[tuple[Place, T]], list[T]]:
        """Of (cell, name, task): what to run where, in order, and what has to go back.

        A cell runs its short tasks first and then at most one that is not.
        """
        run: list[tuple[Place, T]] = []
        wait: dict[Place, float] = defaultdict(float)
        last: dict[Place, T] = {}
        back: list[T] = []
        for cell, name, task in claimed:
            if not self.is_short(name):
                if last.setdefault(cell, task) is not task:
                    back.append(task)
            elif wait[cell] > SHORT_SECONDS:
                back.append(task)
            else:
                run.append((cell, task))
                wait[cell] += self._seconds[name]
        return run + list(last.items()), back


def _fitting(seconds: float, most: int) -> int:
    return max(2, int(BURST_SECONDS / max(seconds, BURST_SECONDS / most)))
