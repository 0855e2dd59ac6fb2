"""Small values that parent and task processes share; imports nothing heavy."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeAlias, runtime_checkable
from uuid import UUID, SafeUUID

import msgspec
from typing_extensions import TypeVar

from lilota_async.errors import LONGEST_SECONDS, ConfigurationError

Output = TypeVar("Output", default=Any, covariant=True)

Duration: TypeAlias = float | timedelta
NAME_LENGTH = 200
_RANDOM_BITS = 62
_VERSION_7 = 0x7
_VARIANT_RFC = 0b10


class TaskStatus(enum.StrEnum):
    """Where a task is in its life; the last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the task by itself."""
        return self not in (TaskStatus.PENDING, TaskStatus.RUNNING)


FINAL_STATUSES = tuple(status for status in TaskStatus if status.is_final)


class TaskId(UUID, Generic[Output]):
    """A task's id: a UUID of version 7, typed with the output of the task.

    `TaskId()` makes a new one; `TaskId("0197…")` reads one. Ids made later sort later:
    48 bits of milliseconds, then 12 bits of the fraction of the millisecond (RFC 9562,
    section 6.2, method 3), then 62 random bits.

    Example:
        >>> TaskId("01939e4a-7d1c-7000-8000-000000000000").version
        7
    """

    __slots__ = ()

    def __init__(self, value: str | UUID | None = None) -> None:
        if value is None:
            number = _new_uuid7()
        elif isinstance(value, UUID):
            number = value.int
        else:
            try:
                super().__init__(value)
            except (TypeError, AttributeError):
                raise ConfigurationError(
                    f"TaskId() takes the text of a UUID or a UUID, not {value!r:.250}"
                ) from None
            return
        # What UUID(int=...) does, without its checks: each task is worth three ids.
        object.__setattr__(self, "int", number)
        object.__setattr__(self, "is_safe", SafeUUID.unknown)

    @classmethod
    def earliest_at(cls, time: datetime) -> TaskId[Any]:
        """The smallest id that is made at this time, to the millisecond, or later."""
        milliseconds = min(max(int(time.timestamp() * 1000), 0), (1 << 48) - 1)
        return TaskId(UUID(int=milliseconds << 80))

    def __setattr__(self, name: object, value: object) -> None:  # type: ignore[override]
        if name != "__orig_class__":  # what typing sets after TaskId[Output](...)
            super().__setattr__(name, value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, core_schema.uuid_schema())


def checked_duration(name: str, duration: Duration, *, least: float = 0.0) -> float:
    """A duration as seconds; ConfigurationError names the setting that cannot work."""
    if not isinstance(duration, int | float | timedelta) or isinstance(duration, bool):
        raise ConfigurationError(f"{name} must be seconds or a timedelta, not {duration!r}")
    try:
        value = seconds(duration)
    except OverflowError:
        value = float("inf")
    if not least <= value < float("inf"):
        raise ConfigurationError(f"{name} must be {least:g} s or more, and finite, not {value:g} s")
    return value


def checked_span(name: str, duration: Duration, *, least: float = 0.0) -> float:
    """A duration in seconds that ends within what the databases can hold."""
    value = checked_duration(name, duration, least=least)
    if value > LONGEST_SECONDS:
        raise ConfigurationError(f"{name} must be 100 years at most, not {value:g} s")
    return value


def seconds(duration: Duration) -> float:
    """A duration as seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _new_uuid7() -> int:
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) >> 2
    return (
        (milliseconds & ((1 << 48) - 1)) << 80
        | _VERSION_7 << 76
        | fraction << 64
        | _VARIANT_RFC << _RANDOM_BITS
        | random
    )


