"""Every kind of model, from schedule() through a task process to result()."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from lilota_async import Lilota
from lilota_async.errors import InvalidInput, TaskFailed
from tests.api import tasks
from tests.api.models import (
    RICH,
    AttrsPoint,
    Colour,
    Opaque,
    Order,
    PlainPoint,
    Point,
    PydanticOrder,
    PydanticPoint,
    StructPoint,
)
from tests.api.support import DEADLINE, row
from tests.databases import FAST_BACKENDS, Servers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

FUNCTIONS: tuple[Callable[..., Any], ...] = (
    tasks.swap_dataclass,
    tasks.swap_struct,
    tasks.swap_typed_dict,
    tasks.swap_attrs,
    tasks.swap_as_dict,
    tasks.swap_dict,
    tasks.echo_order,
    tasks.echo_pydantic,
    tasks.input_only,
    tasks.output_only,
    tasks.wrong_type,
    tasks.returns,
    tasks.echo,
)


@pytest.fixture(scope="module", params=FAST_BACKENDS)
def url(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The URL of one database for all of these tests, on SQLite and PostgreSQL."""
    return servers.database(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
async def lilota(url: str) -> AsyncIterator[Lilota]:
    """One running Lilota for all of these tests."""
    lilota = Lilota(url, number_of_processes=1, max_payload_bytes=1_000_000)
    for function in FUNCTIONS:
        lilota.register(function)
    async with lilota:
        yield lilota


@pytest.mark.parametrize(
    ("function", "input", "output"),
    [
        (tasks.swap_dataclass, Point(1, 2), Point(2, 1)),
        (tasks.swap_struct, StructPoint(1, 2), StructPoint(2, 1)),
        (tasks.swap_typed_dict, {"x": 1, "y": 2}, {"x": 2, "y": 1}),
        (tasks.swap_attrs, AttrsPoint(1, 2), AttrsPoint(2, 1)),
        (tasks.swap_as_dict, PlainPoint(1, 2), PlainPoint(2, 1)),
        (tasks.swap_dict, {"x": 1, "y": 2}, {"x": 2, "y": 1}),
    ],
)
async def test_model_kinds(
    lilota: Lilota, function: Callable[..., Any], input: Any, output: Any
) -> None:
    """An instance of the model goes in, the function is given one, and one comes out."""
    task_id = await lilota.schedule(function, input)
    result = await lilota.result(task_id, DEADLINE)
    assert result == output
    assert type(result) is type(output)
    task = await row(lilota, task_id)
    assert (task.input, task.output) == ({"x": 1, "y": 2}, {"x": 2, "y": 1})


@pytest.mark.parametrize("function", FUNCTIONS[:6])
async def test_a_dict_fits_every_model(lilota: Lilota, function: Callable[..., Any]) -> None:
    """Where a model is asked for, a dict of its fields is welcome."""
    task_id = await lilota.schedule(function, {"x": 5, "y": 6})
    await lilota.result(task_id, DEADLINE)
    assert (await row(lilota, task_id)).output == {"x": 6, "y": 5}


async def test_nested_models_with_rich_values(lilota: Lilota) -> None:
    """Datetimes, UUIDs, decimals and enums come out as what went in, however deep."""
    points = [Point(1, 2), Point(3, 4)]
    order = Order(name="größe 🙂", rich=RICH, points=points, notes={"a": Point(5, 6), "b": None})
    result = await lilota.result(await lilota.schedule(tasks.echo_order, order), DEADLINE)
    assert result == replace(order, points=points[::-1])
    assert result.rich.moment.tzinfo is not None


async def test_pydantic_models(lilota: Lilota) -> None:
    """A pydantic model keeps its types through the process and back."""
    order = PydanticOrder(
        moment=RICH.moment,
        key=RICH.key,
        price=RICH.price,
        colour=Colour.RED,
        points=[PydanticPoint(x=1, y=2), PydanticPoint(x=3, y=4)],
    )
    task_id = await lilota.schedule(tasks.echo_pydantic, order)
    result = await lilota.result(task_id, DEADLINE)
    assert result == order.model_copy(update={"points": order.points[::-1]})
    assert (await row(lilota, task_id)).input["price"] == "12.340"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        1.0,
        -0.1,
        1e300,
        2**64 - 1,
        -(2**63),
        "",
        "\u2028\x7f\x01 'quoted' \"twice\" \\ / 🙂",
        [],
        {},
        [1, [2, [3, {"a": [None, {}]}]]],
        {"b": 1, "a": 2, "": {"ü": [True, False]}},
    ],
)
async def test_plain_json_values(lilota: Lilota, value: Any) -> None:
    """Any JSON value comes out as it went in: type, precision, order of keys."""
    task_id = await lilota.schedule(tasks.echo, {"value": value})
    result = (await lilota.result(task_id, DEADLINE))["value"]
    assert result == value
    assert type(result) is type(value)
    if isinstance(value, dict):
        assert list(result) == list(value)
    task = await row(lilota, task_id)
    assert task.input == task.output == {"value": value}


