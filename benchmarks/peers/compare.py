"""Measure the peers, each next to lilota, and add what is said about them to the table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import compare
from benchmarks.peers.environments import prepare
from benchmarks.rows.latency import lone_tasks
from benchmarks.rows.throughput import BULK_TASKS, TASKS, end_to_end
from benchmarks.settings import Context, Figure

LIMIT_SECONDS = 300.0
FIGURES = ("enqueue_ms", "enqueue_rate", "bulk_rate", "end_to_end", "end_to_end_bulk")


def measure_peers(context: Context, names: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """What was found for each peer, and for lilota just before it; failures are told."""
    found = []
    for name in names:
        try:
            python = prepare(name, folder.absolute())
            ours = asyncio.run(_ours(context))
            peer = asyncio.run(_theirs(context, python, name))
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
            continue
        found.append({**peer, "lilota": ours})
        figures = [f"{key} {peer[key]:,.4g}" for key in FIGURES if peer[key] is not None]
        lone = statistics.median(peer["lone_ms"])
        print(f"{peer['name']} {peer['version']}: {', '.join(figures)}, lone {lone:.3g} ms")
    return found


def figures_about(peers: Sequence[dict[str, Any]]) -> list[Figure]:
    """Against the best of them, and against pgqueuer in bulk."""
    if not peers:
        return []
    best = max(peers, key=lambda peer: float(peer["end_to_end"]))
    fastest = min(peers, key=lambda peer: statistics.median(peer["lone_ms"]))
    figures = [
        compare(
            "1 p",
            f"row 1 against the best peer, {best['name']} {best['version']}",
            ">= 6 x its figure",
            [_ours_of(peers, "end_to_end"), [best["end_to_end"]]],
            unit="tasks/s",
            at_least=6.0,
        ),
        compare(
            "6 p",
            f"lone task against the fastest peer, {fastest['name']} {fastest['version']}",
            "faster",
            [_ours_of(peers, "lone_ms"), fastest["lone_ms"]],
            unit="ms",
            at_most=1.0,
        ),
    ]
    in_bulk = [peer for peer in peers if peer["name"] == "pgqueuer"]
    if in_bulk:
        figures.append(
            compare(
                "1 bp",
                "row 1 b against pgqueuer, enqueued in bulk",
                ">= 1.0 x its figure",
                [_ours_of(peers, "end_to_end_bulk"), [in_bulk[0]["end_to_end_bulk"]]],
                unit="tasks/s",
                at_least=1.0,
            )
        )
    return figures


async def _ours(context: Context) -> dict[str, float]:
    settings = context.settings
    async with context.server.database() as url:
        async with end_to_end(url) as measured:
            rate = await measured.rate(settings.count(TASKS, least=500))
            bulk_rate = await measured.bulk_rate(settings.count(BULK_TASKS, least=1000))
        lone = await lone_tasks(url, settings.count(100, least=20))
    return {
        "end_to_end": rate,
        "end_to_end_bulk": bulk_rate,
        "lone_ms": 1000 * statistics.median(lone),
    }


async def _theirs(context: Context, python: Path, name: str) -> dict[str, Any]:
    async with context.server.database() as url:
        command = [str(python), "-m", "benchmarks.peers.run", name, "measure", url]
        command.append(str(context.settings.scale))
        return await asyncio.to_thread(_run, command, context.directory)


def _run(command: list[str], directory: Path) -> dict[str, Any]:
    """Run it in a session of its own, so that its workers end with it in any case."""
    process = subprocess.Popen(
        command,
        cwd=directory,  # some write a log there
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise RuntimeError(f"it ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def _ours_of(peers: Sequence[dict[str, Any]], figure: str) -> list[float]:
    return [peer["lilota"][figure] for peer in peers]
