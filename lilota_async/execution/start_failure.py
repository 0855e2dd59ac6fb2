"""Finding out why task processes do not come up."""

from __future__ import annotations

import json
import subprocess
import sys
from multiprocessing import process, spawn

IMPORT_TIMEOUT = 20.0
TEXT_LIMIT = 4000

_PREPARE = """
import json, sys
from multiprocessing import process, spawn
process.current_process()._inheriting = True
spawn.prepare(json.load(sys.stdin))
"""


def why_main_cannot_be_imported() -> str:
    """What is said when the main script is imported as a task process does; "" if it can be.

    A task process does that before anything could hear it, so that it is done once more, by
    a process that is listened to. Blocks.
    """
    if getattr(process.current_process(), "_inheriting", False):
        return ""  # this is such an import, and would be looked into in its turn
    data = spawn.get_preparation_data("lilota")
    told = {key: data[key] for key in data if key.startswith(("sys_", "dir", "init_"))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PREPARE],
            input=json.dumps(told).encode(),
            capture_output=True,
            timeout=IMPORT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, TypeError):
        return ""
    if not done.returncode:
        return ""
    return (done.stdout + done.stderr).decode(errors="replace").strip()[-TEXT_LIMIT:]
