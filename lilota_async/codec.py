"""Models and JSON: what a task may be given and may return, with one answer on every database.

=============================================  ================================================
value                                          what happens
=============================================  ================================================
dataclass, Struct, TypedDict, attrs            through msgspec; unknown fields are ignored
pydantic model                                 `model_dump(mode="json")`, `model_validate_json()`
class with `as_dict()`                         written by `as_dict()`, rebuilt with `cls(**data)`
datetime, UUID, Decimal, bytes, Enum           ISO 8601, text, text (`"NaN"` too), base64, its value
tuple, set                                     become lists
keys: numbers, dates, UUIDs, enums, bytes      become text; of two with the same text the last wins
other keys (None, bool, tuple)                 refused
NaN, Infinity as a float                       refused
U+0000 in text or keys, a lone surrogate       refused
integers outside -2**63..2**64-1               refused
deeper than 100 lists and objects, a cycle     refused
more bytes of JSON than the limit (10 MiB)     refused
=============================================  ================================================
"""

from __future__ import annotations

import datetime
import enum
import math
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final, cast, get_origin
from uuid import UUID

import msgspec

DEFAULT_LIMIT: Final = 10 * 1024 * 1024
# pydantic's JSON parser ends at about 200 levels, msgspec's at what is left of the stack.
DEPTH_LIMIT: Final = 100
MESSAGE_LIMIT: Final = 10_000
TRACEBACK_LIMIT: Final = 50_000

_CLAUSE_LIMIT: Final = 300
_SMALLEST_INTEGER: Final = -(2**63)
_LARGEST_INTEGER: Final = 2**64 - 1
_CUT_MARK: Final = "[...] "

_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789", b"000000000")
_BRACES_TO_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NEITHER_BRACKET_NOR_QUOTE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_FINITE_IN_MSGPACK: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PLACE_IN_MESSAGE: Final = re.compile(r"(.*) - at (?:`key` in )?`(\$[^`]*)`", re.DOTALL)

_Path = tuple[object, ...]


class Misfit(ValueError):
    """A value does not fit.

    `field` is the place (`$.a[0]`, or `$` for the whole), `reason` what is wrong, in one
    clause of at most a few hundred printable characters. `others` are further places with
    their reasons, where the model tells of more than one.
    """

    def __init__(self, field: str, reason: str, others: tuple[tuple[str, str], ...] = ()) -> None:
        self.field = field
        self.reason = reason
        self.others = others
        super().__init__(f"{field}: {reason}")


class Codec:
    """Values of one declared model to JSON and back; without a model, any JSON value.

    `limit` is the most bytes of JSON that encode() lets through. What is wrong with the model
    itself is told by encode() and decode(), not here.

    Example:
        >>> Codec(dict[str, int]).encode({"a": 2})
        b'{"a":2}'
        >>> Codec(dict[str, int]).decode('{"a":"2"}')
        Traceback (most recent call last):
        lilota_async.codec.Misfit: $[...]: Expected `int`, got `str`
    """

    __slots__ = ("_decode", "limit", "model")

    def __init__(self, model: Any | None = None, *, limit: int = DEFAULT_LIMIT) -> None:
        self.model = model
        self.limit = limit
        self._decode: Callable[[bytes | str], Any] | None = None

    def encode(self, value: object) -> bytes:
        """Return `value` as JSON that decode() accepts; raises Misfit.

        The value is written by its own kind, so that a dict, or an instance of another class,
        is welcome where its JSON fits the model.
        """
        try:
            data = _ENCODER.encode(value)
        except RecursionError:
            raise _too_deep() from None
        except Exception as error:
            raise (_find_fault(value) or _misfit(error)) from error
        _check(data, value, self.limit)
        if self.model is not None:
            self.decode(data)
        return data

    def decode(self, data: bytes | str) -> Any:
        """Return the value of the model that `data` holds; raises Misfit."""
        try:
            if self._decode is None:
                self._decode = self._make_decode()
            return self._decode(data)
        except Exception as error:
            raise _misfit(error) from error

    def _make_decode(self) -> Callable[[bytes | str], Any]:
        if self.model is None:
            return msgspec.json.decode
        if _is_pydantic(self.model):
            validate: Callable[[bytes | str], Any] = self.model.model_validate_json
            return validate
        return msgspec.json.Decoder(self.model, dec_hook=_from_plain).decode


