"""Ledgers: what clients were told and what task bodies did, whoever dies meanwhile.

A client draws a token for each task, which is part of the input, and writes `intent` before
`schedule()`, then `ack`, `unknown` or `refused`, with the id where it is known. A task's body
writes `start`, `tick` while it runs, and `end` with what it is about to return. Each is one
write to a file opened with O_APPEND, so that lines of many processes never mix.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

VARIABLE = "LILOTA_FAULTS_LEDGER"
Kind = Literal["intent", "ack", "unknown", "refused", "start", "tick", "end", "ready", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. `monotonic` and `wall` are seconds by the machine's two clocks."""

    kind: Kind
    id: str
    token: str = ""
    pid: int
    monotonic: float
    wall: float
    attempt: int = 0
    value: Any = None


class Ledger:
    """A file that any number of processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_environment(cls) -> Ledger:
        """The one of the run that this process belongs to."""
        return cls(Path(os.environ[VARIABLE]))

    def write(self, kind: Kind, task_id: object = "", **values: Any) -> None:
        """Append one entry."""
        line = {
            "kind": kind,
            "id": str(task_id).replace("-", ""),
            "pid": os.getpid(),
            "monotonic": time.monotonic(),
            "wall": time.time(),
            **values,
        }
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())
        finally:
            os.close(file)

    def read(self, kinds: Iterable[Kind] | None = None) -> list[Entry]:
        """All entries, or those of some kinds, in the order they were written."""
        if not self.path.exists():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line may be being written
        entries = [Entry(**json.loads(line)) for line in whole.splitlines()]
        return [entry for entry in entries if kinds is None or entry.kind in set(kinds)]
