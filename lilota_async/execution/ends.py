"""How an attempt can end, as the parent sees it, and who hears of that."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from lilota_async.execution.protocol import Message, Outcome

Reason = Literal["timeout", "cancel"]


class Crash(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The process ended while it ran the attempt; what it used, as far as that is known.

    `out_of_memory`: the kernel has killed for want of memory meanwhile, most likely this one.
    `traceback` is what faulthandler wrote, or why the process was ended.
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

    `returned`: it waited behind a call that takes long, or was not taken, and may run elsewhere.
    """

    returned: bool = False


Ended = Outcome | Crash | Unstarted


class Listener(Protocol):
    """Who hears what a call says, and once how it has ended."""

    def on_message(self, message: Message | bytes) -> None: ...

    def on_end(self, ended: Ended | BaseException | None) -> None: ...
