"""The models and task functions of the ancestor's tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lilota_async.models import TaskProgress


class AddInput:
    def __init__(self, a: int, b: int) -> None:
        self.a = a
        self.b = b

    def as_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b}


class AddOutput:
    def __init__(self, sum: int) -> None:
        self.sum = sum

    def as_dict(self) -> dict[str, Any]:
        return {"sum": self.sum}


@dataclass
class AddInputDataclass:
    a: int
    b: int


@dataclass
class AddOutputDataclass:
    sum: int


class AddInputInvalid:
    def __init__(self, a: int, b: int) -> None:
        self.a = a
        self.b = b


class AddOutputInvalid:
    def __init__(self, sum: int) -> None:
        self.sum = sum


def add(data: AddInput) -> AddOutput:
    return AddOutput(sum=data.a + data.b)


def add_with_exception(data: AddInput) -> AddOutput:
    raise Exception("Error")


def add_with_dataclasses(data: AddInputDataclass) -> AddOutputDataclass:
    return AddOutputDataclass(sum=data.a + data.b)


def add_with_dict(data: dict[str, int]) -> dict[str, int]:
    return {"sum": data["a"] + data["b"]}


def add_with_taskprogress(data: AddInput, task_progress: TaskProgress):  # type: ignore[no-untyped-def]
    task_progress.set(50)


def hello_world():  # type: ignore[no-untyped-def]
    print("Hello World")


def only_input_model(data: AddInput) -> None:
    print("Hello World")


def only_output_model() -> AddOutput:
    return AddOutput(sum=3)


def only_taskprogress(task_progress: TaskProgress) -> None:
    task_progress.set(50)


EXTERNAL_STATE = {"counter": 0}


def task_mutates_external_state() -> dict[str, int]:
    EXTERNAL_STATE["counter"] += 1
    return EXTERNAL_STATE
