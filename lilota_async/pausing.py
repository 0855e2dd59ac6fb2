"""Pausing names of tasks, or all of them."""

from __future__ import annotations

from lilota_async.registry import TaskFunction, check_name
from lilota_async.tasks import Tasks


class Pausing(Tasks):
    """What may start: kept in the database, for every node."""

    async def pause(self, name: str | TaskFunction | None = None) -> None:
        """Let no more tasks of this name start, on any node, or none at all; what runs goes on.

        Kept in the database until `resume()`, and effective everywhere when this returns. Raises
        NotRunning.

        Example:
            >>> await lilota.pause("report")
        """
        node = self._require_node("pause()")
        key = self._limit_name(name)
        await node.change_limits(lambda c: node.store.limits.pause(c, key))

    async def resume(self, name: str | TaskFunction | None = None) -> None:
        """Let tasks of this name start again; without a name, end a pause of all of them.

        A name that was paused by itself stays so when all others are resumed. Raises NotRunning.
        """
        node = self._require_node("resume()")
        key = self._limit_name(name)
        await node.change_limits(lambda c: node.store.limits.resume(c, key))

    def _limit_name(self, name: str | TaskFunction | None) -> str:
        if name is None:
            return ""
        if not isinstance(name, str):
            return self._registry.find(name).name
        check_name(name)
        return name
