"""Places for tasks that are inserted as running, without a claim.

A slot has one place, or as many as fit a burst while everything in it is known to be short. What
a claim is under way for is taken as well: the two write side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import msgspec

from lilota_async.engine.attempt import Slot


class Pool(Protocol):
    """The slots of one kind of executor; one that is stuck can begin nothing for a while."""

    size: int

    @property
    def is_stuck(self) -> bool: ...

    def slots(self) -> Sequence[Slot]: ...


class Place(msgspec.Struct, frozen=True, gc=False):
    """What one task takes of a slot until it begins."""

    slot: Slot
    share: int


class Places:
    """The places that are taken by tasks on their way into the database."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._taken: Counter[Slot] = Counter()
        self._offered: Counter[Slot] = Counter()

    def __bool__(self) -> bool:
        return bool(self._taken)

    def take(self, slots: Iterable[Slot], room: int, slow: Collection[Slot]) -> Place | None:
        """A place in the emptiest slot for a task of which `room` fit into one; None without.

        Nothing is put behind a task that is not known to be short, and such a one behind nothing.
        """
        best: Slot | None = None
        least = room
        for slot in slots:
            load = slot.load + self._taken.get(slot, 0) + self._offered.get(slot, 0)
            if load < least and not (load and (slot in slow or slot.is_held_up)):
                best, least = slot, load
                if not load:
                    break  # none is emptier
        if best is None:
            return None
        place = Place(best, 1 if room > 1 else self._largest)
        self._taken[best] += place.share
        return place

    def free(self, slots: Iterable[Slot], depth: int, slow: Collection[Slot]) -> list[Slot]:
        """One entry for each task to claim: the slots in turn, so that all get some.

        A slot is filled up when half of its burst is done, not to stand still between.
        """
        most = depth // 2
        room = {
            s: depth - s.load
            for s in slots
            if s not in self._taken
            and (not s.load or (s.load <= most and s not in slow and not s.is_held_up))
        }
        return [s for turn in range(depth) for s, left in room.items() if turn < left]

    def offer(self, slots: Sequence[Slot], depth: int) -> None:
        """A claim is sent for these, of which each is to have `depth` tasks at most."""
        if depth == 1:  # a task that may be long
            self._offered = Counter(dict.fromkeys(slots, self._largest))
        else:
            self._offered = Counter(slots)

    def withdraw(self) -> None:
        """What the claim has brought has begun."""
        self._offered = Counter()

    def give_back(self, place: Place) -> None:
        """The task has begun, or never will."""
        self._taken[place.slot] -= place.share
        if not self._taken[place.slot]:
            del self._taken[place.slot]
