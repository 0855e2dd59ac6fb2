"""register(): names, models, what is refused, and that it does nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from lilota_async import Lilota, Retry, TaskProgress
from lilota_async.errors import AlreadyRegistered, ConfigurationError, UnknownTask
from tests.api.support import DEADLINE, MakeLilota, row
from tests.api.tasks import AddInput, AddOutput, add, echo, nothing, set_progress

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Service:
    def method(self, value: int) -> int:
        return value

    @staticmethod
    def static(value: int) -> int:
        return 2 * value


def two_inputs(first: int, second: int) -> int:
    return first + second


def keyword_only(*, value: int) -> int:
    return value


def no_progress_parameter() -> None:
    pass


def unreadable(data: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


def named_later(data: Later) -> int:
    return data.value


class Later:
    def __init__(self, value: int) -> None:
        self.value = value

    def as_dict(self) -> dict[str, int]:
        return {"value": self.value}


def test_constructor_and_register_have_no_side_effects(tmp_path: Path) -> None:
    """A Lilota whose database cannot exist can be made, and given tasks."""
    lilota = Lilota(f"sqlite:///{tmp_path / 'lilota.db'}")
    lilota.register(add)
    assert list(tmp_path.iterdir()) == []
    assert not lilota.is_running


def test_register_returns_the_function() -> None:
    """With and without parentheses, the function itself comes back, unchanged."""
    lilota = Lilota()
    assert lilota.register(add) is add
    assert lilota.register("again")(add) is add
    assert lilota.register()(nothing) is nothing
    assert add(AddInput(1, 2)) == AddOutput(3)
    assert lilota.registered_tasks == ("add", "again", "nothing")


def test_a_taken_name_is_refused() -> None:
    """A name is given once, and the first registration stays."""
    lilota = Lilota()
    lilota.register("add")(add)
    with pytest.raises(AlreadyRegistered, match="'add' is already registered"):
        lilota.register("add")(echo)
    assert lilota.registered_tasks == ("add",)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0b", "\ud800"])
def test_names_that_no_database_takes(name: str) -> None:
    """A name that is empty, too long or not printable is refused at registration."""
    with pytest.raises(ConfigurationError, match=r"name"):
        Lilota().register(name)(add)


@pytest.mark.parametrize("name", ["x" * 200, "größe: 漢字 🙂", "a b/c'd\";--", "Add"])
async def test_odd_names_work(make_lilota: MakeLilota, name: str) -> None:
    """Any other name works as it is."""
    lilota = make_lilota()
    lilota.register(name)(nothing)
    async with lilota:
        task = await lilota.wait(await lilota.schedule(name), timeout=DEADLINE)
    assert (task.name, task.status) == (name, "completed")


def test_what_a_task_process_cannot_import_is_refused() -> None:
    """Lambdas and nested functions are refused, with the remedy."""

    def nested() -> None:
        pass

    for function in (nested, lambda: None):
        with pytest.raises(ConfigurationError, match="at the top level of a module"):
            Lilota().register("task")(function)


def test_a_bound_method_is_refused() -> None:
    """A method of an object would come without its object."""
    with pytest.raises(ConfigurationError, match="task"):
        Lilota().register("task")(Service().method)


async def test_a_static_method_works(make_lilota: MakeLilota) -> None:
    """What can be imported by its qualified name is a task."""
    lilota = make_lilota(Service.static)
    async with lilota:
        assert await lilota.result(await lilota.schedule(Service.static, 4), DEADLINE) == 8


@pytest.mark.parametrize("function", [two_inputs, keyword_only])
def test_signatures_that_cannot_be_called(function: Any) -> None:
    """A task takes one input by position; anything else is refused with the remedy."""
    with pytest.raises(ConfigurationError, match="takes one input"):
        Lilota().register(function)


def test_task_progress_needs_a_parameter() -> None:
    """A function that asks for progress and has no place for it is refused."""
    with pytest.raises(ConfigurationError, match="progress: TaskProgress"):
        Lilota().register(task_progress=TaskProgress)(no_progress_parameter)


def test_models_must_be_importable() -> None:
    """A model of a function's inside is refused, with the remedy."""

    class Local:
        pass

    with pytest.raises(ConfigurationError, match="at the top level of a module"):
        Lilota().register("task", input_model=Local)(echo)


async def test_annotation_that_cannot_be_read(make_lilota: MakeLilota) -> None:
    """start() refuses a task whose annotation names nothing, and stays stopped."""
    lilota = make_lilota(unreadable)
    with pytest.raises(ConfigurationError, match="'unreadable' cannot be read"):
        await lilota.start()
    assert not lilota.is_running


async def test_annotation_of_a_class_further_down(make_lilota: MakeLilota) -> None:
    """An annotation may name a class that is defined after the function."""
    lilota = make_lilota(named_later)
    async with lilota:
        assert await lilota.result(await lilota.schedule(named_later, Later(3)), DEADLINE) == 3


