"""What register() learns about a function: its name, its models, its settings."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import sys
import typing
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from lilota_async.codec import Codec, Misfit
from lilota_async.errors import (
    AlreadyRegistered,
    ConfigurationError,
    InvalidInput,
    UnknownTask,
)
from lilota_async.models.rates import Rate
from lilota_async.models.values import NAME_LENGTH, Retry, TaskProgress, TaskStatus
from lilota_async.options import ExecutorKind, OnInterrupt
from lilota_async.ticks import Periodic

NO_RETRY = Retry(max_attempts=1)
Argument = Literal["input", "progress"]
TaskFunction = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The part of a registration that a task process needs; pickled, once, by reference.

    `function` is `module:qualname`. `arguments` is what the function is called with, in order.
    """

    function: str
    input_model: Any
    output_model: Any
    arguments: tuple[Argument, ...]
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a task is run, as register() was told; durations in seconds."""

    executor: ExecutorKind = "process"
    priority: int = 0
    timeout_seconds: float | None = None
    retry: Retry = NO_RETRY
    max_memory_bytes: int | None = None
    on_interrupt: OnInterrupt = "requeue"
    max_interruptions: int = 3
    periodic: Periodic | None = None
    max_pending: int | None = None
    max_concurrency: int | None = None
    rate: Rate | None = None
    retention: Mapping[TaskStatus, float | None] = field(default_factory=dict)
    public: bool = False
    redact: bool | tuple[str, ...] = False

    def __post_init__(self) -> None:
        if not isinstance(self.retry, Retry):
            raise ConfigurationError(
                f"retry must be a Retry, such as Retry(max_attempts=3), not {self.retry!r}"
            )


class RegisteredTask:
    """A task function under its name. Models are read from its annotations when first needed,

    since an annotation may name a class that is defined further down in the module.
    """

    def __init__(
        self,
        name: str,
        function: TaskFunction,
        *,
        input_model: Any,
        output_model: Any,
        task_progress: type[TaskProgress] | None,
        settings: Settings,
        limit: int,
    ) -> None:
        self.name = name
        self.function = function
        self.settings = settings
        self._input_model = input_model
        self._output_model = output_model
        self._wants_progress = task_progress is not None
        self._limit = limit
        self._resolved: Resolved | None = None

    def resolve(self) -> Resolved:
        """The models, the codecs and the definition; ConfigurationError where they cannot be."""
        if self._resolved is None:
            signature = read_signature(
                self.name,
                self.function,
                wants_progress=self._wants_progress,
                has_input_model=self._input_model is not None,
            )
            if self.settings.periodic is not None and signature.requires_input:
                raise ConfigurationError(
                    f"Task {self.name!r} is periodic and takes an input, which nobody gives it; "
                    "give the parameter a default, or leave it out"
                )
            definition = Definition(
                function=reference_of(self.name, self.function),
                input_model=self._input_model or signature.input_model,
                output_model=self._output_model or signature.output_model,
                arguments=signature.arguments,
                limit=self._limit,
            )
            self._resolved = Resolved(
                definition=definition,
                pickled=pickle_definition(self.name, definition),
                input=Codec(definition.input_model, limit=self._limit),
                output=Codec(definition.output_model, limit=self._limit),
                requires_input=signature.requires_input,
            )
        return self._resolved

    def encode_input(self, value: Any) -> str | None:
        """The input as JSON that fits the task; raises InvalidInput."""
        resolved = self.resolve()
        if value is None and not resolved.requires_input:
            return None
        if not resolved.takes_input:
            raise InvalidInput(self.name, "$", "the task takes no input; leave it out")
        try:
            return resolved.input.encode(value).decode()
        except Misfit as misfit:
            reason = misfit.reason
            if value is None:
                reason = f"the task needs an input, and none was given ({reason})"
            raise InvalidInput(self.name, misfit.field, reason, others=misfit.others) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A registration whose annotations have been read."""

    definition: Definition
    pickled: bytes
    input: Codec
    output: Codec
    requires_input: bool

    @property
    def takes_input(self) -> bool:
        return "input" in self.definition.arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSignature:
    arguments: tuple[Argument, ...]
    input_model: Any
    output_model: Any
    requires_input: bool


class Registry(Mapping[str, RegisteredTask]):
    """The registered tasks by name."""

    def __init__(self) -> None:
        self._tasks: dict[str, RegisteredTask] = {}
        self._names: dict[TaskFunction, str] = {}

    def add(self, task: RegisteredTask) -> None:
        """Register `task`; what can be checked already is checked now."""
        check_name(task.name)
        if task.name in self._tasks:
            raise AlreadyRegistered(task.name)
        reference_of(task.name, task.function)
        # An annotation may name what the module defines later: start() looks again.
        with contextlib.suppress(NameError):
            task.resolve()
        self._tasks[task.name] = task
        self._names.setdefault(task.function, task.name)

    def items(self) -> ItemsView[str, RegisteredTask]:
        """Those of the dict itself, in half the time: each claim looks through them."""
        return self._tasks.items()

    def find(self, task: str | TaskFunction) -> RegisteredTask:
        """The task of this name or of this function; raises UnknownTask."""
        try:
            name = task if isinstance(task, str) else self._names.get(task, "")
        except TypeError:  # it has no hash
            name = ""
        found = self._tasks.get(name)
        if found is None:
            called = task if isinstance(task, str) else getattr(task, "__name__", f"{task!r:.250}")
            raise UnknownTask(called, list(self._tasks))
        return found

    def resolve(self) -> None:
        """Read every annotation that could not be read before; raises ConfigurationError."""
        for task in self._tasks.values():
            try:
                task.resolve()
            except NameError as error:
                raise ConfigurationError(
                    f"An annotation of task {task.name!r} cannot be read ({error}); import the "
                    "name at run time, or give register() input_model= and output_model="
                ) from error

    def __getitem__(self, name: str) -> RegisteredTask:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