@pytest.mark.parametrize("value", [0, False, "", [], {}, 1.0, 12345678901234567890])
async def test_values_at_the_top(lilota: Lilota, value: Any) -> None:
    """A value that is not in a dict is kept as well, falsy ones included."""
    task_id = await lilota.schedule(tasks.echo, value)
    result = await lilota.result(task_id, DEADLINE)
    assert (result, type(result)) == (value, type(value))


async def test_input_without_output_and_output_without_input(lilota: Lilota) -> None:
    """Input and output models do not depend on each other."""
    task_id = await lilota.schedule(tasks.input_only, Point(1, 2))
    assert await lilota.result(task_id, DEADLINE) is None  # type: ignore[func-returns-value]
    assert await lilota.result(await lilota.schedule(tasks.output_only), DEADLINE) == Point(3, 4)


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    ("function", "value", "field", "reason"),
    [
        (tasks.swap_dataclass, {"x": "1", "y": 2}, r"\$\.x", "Expected `int`, got `str`"),
        (tasks.swap_dataclass, {"x": 1}, r"\$", "missing required field `y`"),
        (tasks.swap_dataclass, [1, 2], r"\$", "Expected `object`, got `array`"),
        (tasks.swap_dataclass, Opaque(1), r"\$", "Opaque cannot be turned into JSON"),
        (tasks.swap_struct, {"x": 1, "y": None}, r"\$\.y", "Expected `int`, got `null`"),
        (tasks.swap_typed_dict, {"x": 1, "y": 1.5}, r"\$\.y", "Expected `int`, got `float`"),
        (tasks.swap_attrs, {"y": 1}, r"\$", "missing required field `x`"),
        (tasks.swap_as_dict, {"z": 1}, r"\$", "unexpected keyword argument 'z'"),
        (tasks.swap_dict, {"x": "1"}, r"\$\[\.\.\.\]", "Expected `int`, got `str`"),
        (tasks.echo_pydantic, {"moment": 1}, r"\$\.key", "Field required"),
        (tasks.echo, {"a": [1.0, float("nan")]}, r"\$\.a\[1\]", "nan is not a JSON number"),
        (tasks.echo, float("-inf"), r"\$", "-inf is not a JSON number"),
        (tasks.echo, {"a": "x\0y"}, r"\$\.a", r"U\+0000"),
        (tasks.echo, {"a\0b": 1}, r"\$", r"U\+0000"),
        (tasks.echo, ["\ud800"], r"\$\[0\]", r"lone surrogate U\+D800"),
        (tasks.echo, 2**64, r"\$", "outside"),
        (tasks.echo, {(1, 2): 3}, r"\$", "key"),
        (tasks.echo, _cycle(), r"\$", "deeper than 100 levels"),
        (tasks.echo, "x" * 1_000_001, r"\$", "the limit is 1,000,000 bytes"),
    ],
)
async def test_inputs_that_do_not_fit(
    lilota: Lilota, function: Callable[..., Any], value: Any, field: str, reason: str
) -> None:
    """The error names the task, the field and the reason, and nothing is written."""
    before = len(await lilota.get_all_tasks())
    message = rf"task '{function.__name__}' does not fit at {field}: .*{reason}"
    with pytest.raises(InvalidInput, match=message) as caught:
        await lilota.schedule(function, value)
    assert caught.value.task == function.__name__
    assert len(str(caught.value)) < 1000
    assert len(await lilota.get_all_tasks()) == before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "at $.a[1]: nan is not a JSON number"),
        ("infinity", "inf is not a JSON number"),
        ("zero", "U+0000"),
        ("surrogate", "lone surrogate"),
        ("large", "outside"),
        ("opaque", "Opaque cannot be turned into JSON"),
        ("keys", "key"),
        ("deep", "deeper than 100 levels"),
        ("big", "the limit is 1,000,000 bytes"),
    ],
)
async def test_outputs_that_do_not_fit(lilota: Lilota, kind: str, reason: str) -> None:
    """The task has failed with kind invalid_output, and the row says why."""
    task_id = await lilota.schedule(tasks.returns, kind)
    with pytest.raises(TaskFailed, match="invalid_output") as caught:
        await lilota.result(task_id, DEADLINE)
    task = caught.value.task
    assert task.exception is not None
    assert (task.status, task.exception["kind"]) == ("failed", "invalid_output")
    assert reason in task.exception["message"]
    assert task.output is None


async def test_output_of_the_wrong_type(lilota: Lilota) -> None:
    """An output that is JSON, and not what was promised, is invalid as well."""
    task = await lilota.wait(await lilota.schedule(tasks.wrong_type), DEADLINE)
    assert task.exception is not None
    assert task.exception["kind"] == "invalid_output"
    assert "$.x" in task.exception["message"]


@pytest.mark.parametrize(
    ("kind", "output"), [("tuple", [1, [2, 3]]), ("number_keys", {"1": "one"})]
)
async def test_what_json_turns_into_something_else(lilota: Lilota, kind: str, output: Any) -> None:
    """Tuples become lists and number keys text, in the row and in the result alike."""
    task_id = await lilota.schedule(tasks.returns, kind)
    assert await lilota.result(task_id, DEADLINE) == output
    assert (await row(lilota, task_id)).output == output
