"""How an attempt can end, as the parent sees it."""

from __future__ import annotations

import msgspec

from lilota_async.execution.protocol import Outcome


class Crash(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The process ended while it ran the attempt; what it used, as far as that is known.

    `out_of_memory`: the kernel has killed for want of memory meanwhile, most likely this one.
    `traceback` is what faulthandler wrote.
    """

    pid: int
    exit_code: int | None = None
    signal: str | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    out_of_memory: bool = False
    traceback: str = ""


class Unstarted(msgspec.Struct, frozen=True, gc=False):
    """The attempt's code was never begun, which costs the task nothing.

    `returned`: it waited behind a call that takes long, and may run elsewhere.
    """

    returned: bool = False


Ended = Outcome | Crash | Unstarted
