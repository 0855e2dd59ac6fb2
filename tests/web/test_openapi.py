"""The OpenAPI document of the FastAPI router: typed, and true under random requests."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.core.control import SkipTest
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation

from tests.apps import ROOT, Server, free_port, serving

EXAMPLES = 40  # for each of the nine routes
REQUEST_SECONDS = 30.0
BODIES = (1, "x", {"amount": 2, "secret": "tiger"})
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The site of the tests."""
    directory = tmp_path_factory.mktemp("openapi")
    port = free_port()
    command = ["-m", "uvicorn", "--port", str(port), "tests.web.site:app"]
    url = f"sqlite:///{directory / 'site.db'}"
    variables = {"LILOTA_DB_URL": url, "PYTHONPATH": str(ROOT)}
    with serving(command, directory, port, variables) as server:
        yield server


def test_answers_are_typed(site: Server) -> None:
    """Each route says what it answers, and with which codes."""
    paths = site.client.get("/openapi.json").json()["paths"]
    mine = {path.removeprefix("/tasks"): each for path, each in paths.items()}
    assert mine.keys() == {
        "/",
        "/healthz",
        "/readyz",
        "/{task_id}",
        "/{task_id}/result",
        "/{task_id}/events",
        "/{task_id}/cancel",
        "/{task_id}/retry",
        "/{name}",
    }
    created = mine["/{name}"]["post"]["responses"]
    assert "ScheduledTask" in str(created["202"])
    assert {"403", "404", "422", "503"} <= created.keys()
    assert "TaskState" in str(mine["/{task_id}"]["get"]["responses"]["200"])
    assert "text/event-stream" in str(mine["/{task_id}/events"]["get"]["responses"]["200"])


def ended_tasks(site: Server) -> list[str]:
    """The ids of tasks that have ended, one in each way."""
    places = [
        site.client.post(f"/tasks/{name}", json=value).headers["location"]
        for name, value in (("add", 1), ("fail", "x"), ("bill", {"amount": 1}))
    ]
    for place in places:
        site.client.get(f"{place}/result", params={"wait": 30})
    return [place.rsplit("/", 1)[1] for place in places]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_makes_an_error_of_the_server(site: Server, mode: GenerationMode) -> None:
    """Random requests that fit the document, and ones that do not, never get a 500."""
    schema = schemathesis.openapi.from_url(f"{site.client.base_url}/openapi.json")
    schema.config.generation.update(modes=[mode])
    known = {"task_id": ended_tasks(site), "name": ["add", "bill", "fail"]}
    codes: Counter[int] = Counter()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        with contextlib.suppress(SkipTest):  # a route without parameters cannot be asked wrongly
            fuzz(result.ok(), mode, known, codes)
    assert len(codes) >= 3, codes  # it reached more than one kind of answer
    assert codes[202] or mode.is_negative, codes
    assert max(codes) < 500, codes


def fuzz(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    known: dict[str, list[str]],
    codes: Counter[int],
) -> None:
    """Call one route, half of the time for a task or a name that exists."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), strategies.data())
    def call(case: Any, data: Any) -> None:
        for name, values in known.items():
            if name in (case.path_parameters or {}) and data.draw(strategies.booleans()):
                case.path_parameters[name] = data.draw(strategies.sampled_from(values))
                if name == "name" and data.draw(strategies.booleans()):
                    case.body = data.draw(strategies.sampled_from(BODIES))
                    case.media_type = "application/json"
        codes[case.call(timeout=REQUEST_SECONDS).status_code] += 1

    call()
