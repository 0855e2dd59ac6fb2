"""The settings that the public methods take: their types, and what is checked of them."""

from __future__ import annotations

import concurrent.futures
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
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
    checked_span,
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
ExecutorKind = Literal["process", "thread", "loop"]
OnInterrupt = Literal["requeue", "fail"]
OnConflict = Literal["return_existing", "reject", "replace"]
IfFailed = Literal["cancel", "run"]
StartMethod = Literal["forkserver", "spawn"]
Retention: TypeAlias = Duration | Mapping[TaskStatus | str, Duration | None]
MIN_LEASE_SECONDS = 1.0
PRIORITIES = range(-(2**31), 2**31)  # what a column of the databases holds
LARGEST_BOUND = 2**31 - 1  # what PostgreSQL takes for a LIMIT that is a parameter
MOST_AT_ONCE = 100_000  # each of which takes memory from the start on
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # what is due for longer is due all the same
LATEST = datetime(9999, 1, 1, tzinfo=UTC)  # what every database can hold
_MODULES_OF_TYPES = ("annotationlib", "types", "typing", "typing_extensions")


def checked_count(name: str, value: object) -> int:
    """A whole number from 0 on; ConfigurationError names the setting that cannot work."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{name} must be a whole number from 0 on, not {value!r}")
    if value > sys.maxsize:
        raise ConfigurationError(f"{name} must be below 2**63; give a smaller number")
    return value


def checked_slots(name: str, value: object) -> int:
    """How many tasks run at a time; ConfigurationError for what no machine can do."""
    slots = checked_count(name, value)
    if slots > MOST_AT_ONCE:
        raise ConfigurationError(f"{name} must be {MOST_AT_ONCE} at most, not {slots!r:.250}")
    return slots


def checked_flag(name: str, value: object) -> bool:
    """True or False; ConfigurationError for what only may mean one of them."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r:.250}")
    return value


def checked_processes(value: int | None) -> int:
    """How many tasks run in processes: as many as there are usable CPUs by default."""
    return usable_cpus() if value is None else checked_slots("number_of_processes", value)


def checked_executor(value: object) -> concurrent.futures.Executor | None:
    """An executor, or None for processes of our own; ConfigurationError otherwise."""
    if value is None or isinstance(value, concurrent.futures.Executor):
        return value
    raise ConfigurationError(
        "executor must be a concurrent.futures.Executor, such as a Dask client's get_executor(), "
        f"or None for task processes, not {value!r:.250}"
    )


def checked_bound(name: str, value: int | None) -> int | None:
    """A whole number from 1 on, or None for no bound; ConfigurationError otherwise."""
    if value is not None and checked_count(name, value) == 0:
        raise ConfigurationError(f"{name} must be 1 or more, or None for no bound, not 0")
    if value is not None and value > LARGEST_BOUND:
        raise ConfigurationError(
            f"{name} must be {LARGEST_BOUND} at most, or None for no bound, not {value!r:.250}"
        )
    return value


def checked_retention(value: object) -> dict[TaskStatus, float | None]:
    """For each status how many seconds it is kept, None for ever; of a duration, for all."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(FINAL_STATUSES, checked_span("retention", cast("Any", value)))
    checked: dict[TaskStatus, float | None] = {}
    for status, duration in value.items():
        if status not in FINAL_STATUSES:
            known = ", ".join(FINAL_STATUSES)
            raise ConfigurationError(f"retention has {known}; tasks are not {status!r} at the end")
        name = f"retention[{str(status)!r}]"
        kept = None if duration is None else checked_span(name, duration)
        checked[TaskStatus(status)] = kept
    return checked


def checked_size(name: str, value: object) -> int | None:
    """A size in bytes, of a number or a text such as "512MiB" or "1.5 GB"; None for none."""
    if value is None:
        return None
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
    if not isinstance(value, int) or isinstance(value, bool) or value not in PRIORITIES:
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


def checked_start_method(value: StartMethod | None) -> StartMethod | None:
    """How task processes are started, or None for the usual; ConfigurationError otherwise."""
    if value is not None:
        check_choice("start_method", value, StartMethod)
    return value


def checked_model(name: str, value: Any) -> Any:
    """What a value may be declared as, or None; ConfigurationError for what is a value itself."""
    # What list[int], int | None and Annotated[...] are, comes from these.
    is_type = isinstance(value, type) or type(value).__module__ in _MODULES_OF_TYPES
    if value is not None and not is_type:
        raise ConfigurationError(
            f"{name} must be a class or a type such as list[int], not {value!r:.250}"
        )
    return value


def checked_waiting(after: object, if_failed: object) -> tuple[UUID, ...]:
    """The ids that a task waits for, each once; ConfigurationError for what is none."""
    if after == () and if_failed == "cancel":  # nearly always
        return ()
    check_choice("if_failed", if_failed, IfFailed)
    if after is None:
        return ()
    ids = tuple(after) if isinstance(after, Iterable) else (after,)
    if not isinstance(after, Iterable) or not all(isinstance(each, UUID) for each in ids):
        raise ConfigurationError(
            f"after= takes the ids of tasks, as schedule() returns them, not {after!r}"
        )
    return tuple(dict.fromkeys(ids))


def checked_due(delay: Duration | None, run_at: datetime | None) -> tuple[float, datetime | None]:
    """When the task is due: after so many seconds, or at this time; ConfigurationError."""
    if delay is not None and run_at is not None:
        raise ConfigurationError("A task takes delay= or run_at=, not both; leave one out")
    if delay is not None:
        return checked_span("delay", delay), None
    if run_at is None:
        return 0.0, None
    if not isinstance(run_at, datetime):
        raise ConfigurationError(f"run_at must be a datetime, not {run_at!r}")
    if run_at.utcoffset() is None:
        raise ConfigurationError(
            f"run_at must have a timezone, which {run_at!r} has not; "
            "give it one, such as datetime.now(UTC) has"
        )
    if run_at >= LATEST:
        raise ConfigurationError(f"run_at must be before the year 9999, not {run_at}")
    return 0.0, max(run_at, EARLIEST).astimezone(UTC)


def checked_time(name: str, time: object) -> datetime | None:
    """A time to compare others with, in UTC, or None; ConfigurationError otherwise."""
    if time is None:
        return None
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise ConfigurationError(
            f"{name} must be a datetime with a timezone, such as datetime.now(UTC), not {time!r}"
        )
    return min(max(time, EARLIEST), LATEST).astimezone(UTC)


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
    executor: ExecutorKind
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

    executor: concurrent.futures.Executor | None
    """What runs tasks instead of processes of our own."""
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
