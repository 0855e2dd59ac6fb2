"""Which of the tasks that wait may start, where limits are in use. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from lilota_async.models.rates import Starts
from lilota_async.storage.transitions import NameLimit


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is due; `key` is the concurrency key, if it has one."""

    id: Any
    name: str
    key: str | None
    priority: int
    run_at: Any

    @property
    def order(self) -> tuple[int, Any, Any]:
        """Higher priority first, then what is due for longer, then the older id."""
        return (-self.priority, self.run_at, self.id)


def rooms(
    limits: Iterable[NameLimit],
    running: Mapping[str, int],
    starts: Mapping[str, Starts],
    now: float,
) -> dict[str, int]:
    """How many tasks of each limited name may start now."""
    found = {}
    for limit in limits:
        room = []
        if limit.most_running is not None:
            room.append(max(0, limit.most_running - running.get(limit.name, 0)))
        if limit.rate is not None:
            room.append(limit.rate.room(starts.get(limit.name, ()), now))
        found[limit.name] = min(room)
    return found


def choose(
    candidates: Sequence[Candidate], room: Mapping[str, int], busy: Iterable[str], places: int
) -> list[Candidate]:
    """The first that may run: within the room of their names, one for each key."""
    left, taken = dict(room), set(busy)
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.order):
        if len(chosen) == places:
            break
        if candidate.key in taken or left.get(candidate.name, 1) == 0:
            continue
        if candidate.name in left:
            left[candidate.name] -= 1
        if candidate.key is not None:
            taken.add(candidate.key)
        chosen.append(candidate)
    return chosen


def seconds_to_room(
    limits: Iterable[NameLimit], starts: Mapping[str, Starts], now: float
) -> float | None:
    """How long until a name may start a task again whose rate is used up; None without one."""
    pauses = [
        limit.rate.seconds_to_room(starts.get(limit.name, ()), now)
        for limit in limits
        if limit.rate is not None
    ]
    return min((pause for pause in pauses if pause > 0), default=None)


def used_up(limits: Iterable[NameLimit], starts: Mapping[str, Starts], now: datetime) -> set[str]:
    """The names whose rate lets no task start now."""
    return {
        limit.name
        for limit in limits
        if limit.rate is not None
        and not limit.rate.room(starts.get(limit.name, ()), now.timestamp())
    }
