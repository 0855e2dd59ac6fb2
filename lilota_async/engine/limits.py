"""What a node knows of limits: those that it has registered, and those in the database."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from lilota_async.registry import Registry
from lilota_async.storage.limited import ALL
from lilota_async.storage.transitions import Claim, InUse, LimitedClaim, NameLimit, NewTask


class LimitsInUse:
    """Whether claims go name by name; what others have written is as of the last look."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._in_use = InUse()
        self._inserted: set[str] = set()
        self._has_looked = False

    def begin_look(self) -> None:
        """What is inserted from now on may not be seen by the look."""
        self._inserted.clear()

    def note(self, found: InUse) -> bool:
        """What a look has found; True when it may let more tasks start than before."""
        before, found = self._in_use, replace(found, keyed=found.keyed | self._inserted)
        self._in_use, self._has_looked = found, True
        return bool(found.keyed - before.keyed or before.paused - found.paused)

    def note_inserted(self, tasks: Iterable[NewTask]) -> None:
        """New rows of this node."""
        names = {task.name for task in tasks if task.concurrency_key is not None}
        if names:
            self._inserted |= names
            self._in_use = replace(self._in_use, keyed=self._in_use.keyed | names)

    @property
    def crowded(self) -> frozenset[str]:
        """The names of which very many tasks wait."""
        return self._in_use.crowded

    def is_paused(self, name: str) -> bool:
        """Whether no task of the name may start."""
        return name in self._in_use.paused or ALL in self._in_use.paused

    def may_insert_running(self, name: str) -> bool:
        """Whether a slot is all that a task of the name needs."""
        return self._has_looked and not self.is_paused(name) and self._limit(name) is None

    def within(self, claim: Claim) -> Claim | LimitedClaim:
        """The claim, within the limits of its names if they have any.

        Also name by name where many tasks of others wait, which are those of other nodes, of
        another executor, or paused: the one statement of a claim would pass over them all.
        """
        limits = tuple(filter(None, map(self._limit, claim.names)))
        keyed = self._in_use.keyed.intersection(claim.names)
        if not limits and not keyed and self._in_use.crowded.issubset(claim.names):
            return claim
        return LimitedClaim(claim=claim, limits=limits, keyed=keyed)

    def _limit(self, name: str) -> NameLimit | None:
        settings = self._registry[name].settings
        if settings.max_concurrency is None and settings.rate is None:
            return None
        return NameLimit(name=name, most_running=settings.max_concurrency, rate=settings.rate)
