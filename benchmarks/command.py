"""What `python -m benchmarks` does: rows in order, then the table, the JSON and the charts."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.peers.compare import figures_about, measure_peers
from benchmarks.peers.environments import ENVIRONMENTS
from benchmarks.report import describe_run, print_table, write_json
from benchmarks.rows import computing, enqueue, footprint, latency, scaling, throughput, volume
from benchmarks.servers import running_server
from benchmarks.settings import Context, Figure, Settings

RESULTS = Path(__file__).parent / "results"
GROUPS = (throughput, enqueue, latency, computing, volume, footprint, scaling)
Row = Callable[[Context], Awaitable[list[Figure]]]


def all_rows() -> dict[str, Row]:
    """Every row by its number, in the order of the table."""
    rows: dict[str, Row] = {name: row for group in GROUPS for name, row in group.ROWS.items()}
    return dict(sorted(rows.items(), key=lambda item: int(item[0])))


def main() -> int:
    """0 when all that has an aim has met it."""
    rows = all_rows()
    arguments = _parse(list(rows))
    chosen = {name: row for name, row in rows.items() if name in arguments.rows}
    settings = Settings.of(quick=arguments.quick)
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="lilota-bench-") as directory,
        running_server(Path(directory)) as server,
    ):
        run = describe_run(settings, asyncio.run(server.settings()))
        context = Context(settings=settings, server=server, directory=Path(directory))
        figures = _measure(context, chosen)
        run["peers"] = measure_peers(context, arguments.peers, arguments.output / "peers")
    figures += figures_about(run["peers"])
    print_table(figures)
    report = write_json(arguments.output / "figures.json", run, figures)
    print(f"\n{time.monotonic() - started:.0f} s; written to {arguments.output}")
    if not arguments.no_charts:
        from benchmarks.charts import draw

        draw(report, arguments.output)
    return int(any(figure.met is False for figure in figures))


def _measure(context: Context, rows: dict[str, Row]) -> list[Figure]:
    figures: list[Figure] = []
    for name, row in rows.items():
        started = time.monotonic()
        figures += asyncio.run(_run(row, context))
        print(f"row {name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return figures


async def _run(row: Row, context: Context) -> list[Figure]:
    return await row(context)


def _parse(rows: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rows",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(rows),
        help=f"numbers with commas between, of {', '.join(rows)}; all by default",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works")
    parser.add_argument(
        "--peers",
        nargs="?",
        type=lambda text: text.split(","),
        const=list(ENVIRONMENTS),
        default=[],
        help=f"measure other systems too, all of {', '.join(ENVIRONMENTS)}, or those named; "
        "each is installed from PyPI into a virtual environment of its own",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--no-charts", action="store_true", help="do without matplotlib")
    arguments = parser.parse_args()
    unknown = {*arguments.rows, *arguments.peers} - {*rows, *ENVIRONMENTS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    return arguments
