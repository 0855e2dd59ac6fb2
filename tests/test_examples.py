"""The examples, run as a user would run them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from lilota_async import Lilota
from lilota_async.options import usable_cpus
from tests.apps import (
    POLL_SECONDS,
    ROOT,
    TASK_SECONDS,
    environment,
    free_port,
    run_script,
    serving,
)
from tests.databases import BACKENDS, FAST_BACKENDS, Servers

EXAMPLES = ROOT / "examples"


def test_hello_world(tmp_path: Path) -> None:
    """What the task prints, in another process, is on its row and not in the terminal."""
    (line,) = run_script(EXAMPLES / "01_hello_world.py", tmp_path)
    found = re.fullmatch(
        r"Process (\d+) reads the row: completed, log: 'Hello from process (\d+)\\n'", line
    )
    assert found
    assert found[1] != found[2]


def test_add_two_numbers(tmp_path: Path) -> None:
    """The ancestor's example, awaited, on a database file that only its owner may read."""
    assert run_script(EXAMPLES / "02_add_two_numbers.py", tmp_path) == ["2 + 3 = 5"]
    assert stat.S_IMODE((tmp_path / "lilota.db").stat().st_mode) == 0o600


def test_add_two_numbers_again(tmp_path: Path) -> None:
    """A second run on the database of the first does the same."""
    for _ in range(2):
        assert run_script(EXAMPLES / "02_add_two_numbers.py", tmp_path) == ["2 + 3 = 5"]


def test_add_two_numbers_on_postgresql(servers: Servers, tmp_path: Path) -> None:
    """LILOTA_DB_URL names another database, and no file is made."""
    url = servers.empty_database("postgresql+asyncpg", tmp_path)
    lines = run_script(EXAMPLES / "02_add_two_numbers.py", tmp_path, {"LILOTA_DB_URL": url})
    assert lines == ["2 + 3 = 5"]
    assert list(tmp_path.iterdir()) == []


def test_pydantic(tmp_path: Path) -> None:
    """A pydantic model is rebuilt in the task, and a dict that does not fit is refused."""
    assert run_script(EXAMPLES / "03_pydantic.py", tmp_path) == [
        "Invoice for A-17: 3.60, due on 2025-03-28",
        "Refused at $.lines[0].quantity: Field required",
    ]


def test_database_inside_task(tmp_path: Path) -> None:
    """The task writes to the application's own database, and may do so again."""
    for _ in range(2):
        lines = run_script(EXAMPLES / "04_database_inside_task.py", tmp_path)
        assert lines == ["Ada has 2 orders, 42 in total"]
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT * FROM reports").fetchall() == [("Ada", 42)]


def test_progress(tmp_path: Path) -> None:
    """Progress arrives in order and up to 100, and every line that was printed arrives."""
    lines = run_script(EXAMPLES / "05_progress.py", tmp_path)
    percentages = [int(line.removesuffix(" %")) for line in lines if line.endswith(" %")]
    assert percentages == sorted(percentages)
    assert len(percentages) > 1
    assert percentages[-1] == 100
    said = [line for line in lines if line.startswith("  it says: ")]
    assert said == [f"  it says: page {page} is printed" for page in range(1, 11)]
    assert lines[-1] == "it is completed"


def test_checkpoints(tmp_path: Path) -> None:
    """After kill -9 of the application, the job of 1,000 steps goes on at its checkpoint."""
    script = EXAMPLES / "08_checkpoints.py"
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert any(line.endswith("running 30 %\n") for line in first.stdout)
        first.kill()
    lines = run_script(script, tmp_path)
    resumed = re.fullmatch(r"attempt 2 begins at step (\d+)", lines[-1])
    assert resumed
    # What was done in the last fraction of a second may be done again, and nothing before it.
    assert 50 <= int(resumed[1]) < 1000  # with room for a busy machine
    assert "completed 100 %" in lines


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_split_and_merge(backend: str, servers: Servers, tmp_path: Path) -> None:
    """A thousand parts are counted, each once, and then merged."""
    url = servers.empty_database(backend, tmp_path)
    lines = run_script(EXAMPLES / "11_split_and_merge.py", tmp_path, {"LILOTA_DB_URL": url})
    assert lines == ["200000 words in 1000 parts"]
    tasks = asyncio.run(Lilota(url).get_all_tasks())
    names = Counter(task.name for task in tasks)
    assert names == {"split": 1, "count_words": 1000, "merge": 1}
    assert {(task.status, task.attempts) for task in tasks} == {("completed", 1)}


