"""Errors as a client is told of them: what to do about it, and nothing about the database."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from lilota_async.errors import (
    InvalidInput,
    LilotaError,
    NotRunning,
    QueueFull,
    ScheduleUnknown,
    SchemaMissing,
    SchemaTooNew,
    StoreUnavailable,
    TaskIsRunning,
    TaskNotFound,
    UniqueKeyTaken,
)

RETRY_AFTER_SECONDS = 5
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_REFUSALS: dict[type[LilotaError], tuple[int, str]] = {
    TaskNotFound: (404, "There is no task of this id; it may have been deleted"),
    UniqueKeyTaken: (409, "Another task has the unique key of this one by now"),
    TaskIsRunning: (409, "A running task cannot be deleted; cancel it first"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """The body of a 503, and after how many seconds to ask again."""

    body: dict[str, Any]
    retry_after: int = RETRY_AFTER_SECONDS


def unavailable(error: LilotaError) -> Unavailable | None:
    """What to answer when this cannot be done now; None for errors that are a fault."""
    if isinstance(error, QueueFull):
        return Unavailable(
            body={"detail": "Too much is waiting already; try again later"},
            retry_after=max(1, math.ceil(error.retry_after)),
        )
    if isinstance(error, ScheduleUnknown):
        detail = "The database went away; look the id up later, the task may have been accepted"
        return Unavailable(body={"detail": detail, "id": str(error.task_id)})
    if isinstance(error, StoreUnavailable | SchemaMissing | SchemaTooNew):
        return Unavailable(body={"detail": "The database cannot be used; try again later"})
    if isinstance(error, NotRunning):
        return Unavailable(body={"detail": "The application is starting or stopping; try again"})
    return None


def refusal(error: LilotaError) -> tuple[int, str] | None:
    """The status and the words where the task is not, or not any more, such that this can be."""
    return _REFUSALS.get(type(error))


def invalid_input(error: InvalidInput) -> list[dict[str, Any]]:
    """The reasons in the form that FastAPI gives them."""
    return [
        {"loc": ["body", *_steps(field)], "msg": reason, "type": "invalid_input"}
        for field, reason in error.reasons
    ]


def _steps(field: str) -> list[int | str]:
    return [int(index) if index else name for name, index in _STEP.findall(field.lstrip("$"))]
