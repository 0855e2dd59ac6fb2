"""A virtual environment for each peer, from PyPI; kept for the next run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NEWER_PYTHON = (3, 12)
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.14")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What is installed for a peer; some need a newer Python than lilota-async does."""

    packages: tuple[str, ...]
    needs_newer_python: bool = False


ENVIRONMENTS = {
    "procrastinate": Environment(packages=("procrastinate",)),
    "pgqueuer": Environment(packages=("pgqueuer[asyncpg]",)),
    "saq": Environment(packages=("saq[postgres]",)),
    "oban": Environment(packages=("oban",), needs_newer_python=True),
    "chancy": Environment(packages=("chancy",), needs_newer_python=True),
    "dbos": Environment(packages=("dbos",), needs_newer_python=True),
    "ancestor": Environment(packages=("lilota==0.6.0",), needs_newer_python=True),
    "newest": Environment(packages=("lilota",), needs_newer_python=True),
}


def prepare(name: str, folder: Path) -> Path:
    """The Python of the peer's environment; raises RuntimeError or CalledProcessError."""
    environment = ENVIRONMENTS[name]
    path = folder / name
    python = path / "bin" / "python"
    if not python.exists():
        base = _newer_python() if environment.needs_newer_python else sys.executable
        subprocess.run([base, "-m", "venv", path], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            subprocess.run([*pip, "psycopg[binary]", *environment.packages], check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(path)
            raise
    return python


def _newer_python() -> str:
    if sys.version_info >= NEWER_PYTHON:
        return sys.executable
    installed = Path.home() / ".pyenv" / "versions"
    candidates = [found for name in NEWER_PYTHONS if (found := shutil.which(name))]
    candidates += [str(path) for path in sorted(installed.glob("3.1[2-9].*/bin/python"))]
    for candidate in candidates:
        # A shim of pyenv is there for versions that are not in use, too.
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    raise RuntimeError("it needs Python 3.12 or newer, which is not here")
