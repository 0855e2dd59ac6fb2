"""One model of every kind that a task can take, and what they hold."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Rich:
    """Values that JSON has no words for."""

    moment: datetime
    day: date
    key: UUID
    price: Decimal
    colour: Colour


RICH = Rich(
    moment=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
    day=date(2026, 2, 3),
    key=UUID("01939e4a-7d1c-7000-8000-000000000000"),
    price=Decimal("12.340"),
    colour=Colour.BLUE,
)


@dataclass
class Point:
    x: int
    y: int


@dataclass
class Order:
    """A model that nests others."""

    name: str
    rich: Rich
    points: list[Point] = field(default_factory=list)
    notes: dict[str, Point | None] = field(default_factory=dict)


class PydanticPoint(pydantic.BaseModel):
    x: int
    y: int


class PydanticOrder(pydantic.BaseModel):
    """A pydantic model that nests others."""

    moment: datetime
    key: UUID
    price: Decimal
    colour: Colour
    points: list[PydanticPoint]


class StructPoint(msgspec.Struct):
    x: int
    y: int


class PointDict(TypedDict):
    x: int
    y: int


@attrs.define
class AttrsPoint:
    x: int
    y: int


class PlainPoint:
    """A class of the sync ancestor's kind: `as_dict()`, and `cls(**data)`."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def as_dict(self) -> dict[str, Any]:
        return {"x": self.x, "y": self.y}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlainPoint) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]


class Opaque:
    """A class that no JSON can be made of."""

    def __init__(self, x: int) -> None:
        self.x = x
