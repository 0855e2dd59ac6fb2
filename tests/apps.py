"""Scripts and web applications, run as a user would: in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
SCRIPT_SECONDS = 60.0
START_SECONDS = 60.0
TASK_SECONDS = 30.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment with `variables`, without a database for the examples, and strict."""
    kept = {name: value for name, value in os.environ.items() if name != "LILOTA_DB_URL"}
    return {**kept, "PYTHONWARNINGS": "error", **(variables or {})}


def run_script(
    script: Path, directory: Path, variables: Mapping[str, str] | None = None
) -> list[str]:
    """Run `script` in `directory` and return the lines it printed; it must say nothing else."""
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=directory,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@contextmanager
def serving(
    command: list[str], directory: Path, port: int, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A web application while `command` runs; it is ended by SIGTERM, unless it is already."""
    output = directory / f"server-{port}.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=directory,
            env=environment({"PORT": str(port), **(variables or {})}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, output)
    try:
        server.wait_until_up()
        yield server
        server.stop()
    finally:
        server.kill()


class Server:
    """A web application in a process of its own, and a client for it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: Path) -> None:
        self._process = process
        self._output = output
        self._family = [psutil.Process(process.pid)]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TASK_SECONDS)

    def wait_until_up(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._output.read_text()
            try:
                self.client.get("/")
            except httpx.TransportError:
                time.sleep(POLL_SECONDS)
            else:
                return
        raise AssertionError(f"It does not come up: {self._output.read_text()}")

    def wait_for(self, path: str, status: str = "completed") -> Any:
        """Read `path` until its "status" is `status`; returns the last answer."""
        deadline = time.monotonic() + TASK_SECONDS
        while (answer := self.client.get(path).raise_for_status().json())["status"] != status:
            assert time.monotonic() < deadline, answer
            time.sleep(POLL_SECONDS)
        return answer

    def stream(self, path: str) -> str:
        """All of a stream of events, on a connection of its own."""
        cookies = self.client.cookies
        with httpx.Client(base_url=self.client.base_url, cookies=cookies) as client:
            return client.get(path, timeout=TASK_SECONDS).raise_for_status().text

    def terminate(self) -> None:
        """SIGTERM, without waiting for what follows."""
        self._family += self._family[0].children(recursive=True)
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM: it ends without an error, and leaves no process."""
        if self._process.returncode is not None:
            return
        self.client.close()
        self._family += self._family[0].children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_SECONDS)
        output = self._output.read_text()
        assert code in (0, -signal.SIGTERM), output  # uvicorn sends itself the signal again
        assert "Application shutdown complete" in output
        assert "Traceback" not in output
        _, left = psutil.wait_procs(self._family, timeout=STOP_SECONDS)
        assert left == []

    def kill(self) -> None:
        """Leave nothing behind when a test has failed."""
        self.client.close()
        for process in self._family:
            if process.is_running():
                process.kill()
        self._process.wait(STOP_SECONDS)


def free_port() -> int:
    """A port that nobody listens on, and that nobody else gets from the system."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as those that listen do
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    holder.detach()  # it stays open: a port that is bound is given to nobody who asks for any
    return port
