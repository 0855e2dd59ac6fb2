"""What a reader who has seen the beginning is still to be told of a task: pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from lilota_async.models.values import TaskEvent, TaskStatus

_POSITION = re.compile(r"(\d{1,9})-([a-z]+)-(\d{1,3})-(\d{1,15})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What an event's `position` says; attempt 0 has seen no log."""

    attempt: int = 0
    status: str = ""
    progress: int = 0
    log_end: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position; of anything else, which a client may send, the beginning."""
        found = _POSITION.fullmatch(text)
        if found is None:
            return cls()
        attempt, status, progress, log_end = found.groups()
        return cls(
            attempt=int(attempt), status=status, progress=int(progress), log_end=int(log_end)
        )

    @property
    def is_final(self) -> bool:
        return any(self.status == status for status in TaskStatus if status.is_final)


class Story:
    """The events of one task, from a position on: nothing left out, nothing told twice."""

    def __init__(self, after: str) -> None:
        position = Position.parse(after)
        self._attempt = position.attempt
        self._log_end = position.log_end
        self._state: tuple[str, int] = (position.status, position.progress)
        self._runs_here = self._has_missed = False

    @property
    def knows_log(self) -> bool:
        """Whether all of the latest attempt's log comes as events, since it runs on this node."""
        return self._runs_here and not self._has_missed

    def misses(self, event: TaskEvent) -> bool:
        """Whether this is log that does not follow what was told: some of it went by before."""
        told = self._log_end if event.attempt == self._attempt else 0
        return event.kind == "log" and event.log_end - len(event.log or "") > told

    def catch_up(self, event: TaskEvent, log_since: Callable[[int], str]) -> Iterator[TaskEvent]:
        """The attempt runs on this node: its log so far, and how it is."""
        self._enter(event)
        self._has_missed = False
        said = log_since(self._log_end)
        if said:
            self._log_end = event.log_end
            yield replace(event, kind="log", log=said)
        yield from self.tell(event)

    def tell_row(self, event: TaskEvent, log: str | None) -> Iterator[TaskEvent]:
        """The row was read: it has the log when the attempt has ended."""
        self._enter(event)
        self._runs_here = False
        if event.status.is_final and log:
            # Of a log that was cut at its beginning, nobody knows where it continues.
            said = log[self._log_end :] if self._log_end <= len(log) else log
            self._log_end = max(self._log_end, len(log))
            if said and self._state != _state(event):
                yield replace(event, kind="log", log=said, log_end=self._log_end)
        yield from self._tell_state(event)

    def tell(self, event: TaskEvent) -> Iterator[TaskEvent]:
        """An event has come; log that does not follow is left to the row."""
        if event.kind == "log":
            self._enter(event)
            self._has_missed |= self.misses(event)
            new = event.log_end - self._log_end
            if new > 0 and event.log and not self._has_missed:
                self._log_end = event.log_end
                yield replace(event, log=event.log[-new:])
            return
        self._enter(event)
        yield from self._tell_state(event)

    def _tell_state(self, event: TaskEvent) -> Iterator[TaskEvent]:
        if self._state != _state(event):
            kind: Any = "progress" if self._state[0] == event.status else "status"
            self._state = _state(event)
            yield replace(event, kind=kind, attempt=self._attempt, log_end=self._log_end)

    def _enter(self, event: TaskEvent) -> None:
        """A new attempt has a log of its own; what ends or pends is of the one before."""
        if event.status is TaskStatus.RUNNING:
            self._runs_here = event.attempt > 0
        if event.attempt > 0 and event.attempt != self._attempt:
            self._attempt = event.attempt
            self._has_missed = False
            self._log_end = 0
            self._state = ("", 0)


def _state(event: TaskEvent) -> tuple[str, int]:
    return (str(event.status), event.progress_percentage)
