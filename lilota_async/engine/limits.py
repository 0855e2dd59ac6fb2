"""What a node knows of limits: those that it has registered, and those in the database."""

from __future__ import annotations

from collections.abc import Iterable

from lilota_async.registry import Registry
from lilota_async.storage.limited import ALL
from lilota_async.storage.transitions import Claim, LimitedClaim, NameLimit, NewTask


class LimitsInUse:
    """Whether claims have to go within limits; what others have written is as of the last look."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._keyed: frozenset[str] = frozenset()
        self._paused: frozenset[str] = frozenset()
        self._inserted: set[str] = set()
        self._has_looked = False

    def begin_look(self) -> None:
        """What is inserted from now on may not be seen by the look."""
        self._inserted.clear()

    def note(self, keyed: frozenset[str], paused: frozenset[str]) -> bool:
        """What a look has found; True when it may let more tasks start than before."""
        keyed |= self._inserted
        may_be_more = bool(keyed - self._keyed or self._paused - paused)
        self._keyed, self._paused, self._has_looked = keyed, paused, True
        return may_be_more

    def note_inserted(self, tasks: Iterable[NewTask]) -> None:
        """New rows of this node."""
        names = {task.name for task in tasks if task.concurrency_key is not None}
        self._inserted |= names
        self._keyed |= names

    def is_paused(self, name: str) -> bool:
        """Whether no task of the name may start."""
        return name in self._paused or ALL in self._paused

    def may_insert_running(self, name: str) -> bool:
        """Whether a slot is all that a task of the name needs."""
        return self._has_looked and not self.is_paused(name) and self._limit(name) is None

    def within(self, claim: Claim) -> Claim | LimitedClaim:
        """The claim, within the limits of its names if they have any."""
        limits = tuple(filter(None, map(self._limit, claim.names)))
        keyed = self._keyed.intersection(claim.names)
        if not limits and not keyed:
            return claim
        return LimitedClaim(claim=claim, limits=limits, keyed=keyed)

    def _limit(self, name: str) -> NameLimit | None:
        settings = self._registry[name].settings
        if settings.max_concurrency is None and settings.rate is None:
            return None
        return NameLimit(name=name, most_running=settings.max_concurrency, rate=settings.rate)
