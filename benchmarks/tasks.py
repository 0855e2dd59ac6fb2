"""The tasks that are measured, and the same work without lilota."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lilota_async import Lilota

CELLS = 2


@dataclass
class AddInput:
    a: int
    b: int


@dataclass
class AddOutput:
    sum: int


@dataclass
class SpinInput:
    rounds: int


def add(data: AddInput) -> AddOutput:
    """The no-op of the table."""
    return AddOutput(sum=data.a + data.b)


def spin(data: SpinInput) -> int:
    """Pure Python for as long as `rounds` take."""
    return bare_spin(data.rounds)


def echo(data: str) -> str:
    """Give back what was given."""
    return data


def bare_add(a: int, b: int) -> int:
    return a + b


def bare_spin(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number & 1
    return total


def create_lilota(url: str, processes: int = CELLS, **options: Any) -> Lilota:
    """A Lilota with its default settings that knows the tasks of this module."""
    options = options if "engine" in options else {"db_url": url, **options}
    lilota = Lilota(number_of_processes=processes, **options)
    lilota.register("add")(add)
    lilota.register("spin")(spin)
    lilota.register("echo")(echo)
    return lilota
