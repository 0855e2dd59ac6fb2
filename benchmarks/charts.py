"""The charts: throughput, latency, scaling; drawn from what the JSON holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, OTHERS, LIMIT = "#2563a8", "#9aa5b1", "#d98c2b"
DOTS_PER_INCH = 130


def draw(report: dict[str, Any], folder: Path) -> None:
    """Write one PNG for each chart that the report has figures for."""
    import matplotlib as mpl

    mpl.use("Agg")
    figures = {figure["row"]: figure for figure in report["figures"]}
    if "1" in figures:
        _throughput(report, figures, folder / "throughput.png")
    if "6" in figures:
        _latency(report, figures, folder / "latency.png")
    if "13 a" in figures:
        _scaling(figures, folder / "scaling.png")


def _throughput(report: dict[str, Any], figures: dict[str, Any], path: Path) -> None:
    """Tasks per second, the lilota of each database first, then the peers and the limit."""
    bars = [("lilota-async, PostgreSQL", figures["1"]["value"], OURS)]
    bars.append(("lilota-async, schedule_many()", figures["1 b"]["value"], OURS))
    if "2" in figures:
        bars.append(("lilota-async, SQLite", figures["2"]["value"], OURS))
    for peer in report.get("peers", ()):
        for key, how in (("end_to_end", ""), ("end_to_end_bulk", ", bulk")):
            if peer.get(key):
                bars.append((f"{peer['name']} {peer['version']}{how}", peer[key], OTHERS))
    bars.append(("bare process pool, nothing recorded", figures["1"]["against"], LIMIT))
    names, values, colours = zip(*reversed(bars), strict=True)
    chart, axes = _axes(1, height=1.2 + 0.34 * len(bars))
    drawn = axes[0].barh(names, values, color=colours)
    axes[0].bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
    axes[0].margins(x=0.12)
    axes[0].set_title("No-op tasks per second, end to end (2 workers)")
    _save(chart, path)


def _latency(report: dict[str, Any], figures: dict[str, Any], path: Path) -> None:
    """How many of the lone tasks were done after so many milliseconds."""
    chart, axes = _axes(1)
    curves = [(name, samples) for name, samples in figures["6"]["samples"].items()]
    curves += [
        (f"{peer['name']} {peer['version']}", peer["lone_ms"])
        for peer in report.get("peers", ())
        if peer.get("lone_ms")
    ]
    for name, samples in curves:
        ordered = sorted(samples)
        shares = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
        axes[0].plot(ordered, shares, label=name)
    axes[0].set_xscale("log")
    axes[0].set(xlabel="ms from scheduling to the result", ylabel="% of lone tasks")
    axes[0].set_title("Latency of a lone task, PostgreSQL")
    axes[0].legend(fontsize=8)
    _save(chart, path)


def _scaling(figures: dict[str, Any], path: Path) -> None:
    """Rates against callers, payload, cells and finished rows."""
    chart, axes = _axes(4)
    for part, row, label in (
        (axes[0], "13 a", "callers"),
        (axes[1], "13 b", "bytes of payload"),
        (axes[2], "13 c", "cells"),
    ):
        samples = figures[row]["samples"]
        part.plot(samples["steps"], samples["rates"], marker="o", color=OURS)
        part.set_xscale("log")
        part.set_xticks(samples["steps"], [f"{step:,.0f}" for step in samples["steps"]])
        part.minorticks_off()
        part.set(xlabel=label, ylabel=figures[row]["unit"])
        part.set_ylim(bottom=0)
    if "8" in figures:
        full = figures["8"]
        drawn = axes[3].bar(
            ["empty table", "full table"], [full["against"], full["value"]], color=[OTHERS, OURS]
        )
        axes[3].bar_label(drawn, fmt="{:,.0f}", fontsize=8)
        axes[3].set(xlabel=full["what"], ylabel="tasks/s")
    _save(chart, path)


def _axes(count: int, height: float = 4.0) -> tuple[Any, Any]:
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(
        1, count, figsize=(max(8, 3.6 * count), height), squeeze=False, layout="constrained"
    )
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
    return chart, axes[0]


def _save(chart: Any, path: Path) -> None:
    from matplotlib import pyplot

    chart.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(chart)