async def test_models_of_register_win_over_annotations(make_lilota: MakeLilota) -> None:
    """input_model= and output_model= are what counts when they are given."""
    lilota = make_lilota()
    lilota.register("echo", input_model=AddInput, output_model=AddOutput)(echo)
    async with lilota:
        task_id = await lilota.schedule("echo", {"a": 1, "b": 2})
        task = await lilota.wait(task_id, timeout=DEADLINE)
    assert task.status == "failed"  # AddInput came back, and AddOutput was promised
    assert (task.exception or {})["kind"] == "invalid_output"


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": "5"},
        {"executor": "fiber"},
        {"retry": 3},
        {"priority": "high"},
        {"priority": True},
        {"timeout": 10**400},
        {"retention": timedelta.max},
        {"every": timedelta.max},
        {"input_model": 5},
        {"input_model": AddInput(1, 2)},
        {"output_model": "AddOutput"},
        {"task_progress": False},
        {"max_pending": 2**31},
        {"max_concurrency": 2**63},
        {"max_interruptions": 10**400},
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any]) -> None:
    """A setting that cannot work is refused at once, by its name."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Lilota().register("task", **options)(add)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": True},
        {"delay": -1},
        {"delay": timedelta.max},
        {"max_delay": 1e308},
        {"max_delay": 10**400},
        {"backoff": 0.5},
        {"backoff": "2"},
        {"backoff": None},
        {"backoff": True},
        {"jitter": "no"},
        {"on": (3,)},
    ],
)
def test_retries_that_cannot_be_meant(options: dict[str, Any]) -> None:
    """A retry policy checks its own values."""
    with pytest.raises(ConfigurationError, match="Retry"):
        Retry(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"number_of_processes": -1},
        {"number_of_processes": 1.5},
        {"number_of_threads": "8"},
        {"lease": 0},
        {"grace": -1},
        {"start_method": "fork"},
        {"number_of_processes": 10**6},
        {"number_of_threads": 2**31},
        {"number_of_coroutines": 10**400},
        {"set_progress_manually": "no"},
        {"migrate": 0},
        {"notify": None},
        {"lease": timedelta.max},
        {"grace": 10**400},
        {"retention": 1e308},
        {"recycle_after": 10**400},
        {"max_pending": 2**63},
    ],
)
def test_constructor_settings_that_cannot_work(options: dict[str, Any]) -> None:
    """The constructor refuses what cannot work, by its name."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Lilota(**options)


@pytest.mark.parametrize("engine", [5, "sqlite:///lilota.db", create_engine("sqlite://")], ids=str)
async def test_what_is_no_engine(engine: Any) -> None:
    """An engine that does not belong to asyncio, or none, is refused with what to give instead."""
    lilota = Lilota(engine=engine)
    with pytest.raises(ConfigurationError, match="engine= takes an AsyncEngine"):
        await lilota.start()
    assert not lilota.is_running


async def test_unknown_names_and_functions(make_lilota: MakeLilota) -> None:
    """An unknown task is refused with the names that are known, and nothing is written."""
    lilota = make_lilota(add, nothing)
    async with lilota:
        unknown: Any
        call: Any
        for unknown in ("sub", echo, [add], {"add": 1}):
            for call in (
                lilota.schedule(unknown, 1),
                lilota.schedule_many(unknown, [1]),
            ):
                with pytest.raises(UnknownTask, match=r"\(registered: add, nothing\)"):
                    await call
        for unknown in ([add], {"add": 1}):
            for call in (lilota.pause(unknown), lilota.resume(unknown)):
                with pytest.raises(UnknownTask):
                    await call
            with pytest.raises(ConfigurationError, match="name must be a text"):
                lilota.settings_of(unknown)
        assert await lilota.get_all_tasks() == []


async def test_registration_after_the_start(make_lilota: MakeLilota) -> None:
    """A task that is registered while lilota runs can be scheduled at once."""
    lilota = make_lilota(nothing)
    async with lilota:
        lilota.register(set_progress)
        task_id = await lilota.schedule(set_progress, 12.5)
        assert await lilota.result(task_id, DEADLINE) == 12
    assert (await row(lilota, task_id)).progress_percentage == 100


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on_interrupt": "Requeue"}, "on_interrupt"),
        ({"public": "no"}, "public must be True or False"),
        ({"max_memory": "1MiB", "executor": "thread"}, "max_memory= limits a process"),
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, Any], reason: str) -> None:
    """They are refused, and nothing is registered."""
    lilota = Lilota()
    with pytest.raises(ConfigurationError, match=reason):
        lilota.register(**options)(nothing)
    assert lilota.registered_tasks == ()
