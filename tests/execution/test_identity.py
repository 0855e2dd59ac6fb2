"""Whether another process of this machine lives: told only when it is certain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lilota_async.execution import identity
from lilota_async.execution.identity import ProcessIdentity, is_certainly_dead, own_identity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc")


def _is_dead(who: ProcessIdentity, *, pid: int | None = None, started: int | None = None) -> bool:
    return is_certainly_dead(
        who.machine, who.pid if pid is None else pid, who.started if started is None else started
    )


def test_the_living_and_the_dead() -> None:
    """A process lives until it ends; its zombie is dead, and so is one whose PID is another's."""
    own = own_identity()
    assert not _is_dead(own)
    assert _is_dead(own, started=own.started - 1)
    with subprocess.Popen(["sleep", "60"]) as child:
        started = identity._started(child.pid)
        assert started is not None
        assert not _is_dead(own, pid=child.pid, started=started)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert _is_dead(own, pid=child.pid, started=started)
    assert _is_dead(own, pid=child.pid, started=started)


def test_other_machines_are_unknown() -> None:
    """Of a process elsewhere, or without a name for the machine, nothing is known."""
    own = own_identity()
    for machine in ("", own.machine + "x"):
        assert not is_certainly_dead(machine, own.pid, own.started - 1)


def test_what_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """With /proc mounted with hidepid other users' processes are not shown; they may live."""
    own = own_identity()
    for error in (FileNotFoundError, PermissionError):

        def hidden(_self: Path, error: type[OSError] = error) -> str:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", hidden)
            patch.setattr(identity, "_machine", lambda: own.machine)
            assert not is_certainly_dead(own.machine, os.getppid(), 1)
    assert is_certainly_dead(own.machine, 2**22 - 1, 1)
