"""How large the measurements are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.servers import Server

CALLERS = 100
IN_FLIGHT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`scale` multiplies every count; each side of a ratio is measured `repeats` times."""

    scale: float = 1.0
    repeats: int = 3

    def count(self, full: int, least: int = 1) -> int:
        """How many of something that is `full` in a run that counts."""
        return max(least, round(full * self.scale))

    @classmethod
    def of(cls, *, quick: bool) -> Settings:
        """BENCH_SCALE in the environment, or a twentieth for a look at whether it runs."""
        scale = float(os.environ.get("BENCH_SCALE", "0.05" if quick else "1"))
        return cls(scale=scale, repeats=1 if quick else 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a row is measured with; files go into `directory`."""

    settings: Settings
    server: Server
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table.

    `value` and `against` are medians of `samples`, in `unit`; `ratio` is the first by the
    second. `met` is None for what has no aim, or could not be measured here.
    """

    row: str
    what: str
    aim: str
    value: float | None = None
    against: float | None = None
    unit: str = ""
    ratio: float | None = None
    met: bool | None = None
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
