"""A row on its way into the database: pending, or running at once where nothing waits before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec

from lilota_async.engine.places import Place
from lilota_async.models.values import TaskId
from lilota_async.storage.transitions import ClaimedTask, NewTask, as_claimed


class Dispatcher(Protocol):
    """What gives places, and hears what has become of them."""

    def reserve(self, name: str) -> Place | None: ...

    def begin(self, claimed: ClaimedTask, place: Place) -> None: ...

    def leave(self, place: Place) -> None: ...

    def give_up(self, place: Place) -> None: ...

    def on_inserted(self, tasks: Sequence[NewTask]) -> None: ...

    def doubt(self) -> None: ...


class Insertion:
    """One task that is being scheduled. It gets its place at the last moment."""

    __slots__ = ("_dispatcher", "_node_id", "_place", "task")

    def __init__(self, task: NewTask, node_id: UUID, dispatcher: Dispatcher) -> None:
        self.task = task
        self._node_id = node_id
        self._dispatcher = dispatcher
        self._place: Place | None = None

    @property
    def has_place(self) -> bool:
        """Whether its row says that it runs, which must come true whatever its caller does."""
        return self._place is not None

    def choose(self) -> None:
        """Take a place, if there is one."""
        if self._place is None:
            self._place = self._dispatcher.reserve(self.task.name)
            if self._place is not None:
                pid = self._place.slot.pid
                self.task = msgspec.structs.replace(self.task, node_id=self._node_id, pid=pid)

    def on_written(self, refused: set[TaskId[Any]]) -> None:
        """The row is there, unless it was refused because of a pause."""
        place, self._place = self._place, None
        if place is None:
            self._on_written_without_place()
        elif self.task.id in refused:
            self._dispatcher.leave(place)
        else:
            self._dispatcher.begin(as_claimed(self.task), place)

    def on_given_up(self) -> None:
        """The row may be there or not."""
        place, self._place = self._place, None
        if place is None:
            self._on_written_without_place()
        else:
            self._dispatcher.give_up(place)

    def _on_written_without_place(self) -> None:
        if self.task.node_id is None:
            self._dispatcher.on_inserted([self.task])
        else:  # it had one, until it was given up, and its row says so
            self._dispatcher.doubt()
