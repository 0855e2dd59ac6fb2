"""The README: its Python is run, and what it says is printed is printed.

A block with `asyncio.run(` is a script, one with `FastAPI(` an application. The others are
pieces of one script, in which those that await stand in `async with lilota:`.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from contextlib import AbstractContextManager
from pathlib import Path

from lilota_async import Task
from tests.apps import ROOT, Server, free_port, run_script, serving

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [source for language, source in BLOCKS if language == "python"]
SCRIPTS = [source for source in PYTHON if "asyncio.run(" in source]
APPLICATIONS = [source for source in PYTHON if "FastAPI(" in source]
PIECES = [source for source in PYTHON if source not in SCRIPTS + APPLICATIONS]

INSTALL = "python3 -m venv .venv && .venv/bin/pip install -e . "
RUN_EXAMPLE = "&& .venv/bin/python examples/02_add_two_numbers.py"
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"


def awaits(source: str) -> bool:
    """Whether the piece needs a coroutine around it."""
    try:
        compile(source, "README.md", "exec")
    except SyntaxError:
        return True
    return False


def whole_script() -> str:
    """The pieces, put together."""
    definitions = [piece for piece in PIECES if not awaits(piece)]
    body = "\n".join(piece for piece in PIECES if awaits(piece))
    return "\n".join(
        [
            *definitions,
            "async def main():",
            "    async with lilota:",
            textwrap.indent(body, " " * 8),
            'if __name__ == "__main__":',
            "    asyncio.run(main())",
        ]
    )


def promised_output(source: str) -> list[str]:
    """What the comments behind print() say that it prints."""
    return re.findall(r"^ *print\(.*\)  # (.+)$", source, re.MULTILINE)


def check_output(source: str, directory: Path) -> None:
    """Run `source` as a script: the promised lines are printed, in this order."""
    script = directory / "script.py"
    script.write_text(source)
    promised = promised_output(source)
    assert promised
    assert [line for line in run_script(script, directory) if line in promised] == promised


def application(source: str, directory: Path) -> AbstractContextManager[Server]:
    """The application `app` of this source, served."""
    (directory / "app.py").write_text(source)
    port = free_port()
    return serving(["-m", "uvicorn", "--port", str(port), "app:app"], directory, port)


def test_quick_example(tmp_path: Path) -> None:
    """The quick example runs as it is printed."""
    (script,) = SCRIPTS
    check_output(script, tmp_path)


def test_pieces(tmp_path: Path) -> None:
    """The pieces of the other sections are one application that runs."""
    check_output(whole_script(), tmp_path)


def test_application(tmp_path: Path) -> None:
    """The FastAPI application answers, and its task is done in the background."""
    source, _ = APPLICATIONS
    with application(source, tmp_path) as server:
        answer = server.client.post("/reports", json={"title": "sales"})
        assert answer.status_code == 202
        report = server.wait_for(f"/reports/{answer.json()['id']}")
        assert report == {"status": "completed", "progress": 100, "output": "SALES"}


def test_router(tmp_path: Path) -> None:
    """The application with the router takes its task and gives the output, and has pages."""
    _, source = APPLICATIONS
    with application(source, tmp_path) as server:
        answer = server.client.post("/tasks/greet", json="Ada")
        assert answer.status_code == 202
        place = answer.headers["location"]
        assert server.wait_for(f"{place}/result")["output"] == "Hello Ada"
        assert "Overview" in server.client.get("/lilota/").text


def test_commands() -> None:
    """The two set-up commands are there, each alone in a block, to be copied."""
    assert [source for language, source in BLOCKS if language == "sh"] == [
        f"{INSTALL}{RUN_EXAMPLE}\n",
        f"{TEST}\n",
    ]


def test_what_the_commands_name(tmp_path: Path) -> None:
    """The example that is run prints its sum, and the extras that are installed exist."""
    example = ROOT / RUN_EXAMPLE.split()[-1]
    assert run_script(example, tmp_path) == ["2 + 3 = 5"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"all", "mysql", "psycopg", "test"} <= project["optional-dependencies"].keys()


def test_columns() -> None:
    """The table of columns names every column, and no other."""
    table = README.split("| Column | |\n")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[1:]]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(Task.__table__.columns.keys())


def test_links() -> None:
    """Links into the repository lead somewhere."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
