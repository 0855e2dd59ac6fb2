"""The pools of a node: one for each kind of executor that tasks are registered with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lilota_async.execution.executors import ExecutorPool
from lilota_async.execution.pools import LocalPool
from lilota_async.execution.processes import ProcessPool, Recycling
from lilota_async.options import NodeOptions

# The fork server imports them once for all task processes.
PRELOAD = ("lilota_async.execution.runtime", "lilota_async.core")


class NodePool(Protocol):
    """What a node starts, asks and closes."""

    size: int

    @property
    def is_stuck(self) -> bool: ...

    @property
    def is_healthy(self) -> bool: ...

    def slots(self) -> Sequence[Any]: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


def create_pools(options: NodeOptions, on_idle: Callable[[], None]) -> dict[str, NodePool]:
    """Pools that are not started; none for a node that only schedules."""
    if not options.processes:
        return {}
    return {
        "process": _create_processes(options, on_idle),
        "thread": LocalPool(options.threads, on_idle, threads=True),
        "loop": LocalPool(options.coroutines, on_idle, threads=False),
    }


def _create_processes(
    options: NodeOptions, on_idle: Callable[[], None]
) -> ProcessPool | ExecutorPool:
    if options.executor is not None:
        return ExecutorPool(options.executor, options.processes, on_idle)
    return ProcessPool(
        options.processes,
        on_idle,
        start_method=options.start_method,
        preload=(*PRELOAD, *options.preload),
        recycling=Recycling(
            calls=options.recycle_after or None,
            growth_bytes=options.recycle_growth_bytes,
        ),
    )
