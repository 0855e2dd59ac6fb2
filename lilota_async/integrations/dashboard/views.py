"""What the pages say, decided without a database: is it healthy, what fails, why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from lilota_async.integrations.dashboard.formatting import count, duration, first_line
from lilota_async.models.values import TaskStatus

if TYPE_CHECKING:
    from lilota_async.integrations.dashboard.snapshots import Overview
    from lilota_async.models.tables import Task
    from lilota_async.registry import Settings
    from lilota_async.storage.history import History

LONG_WAIT_SECONDS = 60.0
MANY_FAILED = 0.1
CHART_HEIGHT = 100
MOST_GROUPS = 8

Level = Literal["good", "warning", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that somebody should look at; `query` leads to the tasks it is about."""

    level: Level
    text: str
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failures of one task for one reason."""

    name: str
    kind: str
    message: str
    number: int
    latest: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One step of the chart: how many have ended in it, and where that is drawn."""

    x: int
    completed: int
    failed: int
    completed_top: float
    failed_top: float
    completed_height: float
    failed_height: float
    begin: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    bars: list[Bar]
    most: int
    completed: int
    failed: int
    begin: datetime
    end: datetime
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    name: str
    rhythm: str
    next: datetime


def findings(overview: Overview, hours: int, groups: Sequence[FailureGroup]) -> list[Finding]:
    """What is wrong, the worst first; empty when all is well."""
    stats = overview.stats
    found: list[Finding] = []
    live = [node for node in stats.nodes if node.is_live]
    if not any(node.slots for node in live):
        level: Level = "bad" if stats.pending or stats.running else "warning"
        found.append(Finding(level=level, text="No node that runs tasks is up."))
    for name in stats.unclaimable:
        waiting = count(stats.names[name].pending)
        found.append(
            Finding(
                level="bad",
                text=f"{waiting} of “{name}” wait, and no node that is up has registered it.",
                query={"name": name, "status": "pending"},
            )
        )
    for node in stats.nodes:
        if not node.is_live:
            silent = duration(node.seconds_since_seen)
            text = f"Node {node.host}, process {node.pid}, has been silent for {silent}."
            found.append(Finding(level="warning", text=text))
    if not overview.health.is_ready:
        found.append(_own_trouble(overview))
    found += _failing(overview.history, hours, groups)
    for each in stats.names.values():
        if each.paused and each.pending:
            text = f"“{each.name}” is paused, and {count(each.pending)} wait."
            query = {"name": each.name, "status": "pending"}
            found.append(Finding(level="warning", text=text, query=query))
            continue
        wait = each.oldest_pending_seconds or 0.0
        if wait > LONG_WAIT_SECONDS and each.name not in stats.unclaimable:
            text = f"{count(each.due)} of “{each.name}” are due, the oldest for {duration(wait)}."
            query = {"name": each.name, "status": "pending"}
            found.append(Finding(level="warning", text=text, query=query))
    return sorted(found, key=lambda finding: finding.level)  # bad comes before warning


def _own_trouble(overview: Overview) -> Finding:
    health = overview.health
    names = ("running", "database", "cells", "lease")
    if not health.running:
        return Finding(level="warning", text="The application that shows this page is not started.")
    missing = ", ".join(name for name in names if not getattr(health, name))
    return Finding(level="bad", text=f"This node cannot run tasks: {missing} not in order.")


def _failing(history: History, hours: int, groups: Sequence[FailureGroup]) -> list[Finding]:
    failed, completed = sum(history.failed), sum(history.completed)
    if not failed:
        return []
    share = failed / (failed + completed)
    span = "hour" if hours == 1 else f"{hours} hours"
    text = f"{count(failed)} of {count(failed + completed)} tasks that ended in the last {span}"
    text += " failed"
    if groups:
        worst = groups[0]
        most = "" if len(groups) == 1 else ", most of them"
        text += f"{most} “{worst.name}” ({worst.message or worst.kind})"
    level: Level = "bad" if share >= MANY_FAILED else "warning"
    return [Finding(level=level, text=f"{text}.", query={"status": "failed"})]


def failure_groups(
    tasks: Iterable[Task], hides_message: Callable[[str], bool]
) -> list[FailureGroup]:
    """The latest failures by task and reason, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        kind, message = reason(task, hides_message(task.name))
        groups.setdefault((task.name, kind, message), []).append(task)
    found = [
        FailureGroup(name=name, kind=kind, message=message, number=len(members), latest=members[0])
        for (name, kind, message), members in groups.items()
    ]
    return sorted(found, key=lambda group: -group.number)[:MOST_GROUPS]


def reason(task: Task, hides_message: bool) -> tuple[str, str]:
    """Kind and message of the failure; without a message that may tell what is redacted."""
    failure: Any = task.exception
    if not isinstance(failure, dict):
        return ("error", "") if failure is None else ("error", "unreadable")
    kind = str(failure.get("kind", "error"))
    name = str(failure.get("type", "")).rpartition(".")[2]
    if hides_message:
        return kind, name
    message = first_line(failure.get("message", ""))
    return kind, f"{name}: {message}" if kind == "error" and name else message or name


def chart(history: History) -> Chart:
    """The bars, in a picture that is `CHART_HEIGHT` high and ten wide for each step."""
    most = max((c + f for c, f in zip(history.completed, history.failed, strict=True)), default=0)
    scale = CHART_HEIGHT / max(most, 1)
    begin = history.until - timedelta(seconds=history.step_seconds * len(history.completed))
    bars = []
    for number, (completed, failed) in enumerate(
        zip(history.completed, history.failed, strict=True)
    ):
        low = max(failed * scale, 2.0 if failed else 0.0)
        high = max(completed * scale - (low - failed * scale), 0.0)
        bars.append(
            Bar(
                x=number * 10,
                completed=completed,
                failed=failed,
                completed_height=round(high, 2),
                failed_height=round(low, 2),
                failed_top=round(CHART_HEIGHT - low, 2),
                completed_top=round(CHART_HEIGHT - low - high, 2),
                begin=begin + timedelta(seconds=history.step_seconds * number),
            )
        )
    return Chart(
        bars=bars,
        most=most,
        completed=sum(history.completed),
        failed=sum(history.failed),
        begin=begin,
        end=history.until,
        is_cut=history.is_cut,
    )


def ticks(settings: Mapping[str, Settings], now: datetime) -> list[Tick]:
    """When the periodic tasks that are registered here come next."""
    found = []
    for name, each in settings.items():
        periodic = each.periodic
        upcoming = periodic.next(now) if periodic is not None else None
        if periodic is not None and upcoming is not None:
            found.append(Tick(name=name, rhythm=str(periodic.rhythm), next=upcoming))
    return sorted(found, key=lambda tick: tick.next)


def seconds_taken(task: Task) -> float | None:
    """How long the last attempt took; None while it has not ended."""
    if task.start_date_time is None or task.end_date_time is None:
        return None
    return max(0.0, (task.end_date_time - task.start_date_time).total_seconds())


def may_be(task: Task) -> dict[str, bool]:
    """Which buttons make sense."""
    status = task.status
    final = isinstance(status, TaskStatus) and status.is_final
    return {
        "cancel": status in (TaskStatus.PENDING, TaskStatus.RUNNING),
        "retry": final,
        "delete": status is not TaskStatus.RUNNING,
    }