def check_name(name: object) -> None:
    """Raise ConfigurationError unless `name` can be a task's name on every database."""
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"A task's name must be a text that is not empty, not {name!r:.250}"
        )
    if len(name) > NAME_LENGTH:
        raise ConfigurationError(
            f"The task name {name[:40]!r}... has {len(name)} characters; {NAME_LENGTH} is the most"
        )
    if not name.isprintable():
        raise ConfigurationError(
            f"The task name {name!r} holds characters that cannot be printed; leave them out"
        )


def reference_of(name: str, function: TaskFunction) -> str:
    """`module:qualname`, by which a task process finds the function."""
    if not callable(function):
        raise ConfigurationError(f"Task {name!r} is no function but {function!r}")
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not module or not qualname or "<" in qualname or inspect.ismethod(function):
        raise ConfigurationError(
            f"Task {name!r} is {qualname or function!r}, which a task process cannot import; "
            "define it with 'def' at the top level of a module"
        )
    if module == "__main__" and not _main_can_be_imported():
        raise ConfigurationError(
            f"Task {name!r} is defined in an interactive session or on standard input, which a "
            "task process cannot import; put the function into a file"
        )
    # A task process imports the main script under a name of its own, and finds it as __main__.
    return f"{'__main__' if module == '__mp_main__' else module}:{qualname}"


def _main_can_be_imported() -> bool:
    main = sys.modules["__main__"]
    return bool(getattr(main, "__file__", None) or getattr(main, "__spec__", None))


def pickle_definition(name: str, definition: Definition) -> bytes:
    """The definition as bytes; models are pickled by reference, so they must be importable."""
    try:
        return pickle.dumps(definition)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"A model of task {name!r} cannot be imported by a task process ({error}); "
            "define it at the top level of a module"
        ) from error


def read_signature(
    name: str, function: TaskFunction, *, wants_progress: bool, has_input_model: bool
) -> TaskSignature:
    """What the function takes and returns; NameError where an annotation cannot be read yet."""
    if not inspect.isroutine(function):  # a class or a callable object: no annotations are read
        arguments: tuple[Argument, ...] = ("input", "progress") if wants_progress else ("input",)
        return TaskSignature(
            arguments=arguments, input_model=None, output_model=None, requires_input=False
        )
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    progress = _find_progress(name, parameters, hints, wants_progress, has_input_model)
    inputs = [parameter for parameter in parameters if parameter is not progress]
    _check_parameters(name, parameters, inputs)
    used = [parameter for parameter in parameters if parameter in (progress, *inputs[:1])]
    return TaskSignature(
        arguments=tuple("progress" if p is progress else "input" for p in used),
        input_model=_declared(hints, inputs[0].name) if inputs else None,
        output_model=_declared(hints, "return"),
        requires_input=bool(inputs) and inputs[0].default is inspect.Parameter.empty,
    )


def _find_progress(
    name: str,
    parameters: list[inspect.Parameter],
    hints: dict[str, Any],
    wants_progress: bool,
    has_input_model: bool,
) -> inspect.Parameter | None:
    annotated = [p for p in parameters if hints.get(p.name) is TaskProgress]
    if annotated:
        return annotated[0]
    if not wants_progress:
        return None
    # As in the sync ancestor, the progress follows the input where both are given.
    free = parameters[1:] if has_input_model else parameters
    if not free:
        raise ConfigurationError(
            f"Task {name!r} was registered with task_progress, and its function takes no such "
            "parameter; add 'progress: TaskProgress' to it"
        )
    return free[-1]


def _check_parameters(
    name: str, parameters: list[inspect.Parameter], inputs: list[inspect.Parameter]
) -> None:
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    required = [p for p in inputs[1:] if p.default is p.empty]
    if keywords or required:
        listed = ", ".join(p.name for p in inputs)
        raise ConfigurationError(
            f"Task {name!r} takes {listed}; a task takes one input, by position: put the values "
            "into one dataclass or pydantic model"
        )


def _declared(hints: dict[str, Any], name: str) -> Any:
    declared = hints.get(name)
    # `-> None` needs no model, and a function that returns something all the same may.
    return None if declared in (type(None), Any) else declared


def encode_tags(tags: Iterable[str] | None) -> str | None:
    """The tags as JSON, None without any; raises ConfigurationError."""
    listed = checked_tags(tags)
    return msgspec.json.encode(listed).decode() if listed else None


def checked_tags(tags: Iterable[str] | None) -> tuple[str, ...]:
    """The tags, if they are some; ConfigurationError otherwise."""
    if isinstance(tags, str):
        raise ConfigurationError(f"tags takes several texts, not one: tags=[{tags!r}]")
    if isinstance(tags, (bytes, dict)):
        raise ConfigurationError(f"tags takes several texts, not {tags!r:.250}")
    try:
        listed = () if tags is None else tuple(tags)
    except TypeError:
        raise ConfigurationError(f"tags takes several texts, not {tags!r}") from None
    for tag in listed:
        if not isinstance(tag, str) or not tag or not tag.isprintable() or len(tag) > NAME_LENGTH:
            raise ConfigurationError(
                f"The tag {tag!r} cannot be kept; a tag is a printable text of up to "
                f"{NAME_LENGTH} characters"
            )
    return listed