def escape_text(text: str, limit: int) -> str:
    r"""Return `text` as every database accepts it, at most `limit` characters of its end.

    Example:
        >>> escape_text("a\0b", 100)
        'a\\x00b'
        >>> escape_text("0123456789" * 2, 12)
        '[...] 456789'
    """
    if limit <= 0:
        return ""
    escaped = text[-limit:].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(text) <= limit and len(escaped) <= limit:
        return escaped
    kept = limit - len(_CUT_MARK)
    return _CUT_MARK + escaped[-kept:] if kept > 0 else escaped[-limit:]


def describe(exception: BaseException, *, kind: str) -> dict[str, str]:
    """Return `exception` as plain text for the row: kind, type, message, traceback.

    Never raises, whatever the exception's own methods do.

    Example:
        >>> describe(ValueError("no"), kind="error")["message"]
        'no'
    """
    name = _safely(lambda: type(exception).__name__, "exception")
    message = _safely(lambda: str(exception), f"<{name} without readable text>")
    lines = _safely(
        lambda: "".join(traceback.format_exception(exception)),
        _safely(lambda: "".join(traceback.format_tb(exception.__traceback__)), "") + message,
    )
    return {
        "kind": kind,
        "type": escape_text(name, _CLAUSE_LIMIT),
        "message": escape_text(message, MESSAGE_LIMIT),
        "traceback": escape_text(lines, TRACEBACK_LIMIT),
    }


def _safely(text_of: Callable[[], str], fallback: str) -> str:
    try:
        return str.__str__(text_of())
    except BaseException:
        return fallback


def _is_pydantic(kind: object) -> bool:
    return callable(getattr(kind, "model_validate_json", None))


def _has_as_dict(kind: object) -> bool:
    return callable(getattr(kind, "as_dict", None))


def _to_plain(value: Any) -> Any:
    kind = type(value)
    if _is_pydantic(kind):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if _has_as_dict(kind):
        return value.as_dict()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(_unsupported(kind))


def _to_plain_python(value: Any) -> Any:
    # In JSON mode pydantic turns NaN in a field of type Any into None.
    kind = type(value)
    return value.model_dump(round_trip=True) if _is_pydantic(kind) else _to_plain(value)


def _from_plain(kind: Any, value: Any) -> Any:
    model = get_origin(kind) or kind
    try:
        if _is_pydantic(model):
            return model.model_validate_json(msgspec.json.encode(value))
        if _has_as_dict(model):
            return model(**msgspec.convert(value, dict[str, Any]))
        for base in (UUID, str, int, float):
            if issubclass(model, base):
                return model(msgspec.convert(value, base))
    except Exception as error:
        raise _misfit(error) from error
    raise Misfit("$", _unsupported(model))


def _unsupported(kind: Any) -> str:
    name = getattr(kind, "__name__", None) or repr(kind)
    return (
        f"{_clause(name)} cannot be turned into JSON; "
        "make it a dataclass, a pydantic model or give it as_dict()"
    )


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_plain)
_PYTHON_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_to_plain_python)


def _check(data: bytes, value: object, limit: int) -> None:
    if len(data) > limit:
        raise Misfit("$", f"{len(data):,} bytes of JSON, and the limit is {limit:,} bytes")
    if data.count(b"[") + data.count(b"{") > DEPTH_LIMIT and _is_deeper(data, DEPTH_LIMIT):
        raise _too_deep()
    if _is_suspicious(data, value) and (fault := _find_fault(value)):
        raise fault


def _is_deeper(data: bytes, limit: int) -> bool:
    # Without escaped quotes and backslashes, texts are what lies between two quotes.
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    signs = unescaped.translate(_BRACES_TO_BRACKETS, _NEITHER_BRACKET_NOR_QUOTE)
    brackets = b"".join(signs.replace(b'""', b"").split(b'"')[::2])
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")  # takes the innermost level away
        if not brackets:
            return False
    return True


def _is_suspicious(data: bytes, value: object) -> bool:
    # A number that is too large has 20 signs.
    zeros = data.translate(_DIGITS_TO_ZERO) if len(data) >= 20 else b""
    if b"\\u0000" in data or b"0" * 20 in zeros or b"-" + b"0" * 19 in zeros:
        return True
    # msgspec writes NaN and Infinity as null, and as keys by their names.
    if b"null" in data or b'nan":' in data or b'inf":' in data:
        try:
            return bool(_NOT_FINITE_IN_MSGPACK.search(_PYTHON_ENCODER.encode(value)))
        except Exception:
            return True
    return False


