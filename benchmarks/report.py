"""The table, and the same as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.settings import Figure, Settings

PACKAGES = ("lilota-async", "sqlalchemy", "asyncpg", "aiosqlite", "msgspec")
_MET = {True: "yes", False: "NO", None: "-"}


def print_table(figures: Sequence[Figure]) -> None:
    """One line for each figure: what was aimed at, what came of it."""
    print(f"{'row':5} {'what':62} {'aim':45} {'figure':>18} {'against':>12} {'ratio':>7}  met")
    for each in figures:
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        against = "" if each.against is None else number(each.against)
        value = "" if each.value is None else f"{number(each.value)} {each.unit}"
        line = f"{each.row:5} {each.what:62} {each.aim:45} {value:>18} {against:>12} {ratio:>7}"
        print(f"{line}  {_MET[each.met]}")
        if each.note:
            print(f"{'':5} {each.note}")


def number(value: float) -> str:
    """With as many digits as one looks at."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def describe_run(settings: Settings, database: dict[str, str]) -> dict[str, Any]:
    """When, where and with what the figures were found."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "scale": settings.scale,
        "repeats": settings.repeats,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "cpu": _cpu_name(),
        "load_before": os.getloadavg()[0],
        "fdatasync_ms": _fdatasync_ms(),
        "postgresql": database,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def write_json(path: Path, run: dict[str, Any], figures: Sequence[Figure]) -> dict[str, Any]:
    """Write all that is known, and return it."""
    report = {**run, "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def _fdatasync_ms() -> float | None:
    """What one commit cannot do without."""
    if not hasattr(os, "fdatasync"):
        return None
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            file.write(b"x" * 8192)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[len(times) // 2]
