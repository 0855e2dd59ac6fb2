"""The public models; the mapped classes are imported when they are first asked for.

A task process needs `TaskProgress` and `TaskStatus`, and no SQLAlchemy for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilota_async.models.stats import NameStats, NodeStats, Stats
from lilota_async.models.values import (
    ModelProtocol,
    Retry,
    TaskEvent,
    TaskId,
    TaskProgress,
    TaskStatus,
)

if TYPE_CHECKING:
    from lilota_async.models.tables import Base, Node, Task

__all__ = [
    "Base",
    "ModelProtocol",
    "NameStats",
    "Node",
    "NodeStats",
    "Retry",
    "Stats",
    "Task",
    "TaskEvent",
    "TaskId",
    "TaskProgress",
    "TaskStatus",
]


def __getattr__(name: str) -> Any:
    if name in {"Base", "Node", "Task"}:
        from lilota_async.models import tables

        return getattr(tables, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
