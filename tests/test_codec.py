"""Models to JSON and back, and every refusal with its place and reason."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from lilota_async.codec import DEPTH_LIMIT, Codec, Misfit
from lilota_async.models import TaskId

ID = UUID("01939e4a-7d1c-7000-8000-000000000000")
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


class Colour(enum.Enum):
    RED = "red"


class Sign(enum.Enum):
    NUL = "\0"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    a: int
    b: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slotted:
    a: int


class Record(msgspec.Struct, rename="camel"):
    first_name: str
    at: datetime.datetime | msgspec.UnsetType = msgspec.UNSET


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


@attrs.define
class Attrs:
    a: int = attrs.field(validator=attrs.validators.lt(5))
    b: float = 1.0


class Model(pydantic.BaseModel):
    a: int
    b: float = 1.0
    c: Any = None
    d: list[Point] = []
    e: str = pydantic.Field(default="", alias="theE")

    @pydantic.field_validator("a")
    @classmethod
    def small(cls, value: int) -> int:
        if value > 100:
            raise ValueError("a is too large")
        return value


class Located(pydantic.BaseModel):
    path: PurePosixPath
    sizes: dict[tuple[int, int], None] = {}


class Plain:
    def __init__(self, a: int, b: Any = None) -> None:
        if a == 13:
            raise LookupError("unlucky")
        self.a = a
        self.b = b

    def as_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class AddInputInvalid:
    def __init__(self, a: int) -> None:
        self.a = a


@dataclasses.dataclass
class Everything:
    moment: datetime.datetime
    day: datetime.date
    time: datetime.time
    span: datetime.timedelta
    id: UUID
    task_id: TaskId[int]
    money: Decimal
    colour: Colour
    level: Level
    data: bytes
    names: set[str]
    pair: tuple[int, str]
    model: Model | None
    plain: list[Plain]
    records: dict[str, Record]
    typed: Typed
    attrs: Attrs
    by_number: dict[int, Slotted]


EVERYTHING = Everything(
    moment=MOMENT,
    day=MOMENT.date(),
    time=MOMENT.time(),
    span=datetime.timedelta(hours=1),
    id=ID,
    task_id=TaskId(ID),
    money=Decimal("1.10"),
    colour=Colour.RED,
    level=Level.HIGH,
    data=b"\0\xff",
    names={"x"},
    pair=(1, "x"),
    model=Model(a=1, d=[Point(1)], theE="é"),
    plain=[Plain(1)],
    records={"r": Record("Ada", MOMENT), "s": Record("Bob")},
    typed={"a": 1},
    attrs=Attrs(1),
    by_number={1: Slotted(a=1)},
)


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (None, None),
        (None, {"a": [1, 2.5, "é😀", True, None], "": {}}),
        (None, {"big": 2**64 - 1, "small": -(2**63), "text": "\\u0000 null 123456789012345678901"}),
        (type(None), None),
        (int, 5),
        (dict[str, int], {"a": 1}),
        (list[Point], [Point(1), Point(2)]),
        (Point | None, None),
        (Point | None, Point(1)),
        (Annotated[int, msgspec.Meta(ge=1)], 1),
        (Literal["a", "b"], "a"),
        (Colour, Colour.RED),
        (Level, Level.HIGH),
        (UUID, ID),
        (TaskId, TaskId(ID)),
        (TaskId[int], TaskId(ID)),
        (Decimal, Decimal("0.10")),
        (Point, Point(1, 2.0)),
        (Slotted, Slotted(a=1)),
        (Record, Record("Ada", MOMENT)),
        (Typed, {"a": 1, "b": "x"}),
        (Attrs, Attrs(1)),
        (Model, Model(a=1, c={"x": [None]}, d=[Point(1)], theE="x")),
        (Model | None, Model(a=1)),
        (Located, Located(path=PurePosixPath("/x"))),
        (Plain, Plain(1, [2])),
        (list[Plain], [Plain(1)]),
        (dict[str, Model], {"x": Model(a=1)}),
        (dict[str, Plain | None], {"x": None, "y": Plain(2)}),
        (Everything, EVERYTHING),
    ],
)
def test_round_trip(model: Any, value: Any) -> None:
    """Every kind of model comes back equal and of its own type, from bytes and from text."""
    codec = Codec(model)
    data = codec.encode(value)
    assert codec.decode(data) == value
    assert codec.decode(data.decode()) == value
    assert type(codec.decode(data)) is type(value)
    json.loads(data, parse_constant=pytest.fail)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Fraction(float):
    pass


class Moment(datetime.datetime):
    pass


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        (Point, {"a": 1, "b": 2}, Point(1, 2.0)),
        (Point, Plain(1, 2), Point(1, 2.0)),
        (Point, {"a": 1, "more": 1}, Point(1)),
        (Plain, Point(1, 2.5), Plain(1, 2.5)),
        (Plain, {"a": 1}, Plain(1)),
        (Model, {"a": 1, "theE": "x"}, Model(a=1, theE="x")),
        (Model, Point(1), Model(a=1)),
        (Record, {"firstName": "Ada"}, Record("Ada")),
        (dict[str, int], Typed(a=1), {"a": 1}),
        (None, EVERYTHING.plain, [{"a": 1, "b": None}]),
        (None, Plain(1, Model(a=2)), {"a": 1, "b": {"a": 2, "b": 1.0, "c": None, "d": [], "theE": ""}}),
        (None, (1, (2,)), [1, [2]]),
        (None, [{5}, frozenset({5})], [[5], [5]]),
        (None, {1: "a", 2.5: "b", Level.HIGH: "c", ID: "d"}, {"1": "a", "2.5": "b", "3": "c", str(ID): "d"}),
        (None, {1: "a", "1": "b"}, {"1": "b"}),
        (None, b"\xff", "/w=="),
        (None, MOMENT, "2026-01-02T03:04:05.000006Z"),
        (None, Decimal("NaN"), "NaN"),
        (None, Located(path=PurePosixPath("/x"), sizes={(1, 2): None}), {"path": "/x", "sizes": {"1,2": None}}),
        (None, [Text("a"), Number(1), Fraction(1.5)], ["a", 1, 1.5]),
        (datetime.datetime, Moment(2026, 1, 2, 3, 4, 5, 6, datetime.UTC), MOMENT),
    ],
)  # fmt: skip
def test_normal_form(model: Any, value: Any, expected: Any) -> None:
    """A value of another kind is welcome where its JSON fits, and has one normal form."""
    codec = Codec(model)
    assert codec.decode(codec.encode(value)) == expected


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Endless:
    def as_dict(self) -> Any:
        return self


class Broken:
    def as_dict(self) -> Any:
        raise LookupError("gone\n\0")


INFINITE = math.inf
REMEDY = "make it a dataclass, a pydantic model or give it as_dict()"
NESTED = f"nested deeper than {DEPTH_LIMIT} levels, or contains itself"
NUL = "the text contains the character U+0000, which not every database can hold"
WIDE = "the integer is outside -2**63..2**64-1; pass it as text"


@pytest.mark.parametrize(
    ("model", "value", "field", "reason"),
    [
        (Point, {}, "$", "Object missing required field `a`"),
        (Point, {"a": "x"}, "$.a", "Expected `int`, got `str`"),
        (list[Point], [{"a": 1}, {"a": 1.5}], "$[1].a", "Expected `int`, got `float`"),
        (dict[str, int], {"a": "x"}, "$[...]", "Expected `int`, got `str`"),
        (dict[int, int], {"a": 1}, "$", "Expected `int`, got `str`"),
        (Colour, "blue", "$", "Invalid enum value 'blue'"),
        (Attrs, {"a": 9}, "$", "'a' must be < 5: 9"),
        (Model, {}, "$.a", "Field required"),
        (Model, {"a": 101}, "$.a", "Value error, a is too large"),
        (Model, {"a": 1, "d": [{"a": 1}, {"a": "x"}]}, "$.d[1].a",
         "Input should be a valid integer, unable to parse string as an integer"),
        (list[Model], [{"a": 1}, {"a": 101}], "$[1].a", "Value error, a is too large"),
        (Plain, {"a": 13}, "$", "LookupError: unlucky"),
        (Plain, {}, "$", "Plain.__init__() missing 1 required positional argument: 'a'"),
        (Plain, [1], "$", "Expected `object`, got `array`"),
        (list[Plain], [{"a": 1}, {"a": 13}], "$[1]", "LookupError: unlucky"),
        (AddInputInvalid, AddInputInvalid(1), "$", f"AddInputInvalid cannot be turned into JSON; {REMEDY}"),
        (AddInputInvalid, {"a": 1}, "$", f"AddInputInvalid cannot be turned into JSON; {REMEDY}"),
        (5, 5, "$", "Type '5' is not supported"),
        (None, {"a": [object()]}, "$.a[0]", f"object cannot be turned into JSON; {REMEDY}"),
        (None, [Plain(1, print)], "$[0].b", f"builtin_function_or_method cannot be turned into JSON; {REMEDY}"),
        (None, [Broken()], "$[0]", "LookupError: gone \\x00"),
        (None, [math.nan], "$[0]", "nan is not a JSON number"),
        (None, {"a": {"b c": -INFINITE}}, "$.a['b c']", "-inf is not a JSON number"),
        (None, {INFINITE: 1}, "$", "the key inf: inf is not a JSON number"),
        (Point, Point(1, math.nan), "$.b", "nan is not a JSON number"),
        (Attrs, Attrs(1, math.nan), "$.b", "nan is not a JSON number"),
        (None, Model(a=1, b=math.nan), "$.b", "nan is not a JSON number"),
        (Model, [Model(a=1, c=[INFINITE])], "$[0].c[0]", "inf is not a JSON number"),
        (list[Plain], [Plain(1, {"x": (Model(a=1, c=math.nan),)})], "$[0].b.x[0].c", "nan is not a JSON number"),
        (None, ["a\0"], "$[0]", NUL),
        (None, [Sign.NUL], "$[0]", NUL),
        (None, {"a\0": 1}, "$", f"the key 'a\\x00': {NUL}"),
        (Record, Record("\0"), "$.firstName", NUL),
        (None, ["\ud800"], "$[0]", "the text contains the lone surrogate U+D800"),
        (None, {"x\udfff": 1}, "$", "the key 'x\\udfff': the text contains the lone surrogate U+DFFF"),
        (Model, Model(a=1, c=["\ud800"]), "$.c[0]", "the text contains the lone surrogate U+D800"),
        (None, {"a": 2**64}, "$.a", WIDE),
        (None, [-(2**63) - 1], "$[0]", WIDE),
        (None, [10**5000], "$[0]", WIDE),
        (int, 2**64, "$", WIDE),
        (None, [{None: 1}], "$[0]", "the key None: Only dicts with str-like or number-like keys are supported"),
        (None, {(1, 2): 1}, "$", "the key (1, 2): Only dicts with str-like or number-like keys are supported"),
        (None, nested(DEPTH_LIMIT + 1), "$", NESTED),
        (Model, Model(a=1, c=nested(DEPTH_LIMIT)), "$", NESTED),
        (None, nested(100_000), "$", NESTED),
        (None, endless(), "$", NESTED),
        (None, Endless(), "$", NESTED),
    ],
)  # fmt: skip
def test_encode_refuses(model: Any, value: Any, field: str, reason: str) -> None:
    """encode() names the place and the reason of what does not fit."""
    with pytest.raises(Misfit) as caught:
        Codec(model).encode(value)
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize("model", [None, Point, Model, Plain])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"NaN", b'"\xff"', b'"\\ud800"', "\ud800", b"[" * 100_000, b"1" * 5000]
)
def test_decode_refuses_what_is_not_json(model: Any, data: bytes | str) -> None:
    """Text that is no JSON, or damaged by hand, is a Misfit for every kind of model."""
    with pytest.raises(Misfit) as caught:
        Codec(model).decode(data)
    assert caught.value.reason.isprintable()


def test_deep_values_are_refused_when_pydantic_writes_them() -> None:
    """100,000 levels inside a pydantic model are a Misfit, not a crash."""
    with pytest.raises(Misfit):
        Codec(Model).encode(Model(a=1, c=nested(100_000)))


def test_exactly_the_deepest_value_fits() -> None:
    """DEPTH_LIMIT levels fit, whatever brackets and quotes the texts contain."""
    value = nested(DEPTH_LIMIT - 1)
    texts = ['[[{"', "\\", '\\"[', '"', "]" * 200]
    for pair in ([value, texts], [texts, value]):
        assert Codec().decode(Codec().encode(pair)) == pair


def test_closing_brackets_in_texts_do_not_hide_the_depth() -> None:
    """Brackets in texts are not counted as levels, in either direction."""
    value: Any = 1
    for _ in range(DEPTH_LIMIT + 1):
        value = [']"\\', value, "["]
    with pytest.raises(Misfit, match="nested deeper"):
        Codec().encode(value)


def test_size_is_limited() -> None:
    """The reason has both numbers, and the limit itself still fits."""
    assert Codec(limit=12).encode("x" * 10) == b'"xxxxxxxxxx"'
    with pytest.raises(Misfit, match="1,002 bytes of JSON, and the limit is 1,001 bytes"):
        Codec(limit=1001).encode("x" * 1000)


def test_reasons_are_short_and_printable() -> None:
    """A payload that an error repeats cannot flood or forge a log."""
    with pytest.raises(Misfit) as caught:
        Codec(Colour).encode("a\n\x1b\u2028" * 1000)
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) < 400


def test_importing_the_codec_loads_no_model_library() -> None:
    """A task process pays for msgspec only, not for pydantic, attrs or SQLAlchemy."""
    code = (
        "import sys, lilota_async.codec; "
        "print([m for m in ('pydantic', 'attrs', 'attr', 'sqlalchemy') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")
