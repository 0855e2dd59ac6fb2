"""The settings that the public methods take, as types."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast, get_args
from uuid import UUID

from lilota_async.errors import ConfigurationError
from lilota_async.models.values import (
    FINAL_STATUSES,
    NAME_LENGTH,
    Duration,
    Retry,
    TaskId,
    TaskProgress,
    TaskStatus,
    checked_duration,
)
from lilota_async.ticks import CatchUp

if TYPE_CHECKING:
    from lilota_async.storage.enlistment import CallersSession

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?b?)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}
Executor = Literal["process", "thread", "loop"]
OnInterrupt = Literal["requeue", "fail"]
OnConflict = Literal["return_existing", "reject", "replace"]
IfFailed = Literal["cancel", "run"]
StartMethod = Literal["forkserver", "spawn"]
Retention: TypeAlias = Duration | Mapping[TaskStatus | str, Duration | None]
PRIORITIES = range(-(2**31), 2**31)  # what a column of the databases holds


def checked_count(name: str, value: object) -> int:
    """A whole number from 0 on; ConfigurationError names the setting that cannot work."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{name} must be a whole number from 0 on, not {value!r}")
    return value


def checked_bound(name: str, value: int | None) -> int | None:
    """A whole number from 1 on, or None for no bound; ConfigurationError otherwise."""
    if value is not None and checked_count(name, value) == 0:
        raise ConfigurationError(f"{name} must be 1 or more, or None for no bound, not 0")
    return value


def checked_retention(value: object) -> dict[TaskStatus, float | None]:
    """For each status how many seconds it is kept, None for ever; of a duration, for all."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(FINAL_STATUSES, checked_duration("retention", cast("Any", value)))
    checked: dict[TaskStatus, float | None] = {}
    for status, duration in value.items():
        if status not in FINAL_STATUSES:
            known = ", ".join(FINAL_STATUSES)
            raise ConfigurationError(f"retention has {known}; tasks are not {status!r} at the end")
        name = f"retention[{str(status)!r}]"
        kept = None if duration is None else checked_duration(name, duration)
        checked[TaskStatus(status)] = kept
    return checked


def checked_size(name: str, value: object) -> int:
    """A size in bytes, of a number or a text such as "512MiB" or "1.5 GB"."""
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found:
        size = int(float(found[1]) * _UNITS[found[2].lower()])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ConfigurationError(f'{name} must be bytes or a text like "512MiB", not {value!r}')
    if size <= 0:
        raise ConfigurationError(f"{name} must be more than nothing, not {value!r}")
    return size


def checked_priority(value: object) -> int:
    """A priority that every database can hold; ConfigurationError otherwise."""
    if not isinstance(value, int) or value not in PRIORITIES:
        raise ConfigurationError(f"priority must be a whole number of 32 bits, not {value!r}")
    return value


def checked_fields(name: str, value: object) -> bool | tuple[str, ...]:
    """True, False or the names of fields; ConfigurationError otherwise."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        fields = tuple(value)
        if all(isinstance(field, str) and field for field in fields):
            return fields
    raise ConfigurationError(f'{name} takes field names, such as ["password"], or True for all')


def checked_key(name: str, key: object) -> str:
    """A key that every database can hold; ConfigurationError otherwise."""
    if not isinstance(key, str) or not key or not key.isprintable() or len(key) > NAME_LENGTH:
        raise ConfigurationError(
            f"{name} must be a printable text of 1 to {NAME_LENGTH} characters, not {key!r:.250}"
        )
    return key


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ConfigurationError unless `value` is among the texts of a Literal."""
    if value not in get_args(choices):
        known = " or ".join(repr(choice) for choice in get_args(choices))
        raise ConfigurationError(f"{name} must be {known}, not {value!r}")


def checked_after(after: object) -> tuple[UUID, ...]:
    """The ids that a task waits for, each once; ConfigurationError for what is none."""
    ids = tuple(after) if isinstance(after, Iterable) else (after,)
    if not isinstance(after, Iterable) or not all(isinstance(each, UUID) for each in ids):
        raise ConfigurationError(
            f"after= takes the ids of tasks, as schedule() returns them, not {after!r}"
        )
    return tuple(dict.fromkeys(ids))


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
    max_memory: int | str | None
    on_interrupt: OnInterrupt
    max_interruptions: int
    cron: str | None
    timezone: str | None
    every: Duration | None
    catch_up: CatchUp
    max_pending: int | None
    max_concurrency: int | None
    rate: str | None
    retention: Retention | None
    public: bool
    redact: bool | Iterable[str]


class RowOptions(TypedDict, total=False):
    """The keywords of `schedule()` that tell what is in the row."""

    delay: Duration | None
    run_at: datetime | None
    priority: int | None
    timeout: Duration | None
    tags: Iterable[str]
    unique_key: str | None
    unique_for: Duration | None
    concurrency_key: str | None
    task_id: TaskId[Any] | None


class ScheduleOptions(RowOptions, total=False):
    """The keywords of `schedule()`."""

    on_conflict: OnConflict
    session: CallersSession | None
    after: Iterable[UUID]
    if_failed: IfFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """The settings of a node; durations in seconds."""

    processes: int
    threads: int
    coroutines: int
    progress_is_manual: bool
    migrate: bool
    notify: bool
    lease_seconds: float
    grace_seconds: float
    recycle_after: int
    recycle_growth_bytes: int | None
    store_timeout: float
    max_pending: int | None
    retention: Mapping[TaskStatus, float | None]
    start_method: StartMethod | None
    preload: tuple[str, ...] = ()
    """Modules that the application's own module has loaded, as task processes will."""
