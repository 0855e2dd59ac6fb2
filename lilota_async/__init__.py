"""Background tasks for asyncio applications, with no broker and no fleet of workers.

The public names are imported when they are first used: a task process needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lilota_async.core import Lilota
    from lilota_async.errors import (
        Abort,
        AlreadyScheduled,
        InvalidInput,
        InvalidOutput,
        LilotaError,
        NotRunning,
        PartlyScheduled,
        QueueFull,
        RetryLater,
        ScheduleUnknown,
        StoreUnavailable,
        TaskCancelled,
        TaskCrashed,
        TaskFailed,
        TaskNotFound,
        TaskStopped,
        TaskTimeout,
        UniqueKeyTaken,
    )
    from lilota_async.execution.context import CurrentTask, current_task
    from lilota_async.models.stats import NameStats, NodeStats, Stats
    from lilota_async.models.tables import Node, Task
    from lilota_async.models.values import (
        ModelProtocol,
        Retry,
        TaskEvent,
        TaskId,
        TaskProgress,
        TaskStatus,
    )

__all__ = [
    "Abort",
    "AlreadyScheduled",
    "CurrentTask",
    "InvalidInput",
    "InvalidOutput",
    "Lilota",
    "LilotaError",
    "ModelProtocol",
    "NameStats",
    "Node",
    "NodeStats",
    "NotRunning",
    "PartlyScheduled",
    "QueueFull",
    "Retry",
    "RetryLater",
    "ScheduleUnknown",
    "Stats",
    "StoreUnavailable",
    "Task",
    "TaskCancelled",
    "TaskCrashed",
    "TaskEvent",
    "TaskFailed",
    "TaskId",
    "TaskNotFound",
    "TaskProgress",
    "TaskStatus",
    "TaskStopped",
    "TaskTimeout",
    "UniqueKeyTaken",
    "current_task",
]

_MODULES = {
    "core": ["Lilota"],
    "execution.context": ["CurrentTask", "current_task"],
    "models.stats": ["NameStats", "NodeStats", "Stats"],
    "models.tables": ["Node", "Task"],
    "models.values": [
        "ModelProtocol",
        "Retry",
        "TaskEvent",
        "TaskId",
        "TaskProgress",
        "TaskStatus",
    ],
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _MODULES.items() if name in names), "errors")
    return getattr(importlib.import_module(f"lilota_async.{home}"), name)
