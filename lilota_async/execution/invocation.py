"""Calling a task function: decode, call, encode; every failure becomes a value.

Shared by task processes, threads, the loop and executors, so that a task means the same on each.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from lilota_async.codec import Codec, Misfit, describe
from lilota_async.errors import Interruption, InvalidInput, RetryLater
from lilota_async.execution.context import CurrentTask, enter_task
from lilota_async.execution.protocol import Call, Message, Outcome, Started, raw
from lilota_async.registry import Definition


@dataclass(frozen=True, slots=True)
class Runnable:
    """A definition whose function is imported and whose codecs are built."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]
    input: Codec
    output: Codec

    def arguments_for(self, call: Call, task: CurrentTask) -> list[Any]:
        """What the function is to be called with; raises InvalidInput."""
        arguments: list[Any] = []
        for argument in self.arguments:
            if argument == "progress":
                arguments.append(task.progress)
            elif call.input is not None:
                try:
                    arguments.append(self.input.decode(call.input))
                except Misfit as misfit:
                    raise InvalidInput(call.name, misfit.field, misfit.reason) from misfit
        return arguments


Publish = Callable[[Message], None]
Load = Callable[[bytes], Runnable]


def load(pickled: bytes) -> Runnable:
    """Import what a definition names."""
    definition: Definition = pickle.loads(pickled)
    module, _, qualname = definition.function.partition(":")
    function: Any = importlib.import_module(module)
    for name in qualname.split("."):
        function = getattr(function, name)
    return Runnable(
        function=function,
        arguments=definition.arguments,
        input=Codec(definition.input_model, limit=definition.limit),
        output=Codec(definition.output_model, limit=definition.limit),
    )


def begin(
    call: Call, load: Load, publish: Publish, is_stopped: Callable[[], bool]
) -> tuple[Runnable, CurrentTask]:
    """Let `current_task()` be this one, in the current context."""
    task = CurrentTask(call, publish, is_stopped)
    enter_task(task)
    return load(call.definition), task


def run_in_thread(
    call: Call, load: Load, publish: Publish, is_stopped: Callable[[], bool]
) -> Outcome:
    """Run the function, sync or async, to its end in this thread and the current context."""
    task: CurrentTask | None = None
    before = time.thread_time()
    try:
        runnable, task = begin(call, load, publish, is_stopped)
        arguments = runnable.arguments_for(call, task)
        publish(Started(call.serial))
        result = runnable.function(*arguments)
        if inspect.iscoroutine(result):
            from lilota_async.execution.coroutines import run_coroutine

            result = run_coroutine(result)
        outcome = succeeded(call, runnable, result, task)
    except BaseException as error:
        outcome = failed(call, error, task)
    return msgspec.structs.replace(outcome, cpu_seconds=time.thread_time() - before)


def succeeded(call: Call, runnable: Runnable, result: Any, task: CurrentTask) -> Outcome:
    """The outcome of a function that returned: its output, or why that is none."""
    try:
        output = raw(runnable.output.encode(result))
    except Misfit as misfit:
        where = "" if misfit.field == "$" else f"at {misfit.field}: "
        failure = {
            "kind": "invalid_output",
            "type": "InvalidOutput",
            "message": f"{where}{misfit.reason}",
            "traceback": "",
        }
        return Outcome(call.serial, failure=failure, progress=task.progress.percentage)
    except BaseException as error:  # as_dict() and the like are the task's own code
        return failed(call, error, task, kind="invalid_output")
    return Outcome(call.serial, output=output, progress=task.progress.percentage)


def failed(
    call: Call, error: BaseException, task: CurrentTask | None, *, kind: str = "error"
) -> Outcome:
    """The outcome of a function that raised, whatever it raised."""
    _leave_out_own_frames(error)
    return Outcome(
        call.serial,
        failure=describe(error, kind=kind),
        lineage=tuple(qualified_name(cls) for cls in type(error).__mro__),
        interrupted=isinstance(error, Interruption),
        progress=None if task is None else task.progress.percentage,
        retry_delay=error.delay if isinstance(error, RetryLater) else None,
    )


def _leave_out_own_frames(error: BaseException) -> None:
    frames = error.__traceback__
    while frames is not None and _is_machinery(frames.tb_frame.f_globals.get("__name__", "")):
        frames = frames.tb_next
    # A failure of ours, such as an input that does not fit, keeps what there is.
    error.__traceback__ = frames or error.__traceback__


def _is_machinery(module: str) -> bool:
    return module.partition(".")[0] in ("lilota_async", "anyio", "asyncio")


def qualified_name(cls: type) -> str:
    """`module.qualname`, the same in the application and in its task processes."""
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}.{cls.__qualname__}"
