"""The task of the service. It does not import the web framework: task processes import this."""

from __future__ import annotations

import csv
import io
import os
import time
from collections import defaultdict
from dataclasses import dataclass

from lilota_async import Lilota, TaskProgress

lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.25"))


@dataclass
class ReportInput:
    title: str
    table: str  # CSV with the columns month, region and amount


@dataclass
class Report:
    rows: int
    total: float
    png: bytes  # base64 in the row, which is JSON


# What people upload is shown on no page, as is what is made of it.
@lilota.register("make_report", timeout=120, max_memory="1GiB", redact=["table", "png"])
def make_report(data: ReportInput, progress: TaskProgress) -> Report:
    print(f"Reading “{data.title}”")
    rows = list(csv.DictReader(io.StringIO(data.table)))
    months = sorted({row["month"] for row in rows})
    if not months:
        raise ValueError("the table has no rows")
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for number, month in enumerate(months, start=1):
        amounts = [(row["region"], float(row["amount"])) for row in rows if row["month"] == month]
        for region, amount in amounts:
            sums[region][month] += amount
        time.sleep(STEP_SECONDS)  # stands for more work; the event loop does not wait for it
        print(f"{month}: {len(amounts)} rows, {sum(amount for _, amount in amounts):,.0f} in all")
        progress.set(90 * number / len(months))
    print("Drawing the chart")
    png = draw(data.title, months, sums)
    total = sum(amount for region in sums.values() for amount in region.values())
    return Report(rows=len(rows), total=round(total, 2), png=png)


def draw(title: str, months: list[str], sums: dict[str, dict[str, float]]) -> bytes:
    """A stacked bar for each month."""
    from matplotlib.figure import Figure  # only where a chart is drawn

    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    below = [0.0] * len(months)
    for region, amounts in sorted(sums.items()):
        heights = [amounts.get(month, 0.0) for month in months]
        axes.bar(months, heights, bottom=below, label=region)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_title(title)
    axes.tick_params(axis="x", rotation=45)
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
