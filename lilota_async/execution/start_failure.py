"""Finding out why task processes do not come up."""

from __future__ import annotations

import asyncio
import json
import multiprocessing.process
import sys
from multiprocessing import spawn

from lilota_async.errors import WorkerStartFailed

IMPORT_TIMEOUT = 20.0
TEXT_LIMIT = 4000

_PREPARE = """
import json, sys
from multiprocessing import process, spawn
process.current_process()._inheriting = True
spawn.prepare(json.load(sys.stdin))
"""


class EndedSilently(WorkerStartFailed):
    """Nothing is known of why, as when the main script cannot be imported."""


async def why_main_cannot_be_imported() -> str:
    """What is said when the main script is imported as a task process does; "" if it can be.

    A task process does that before anything could hear it, so that it is done once more, by
    a process that is listened to.
    """
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        return ""  # this is such an import, and would be looked into in its turn
    data = spawn.get_preparation_data("lilota")
    told = {key: data[key] for key in data if key.startswith(("sys_", "dir", "init_"))}
    try:
        return await _import(json.dumps(told).encode())
    except (OSError, TimeoutError, TypeError):
        return ""


async def _import(told: bytes) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PREPARE, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(IMPORT_TIMEOUT):
            output, errors = await process.communicate(told)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not process.returncode:
        return ""
    return (output + errors).decode(errors="replace").strip()[-TEXT_LIMIT:]
