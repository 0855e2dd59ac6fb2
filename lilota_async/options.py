"""The settings that the public methods take, as types."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from lilota_async.errors import ConfigurationError
from lilota_async.models.values import Duration, Retry, TaskId, TaskProgress

Executor = Literal["process", "thread", "loop"]
StartMethod = Literal["forkserver", "spawn"]


def checked_count(name: str, value: object) -> int:
    """A whole number from 0 on; ConfigurationError names the setting that cannot work."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{name} must be a whole number from 0 on, not {value!r}")
    return value


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RegisterOptions(TypedDict, total=False):
    """The keywords of `register()`."""

    input_model: Any
    output_model: Any
    task_progress: type[TaskProgress] | None
    executor: Executor
    priority: int
    timeout: Duration | None
    retry: Retry


class ScheduleOptions(TypedDict, total=False):
    """The keywords of `schedule()`."""

    priority: int | None
    timeout: Duration | None
    tags: Iterable[str]
    task_id: TaskId[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """The settings of a node; durations in seconds."""

    processes: int
    threads: int
    coroutines: int
    progress_is_manual: bool
    migrate: bool
    lease_seconds: float
    grace_seconds: float
    store_timeout: float
    start_method: StartMethod | None