def _find_fault(value: object) -> Misfit | None:
    try:
        return _fault(value, ())
    except Exception as error:
        return _misfit(error)


def _fault(value: Any, path: _Path, *, only_floats: bool = False) -> Misfit | None:
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, str | float | int):
        if only_floats and not isinstance(value, float):
            return None
        reason = _scalar_fault(value)
        return Misfit(_format(path), reason) if reason else None
    children = _children(value)
    if children is None:
        return None if only_floats else _fault_of_other(value, path)
    for key, child in children:
        if isinstance(value, dict) and not only_floats and (reason := _key_fault(key)):
            return Misfit(_format(path), f"the key {_clause(_repr(key))}: {reason}")
        if fault := _fault(child, (*path, key), only_floats=only_floats):
            return fault
    return None


def _fault_of_other(value: Any, path: _Path) -> Misfit | None:
    kind = type(value)
    try:
        if _has_as_dict(kind) and not _is_pydantic(kind):
            return _fault(value.as_dict(), path)
        if not _is_pydantic(kind):
            _ENCODER.encode(value)
            return None
        return _fault(_to_plain(value), path) or _fault(
            _to_plain_python(value), path, only_floats=True
        )
    except RecursionError:
        raise
    except Exception as error:
        return Misfit(_format(path), _text_of(error))


def _children(value: Any) -> Iterable[tuple[object, Any]] | None:
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    kind = type(value)
    names: Iterable[tuple[str, str]]
    if isinstance(value, msgspec.Struct):
        names = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
    elif hasattr(kind, "__dataclass_fields__"):
        names = ((name, name) for name in kind.__dataclass_fields__)
    elif hasattr(kind, "__attrs_attrs__"):
        names = ((field.name, field.name) for field in kind.__attrs_attrs__)
    else:
        return None
    fields = ((shown, getattr(value, name, msgspec.UNSET)) for shown, name in names)
    return ((shown, child) for shown, child in fields if child is not msgspec.UNSET)


def _scalar_fault(value: object) -> str | None:
    match value:
        case str() if "\0" in value:
            return "the text contains the character U+0000, which not every database can hold"
        case str() if found := _SURROGATE.search(value):
            return f"the text contains the lone surrogate U+{ord(found[0]):04X}"
        case float() if not math.isfinite(value):
            return f"{float.__repr__(value)} is not a JSON number"
        case int() if not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
            return "the integer is outside -2**63..2**64-1; pass it as text"
    return None


def _key_fault(key: Any) -> str | None:
    if isinstance(key, str | float):
        return _scalar_fault(key)
    try:
        msgspec.json.encode({key: None})
    except Exception as error:
        return _text_of(error)
    return None


def _too_deep() -> Misfit:
    return Misfit("$", f"nested deeper than {DEPTH_LIMIT} levels, or contains itself")


def _misfit(error: Exception) -> Misfit:
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, msgspec.ValidationError):
        found = _PLACE_IN_MESSAGE.fullmatch(str(error))
        field, text = (found[2], found[1]) if found else ("$", str(error))
        if isinstance(error.__cause__, Misfit):
            return Misfit(field + error.__cause__.field[1:], error.__cause__.reason)
        return Misfit(field, _clause(text))
    try:  # pydantic's ValidationError, known by its method
        details = cast("Any", error).errors(
            include_url=False, include_input=False, include_context=False
        )
        first, *others = [(_format(each["loc"]), _clause(each["msg"])) for each in details[:50]]
        return Misfit(*first, tuple(others))
    except Exception:
        return Misfit("$", _text_of(error))


def _format(path: _Path) -> str:
    return "$" + "".join(map(_step, path))


def _step(key: object) -> str:
    if isinstance(key, str) and key.isidentifier() and key.isprintable():
        return "." + _clause(str.__str__(key))
    return f"[{_clause(_repr(key))}]"


def _repr(value: object) -> str:
    return _safely(lambda: repr(value), f"<{type(value).__name__}>")


def _text_of(error: Exception) -> str:
    name = type(error).__name__
    text = _clause(_safely(lambda: str(error), ""))
    if text and isinstance(error, TypeError | ValueError):
        return text
    return f"{name}: {text}" if text else name


def _clause(text: str) -> str:
    flat = " ".join(text[: 2 * _CLAUSE_LIMIT].split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in flat)
    return shown if len(shown) <= _CLAUSE_LIMIT else shown[:_CLAUSE_LIMIT] + "..."
