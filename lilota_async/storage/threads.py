"""Blocking calls off the event loop, without a thread that stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in a thread that ends with the call; those of a pool would outlive stop()."""
    with ThreadPoolExecutor(1, thread_name_prefix="lilota-call") as threads:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