def test_dask(tmp_path: Path) -> None:
    """The tasks run on both workers of a cluster."""
    lines = run_script(EXAMPLES / "12_dask.py", tmp_path)
    assert lines == ["9592 primes below 100000", "10 tasks on 2 workers"]


def commands(name: str, port: int) -> dict[str, list[str]]:
    """The ways to start an application that its docstring names."""
    return {
        "script": [str(EXAMPLES / f"{name}.py")],
        "uvicorn": [
            *("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", str(port)),
            f"{name}:app",
        ],
    }


@pytest.mark.parametrize("way", ["script", "uvicorn"])
def test_fastapi_app(way: str, tmp_path: Path) -> None:
    """A report is accepted, followed to its end and read; SIGTERM leaves no process."""
    port = free_port()
    with serving(commands("06_fastapi_app", port)[way], tmp_path, port) as server:
        client = server.client
        answer = client.post("/reports", json={"title": "Sales", "pages": 4})
        assert answer.status_code == 202
        path = f"/reports/{answer.json()['id']}"
        assert server.wait_for(path) == {
            "status": "completed",
            "progress": 100,
            "output": {"text": "Sales, 4 pages"},
            "error": None,
        }
        assert client.post("/reports", json={"title": "Sales", "pages": 0}).status_code == 422
        assert client.get("/reports/nonsense").status_code == 422
        assert client.get("/reports/01939e4a-7d1c-7000-8000-000000000000").status_code == 404


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_and_receipt(backend: str, servers: Servers, tmp_path: Path) -> None:
    """An accepted order has a receipt, a refused one has left no trace."""
    port = free_port()
    url = servers.empty_database(backend, tmp_path)
    command = commands("09_order_and_receipt", port)["script"]
    with serving(command, tmp_path, port, {"LILOTA_DB_URL": url}) as server:
        client = server.client
        assert client.post("/orders", json={"customer": "Ada", "amount": 42}).json() == {"id": 1}
        assert server.wait_for("/orders/1")["receipt"] == "Receipt 1: 42 from Ada"
        refused = client.post("/orders", json={"customer": "Bob", "amount": 4200})
        assert refused.status_code == 409
        assert client.get("/orders/2").status_code == 404
    (receipt,) = asyncio.run(Lilota(url).get_all_tasks())
    assert receipt.input == {"order": 1, "text": "42 from Ada"}


@pytest.mark.parametrize("way", ["script", "uvicorn"])
def test_starlette_app(way: str, tmp_path: Path) -> None:
    """The primes are counted, by the Lilota that the request's state holds."""
    port = free_port()
    with serving(commands("07_starlette_app", port)[way], tmp_path, port) as server:
        client = server.client
        answer = client.post("/primes", params={"below": 1000})
        assert answer.status_code == 202
        path = f"/primes/{answer.json()['id']}"
        assert server.wait_for(path) == {"status": "completed", "primes": 168}
        assert client.delete(path).json() == {"cancelled": False}
        assert client.post("/primes", params={"below": "many"}).status_code == 422


def test_cancel_in_starlette_app(tmp_path: Path) -> None:
    """A request cancels what another has started."""
    port = free_port()
    with serving(commands("07_starlette_app", port)["script"], tmp_path, port) as server:
        answer = server.client.post("/primes", params={"below": 200_000_000})
        path = f"/primes/{answer.json()['id']}"
        server.wait_for(path, "running")
        assert server.client.delete(path).json() == {"cancelled": True}
        assert server.wait_for(path, "cancelled")["primes"] is None


def test_sigterm_while_a_task_runs(tmp_path: Path) -> None:
    """What runs is finished, what waits is pending and has paid no attempt."""
    port = free_port()
    number = 8 * usable_cpus()  # more than can run before it is stopped
    with serving(commands("06_fastapi_app", port)["script"], tmp_path, port) as server:
        for _ in range(number):
            server.client.post("/reports", json={"title": "Sales", "pages": 30})
        wait_for_progress(tmp_path)
        server.stop()
    with closing(sqlite3.connect(tmp_path / "lilota.db")) as connection:
        rows = connection.execute("SELECT status, attempts FROM lilota_task").fetchall()
    assert set(rows) == {("completed", 1), ("pending", 0)}
    assert len(rows) == number


