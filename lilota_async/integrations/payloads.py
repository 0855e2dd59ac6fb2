"""What the web shows of a task, without what its registration says is not to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lilota_async.models.values import TaskEvent

if TYPE_CHECKING:
    from lilota_async.models.tables import Task
    from lilota_async.registry import Settings

REDACTED = "[redacted]"
SHORTEST_SECRET = 4
"""Texts that are shorter are not looked for in logs and messages: they would be everywhere."""


def summary(task: Task) -> dict[str, Any]:
    """The task without its payloads; of a failure the kind alone, which names no data."""
    failure = task.exception if isinstance(task.exception, dict) else {}
    return {
        "id": str(task.id),
        "name": task.name,
        "status": str(task.status),
        "progress": task.progress_percentage,
        "tags": task.tags if isinstance(task.tags, list) else [],
        "attempts": task.attempts,
        "max_attempts": task.max_attempts,
        "created_at": _iso(task.created_at),
        "run_at": _iso(task.run_at),
        "started_at": _iso(task.start_date_time),
        "ended_at": _iso(task.end_date_time),
        "error": None if task.exception is None else str(failure.get("kind", "error")),
    }


def of_event(event: TaskEvent) -> dict[str, Any]:
    """The data of an event of a stream."""
    if event.kind == "log":
        return {"text": event.log}
    return {
        "id": str(event.task_id),
        "status": str(event.status),
        "progress": event.progress_percentage,
        "attempt": event.attempt,
    }


class Redaction:
    """Takes out what `register(redact=...)` names: fields by name, and their values in texts."""

    def __init__(self, settings: Settings | None, *, hides_all: bool = False) -> None:
        redact = hides_all if settings is None else settings.redact
        self.hides_everything = redact is True
        self._fields = frozenset() if isinstance(redact, bool) else frozenset(redact)

    def value(self, value: Any) -> Any:
        """A payload without the fields, at any depth."""
        if self.hides_everything:
            return None if value is None else REDACTED
        if not self._fields:
            return value
        if isinstance(value, dict):
            return {
                key: REDACTED if key in self._fields else self.value(each)
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self.value(each) for each in value]
        return value

    def secrets_of(self, task: Task) -> tuple[str, ...]:
        """The texts that stand in the fields, the longest first."""
        if not self.hides_everything and not self._fields:
            return ()
        found = {
            secret
            for payload in (task.input, task.output, task.checkpoint)
            for secret in self._find(payload, self.hides_everything)
        }
        return tuple(sorted(found, key=len, reverse=True))

    def _find(self, value: Any, is_secret: bool) -> Iterator[str]:
        if isinstance(value, dict):
            for key, each in value.items():
                yield from self._find(each, is_secret or key in self._fields)
        elif isinstance(value, list):
            for each in value:
                yield from self._find(each, is_secret)
        elif is_secret and not isinstance(value, bool) and value is not None:
            text = str(value)
            if len(text) >= SHORTEST_SECRET:
                yield text


def masked(text: str, secrets: tuple[str, ...]) -> str:
    """The text without the secrets."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")