@runtime_checkable
class ModelProtocol(Protocol):
    """A model of any class: `as_dict()` gives its fields, `cls(**fields)` builds it again."""

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a failed attempt is followed by another, and after how long.

    `max_attempts` counts the first one. The pause before attempt n + 1 is
    `delay * backoff ** (n - 1)` seconds, at most `max_delay`; with `jitter` a random part of
    it, between half and all. `on` has the exception classes to retry: empty means every
    failure, crashes and timeouts included; with classes given, crashes and timeouts are
    retried when `TaskCrashed` and `TaskTimeout` are among them. `not_on` wins over `on`.

    Raises ConfigurationError for values that cannot be meant.

    Example:
        >>> @lilota.register(retry=Retry(max_attempts=5, on=(OSError,)))
        ... def fetch(url: str) -> str: ...
    """

    max_attempts: int = 5
    delay: float | timedelta = 1.0
    backoff: float = 2.0
    max_delay: float | timedelta = 300.0
    jitter: bool = True
    on: tuple[type[BaseException], ...] = ()
    not_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        attempts, backoff = self.max_attempts, self.backoff
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise ConfigurationError("Retry(max_attempts=...) counts the first: 1 is the least")
        if attempts >= 2**31:
            raise ConfigurationError("Retry(max_attempts=...) is a whole number below 2**31")
        checked_span("Retry(delay=...)", self.delay)
        checked_span("Retry(max_delay=...)", self.max_delay)
        if isinstance(backoff, bool) or not isinstance(backoff, int | float) or not backoff >= 1:
            raise ConfigurationError("Retry(backoff=...) is a factor of at least 1")
        if not isinstance(self.jitter, bool):
            raise ConfigurationError(
                f"Retry(jitter=...) must be True or False, not {self.jitter!r:.250}"
            )
        for classes in (self.on, self.not_on):
            if not isinstance(classes, tuple) or not all(
                isinstance(c, type) and issubclass(c, BaseException) for c in classes
            ):
                raise ConfigurationError(
                    "Retry(on=..., not_on=...) take tuples of exception classes"
                )


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that happened to a task, as `watch()` yields it.

    `kind` is `status`, `progress` or `log`; `log` is the text that was written, or None.
    `attempt` counts from 1, and is 0 where another node has it and the row was not read;
    `log_end` is how many characters the attempt had written by then.
    """

    kind: Literal["status", "progress", "log"]
    task_id: TaskId[Any]
    status: TaskStatus
    progress_percentage: int
    log: str | None = None
    attempt: int = 0
    log_end: int = 0

    @property
    def position(self) -> str:
        """Where in the task's story this is: `watch(after=position)` goes on from here."""
        return f"{self.attempt}-{self.status}-{self.progress_percentage}-{self.log_end}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a node can take tasks and run them, as `Lilota.health()` finds it.

    `running`: it is started and not stopping. `database`: it answers. `cells`: task processes
    come up. `lease`: it was renewed in time, so that nobody takes this node's tasks over.
    """

    running: bool
    database: bool
    cells: bool
    lease: bool

    @property
    def is_ready(self) -> bool:
        """Whether all of it holds."""
        return self.running and self.database and self.cells and self.lease


class TaskProgress:
    """The handle by which a task function reports how far it is.

    Example:
        >>> def report(data: ReportInput, progress: TaskProgress) -> None:
        ...     for number, page in enumerate(data.pages, start=1):
        ...         render(page)
        ...         progress.set(100 * number // len(data.pages))
    """

    __slots__ = ("_publish", "percentage")

    def __init__(self, publish: Callable[[int], None]) -> None:
        self._publish = publish
        self.percentage: int | None = None

    def set(self, percentage: float) -> None:
        """Report `percentage`, clamped to 0..100.

        Never waits for the database and never raises: a value that is not a number is
        ignored. The row follows a few times a second, and has the last value at the end.
        """
        try:
            clamped = int(min(max(percentage, 0), 100))  # in this order NaN stays one
        except Exception:
            return
        if clamped != self.percentage:
            self.percentage = clamped
            self._publish(clamped)