def wait_for_progress(directory: Path) -> None:
    """Wait until a task is in the middle of its work."""
    deadline = time.monotonic() + TASK_SECONDS
    with closing(sqlite3.connect(directory / "lilota.db")) as connection:
        while not connection.execute(
            "SELECT 1 FROM lilota_task WHERE status = 'running' AND progress_percentage > 0"
        ).fetchall():
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)


def start_report_service(port: int, *options: str) -> list[str]:
    """The command that starts the report service, by uvicorn when it is given options."""
    folder = EXAMPLES / "10_report_service"
    if not options:
        return [str(folder / "app.py")]
    return ["-m", "uvicorn", "--app-dir", str(folder), "--port", str(port), *options, "app:app"]


def test_report_service(tmp_path: Path) -> None:
    """A table becomes a chart, for the visitor who uploaded it and for nobody else."""
    port = free_port()
    with serving(start_report_service(port), tmp_path, port) as server:
        client = server.client
        client.get("/")
        table = "month,region,amount\n2025-01,North,3\n2025-02,South,4.5\n"
        answer = client.post("/reports", files={"file": ("sales.csv", table)})
        assert answer.status_code == 202
        task_id = answer.json()["id"]
        result = client.get(f"/tasks/{task_id}/result", params={"wait": 30}).json()
        assert result["status"] == "completed"
        assert result["output"] == {"rows": 2, "total": 7.5, "png": "[redacted]"}
        chart = client.get(f"/reports/{task_id}.png")
        assert chart.content.startswith(b"\x89PNG")
        assert "North" not in client.get(f"/lilota/tasks/{task_id}?show=payloads").text
        broken = client.post("/reports", files={"file": ("empty.csv", "")}).json()["id"]
        failed = client.get(f"/tasks/{broken}/result", params={"wait": 30}).json()
        assert (failed["status"], failed["error"]) == ("failed", "error")
        assert client.get(f"/reports/{broken}.png").status_code == 409
        client.cookies.clear()
        client.get("/")
        for path in (f"/tasks/{task_id}", f"/lilota/tasks/{task_id}"):
            assert client.get(path).status_code == 403
        assert client.get(f"/reports/{task_id}.png").status_code == 404
        assert client.get("/tasks/").json()["tasks"] == []


def test_sigterm_ends_streams(tmp_path: Path) -> None:
    """An application with an open stream stops at once, instead of waiting for the browser."""
    port = free_port()
    with serving(start_report_service(port), tmp_path, port) as server:
        server.client.get("/")
        task_id = server.client.post("/reports").json()["id"]
        with server.client.stream("GET", f"/tasks/{task_id}/events") as stream:
            lines = stream.iter_lines()
            assert any("event: status" in line for line in lines)
            server.terminate()
            with contextlib.suppress(httpx.TransportError):
                assert "completed" not in "".join(lines)


def test_report_service_with_two_workers(servers: Servers, tmp_path: Path) -> None:
    """Whichever worker has the stream sees the task that the other runs, to its end."""
    port = free_port()
    url = servers.empty_database("postgresql+asyncpg", tmp_path)
    variables = {"LILOTA_DB_URL": url, "SESSION_SECRET": "for the test"}
    command = start_report_service(port, "--workers", "2")
    with serving(command, tmp_path, port, variables) as server:
        server.client.get("/")
        task_id = server.client.post("/reports", json=None).json()["id"]
        with ThreadPoolExecutor(8) as threads:
            streams = list(
                threads.map(lambda _: server.stream(f"/tasks/{task_id}/events"), range(8))
            )
    for text in streams:
        assert text.count('"status":"completed"') == 1
        assert "Drawing the chart" in text


def test_all_examples_are_tested() -> None:
    """An example that is added gets a test here."""
    source = Path(__file__).read_text()
    for example in EXAMPLES.glob("[0-9]*"):
        assert example.stem in source
