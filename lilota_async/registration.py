"""Registering functions as tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from typing_extensions import Unpack

from lilota_async.errors import ConfigurationError
from lilota_async.models.rates import Rate
from lilota_async.models.values import Duration, Retry, TaskProgress, checked_duration
from lilota_async.options import (
    ExecutorKind,
    OnInterrupt,
    RegisterOptions,
    Retention,
    check_choice,
    checked_bound,
    checked_count,
    checked_fields,
    checked_flag,
    checked_model,
    checked_priority,
    checked_retention,
    checked_size,
)
from lilota_async.pausing import Pausing
from lilota_async.registry import NO_RETRY, RegisteredTask, Settings, TaskFunction
from lilota_async.ticks import CatchUp, read_periodic

Function = TypeVar("Function", bound=TaskFunction)


class Registration(Pausing):
    """The functions that are tasks, and how each is run."""

    _has_task_processes: bool
    _limit: int
    """The largest input or output, in bytes of JSON."""

    @overload
    def register(self, name: Function, /) -> Function: ...
    @overload
    def register(
        self, name: str | None = None, /, **options: Unpack[RegisterOptions]
    ) -> Callable[[Function], Function]: ...
    def register(
        self,
        name: Any = None,
        /,
        *,
        input_model: Any = None,
        output_model: Any = None,
        task_progress: type[TaskProgress] | None = None,
        executor: ExecutorKind = "process",
        priority: int = 0,
        timeout: Duration | None = None,
        retry: Retry = NO_RETRY,
        max_memory: int | str | None = None,
        on_interrupt: OnInterrupt = "requeue",
        max_interruptions: int = 3,
        cron: str | None = None,
        timezone: str | None = None,
        every: Duration | None = None,
        catch_up: CatchUp = "one",
        max_pending: int | None = None,
        max_concurrency: int | None = None,
        rate: str | None = None,
        retention: Retention | None = None,
        public: bool = False,
        redact: bool | Iterable[str] = False,
    ) -> Any:
        """Make a function a task; it is returned as it is.

        Args:
            name: The task's name; the function's own by default.
            input_model: The type of its input: a dataclass, pydantic model, msgspec Struct,
                TypedDict, attrs class, class with `as_dict()`, or any type that JSON can hold;
                by default the annotation.
            output_model: The type of what it returns, likewise.
            task_progress: `TaskProgress`, to be given one as last argument; a parameter
                annotated with it does the same.
            executor: `process`: in a process of its own; `thread`, `loop`: in the application.
            priority: Tasks of a higher priority are started first.
            timeout: The longest an attempt may take, from the start of the task's code.
            retry: When a failed attempt is followed by another; never by default.
            max_memory: The most that an attempt and the processes it starts may use, in bytes
                or as "512MiB"; beyond it they are killed. Only with `executor="process"`.
            on_interrupt: What follows when the application dies during an attempt: `requeue`
                runs the task again, up to `max_interruptions` times; `fail` fails it.
            cron, timezone: Schedule it by itself, once at each tick of a cron expression such as
                "*/5 * * * *", over all nodes; its fields mean the time of `timezone`, by default
                UTC. Needs the extra `cron`.
            every: Schedule it by itself, at the multiples of this time since 1970 in UTC.
            catch_up: What becomes of ticks that were missed, since no node ran: `one` runs the
                latest of them, `all` every one, `skip` none.
            max_pending: The most tasks of this name that may wait, on all nodes together;
                `schedule()` raises QueueFull then. No bound by default.
            retention: For how long ended tasks of this name are kept, instead of what `Lilota()`
                was told: a duration, or one for each status, None for ever.
            public: Let the web router's `POST /{name}` schedule it.
            redact: Names of fields, at any depth of the input, output and checkpoint, that no
                web page and no answer of the router shows; True: all of them.

        Raises:
            AlreadyRegistered: The name is taken.
            ConfigurationError: The function or a model cannot be imported by another
                process, or a setting cannot work.

        Example:
            >>> @lilota.register("report", timeout=60)
            ... def make_report(data: ReportInput, progress: TaskProgress) -> ReportOutput: ...
        """
        check_choice("executor", executor, ExecutorKind)
        check_choice("catch_up", catch_up, CatchUp)
        check_choice("on_interrupt", on_interrupt, OnInterrupt)
        if task_progress is not None and task_progress is not TaskProgress:
            raise ConfigurationError(
                f"task_progress must be TaskProgress, or None, not {task_progress!r:.250}"
            )
        input_model = checked_model("input_model", input_model)
        output_model = checked_model("output_model", output_model)
        if max_memory is not None and not (executor == "process" and self._has_task_processes):
            where = f"executor={executor!r}" if self._has_task_processes else "Lilota(executor=...)"
            raise ConfigurationError(
                f"max_memory= limits a process, and {where} has none; leave one out"
            )
        settings = Settings(
            executor=executor,
            priority=checked_priority(priority),
            timeout_seconds=None if timeout is None else checked_duration("timeout", timeout),
            retry=retry,
            max_memory_bytes=checked_size("max_memory", max_memory),
            on_interrupt=on_interrupt,
            max_interruptions=checked_count("max_interruptions", max_interruptions),
            periodic=read_periodic(cron, timezone, every, catch_up),
            max_pending=checked_bound("max_pending", max_pending),
            max_concurrency=checked_bound("max_concurrency", max_concurrency),
            rate=None if rate is None else Rate.parse(rate),
            retention=checked_retention(retention),
            public=checked_flag("public", public),
            redact=checked_fields("redact", redact),
        )

        def decorate(function: Function) -> Function:
            own_name = getattr(function, "__name__", "")
            self._registry.add(
                RegisteredTask(
                    own_name if name is None or name is function else name,
                    function,
                    input_model=input_model,
                    output_model=output_model,
                    task_progress=task_progress,
                    settings=settings,
                    limit=self._limit,
                )
            )
            return function

        return decorate(name) if callable(name) else decorate
