"""The codec against a slow and simple description of its normal form."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilota_async.codec import Codec, Misfit

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["null", "[", "]", '"', "\\u0000", "\0", "\ud800", "1" * 25])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(st.integers(), max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.floats(), inner, max_size=4)
    ),
    max_leaves=20,
)


def normal(value: Any) -> Any:
    """The documented normal form, written the slow way; raises ValueError where none is."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("U+0000")
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("too wide")
    elif isinstance(value, dict):
        return {key_text(key): normal(child) for key, child in value.items()}
    elif isinstance(value, list | tuple | set):
        return [normal(child) for child in value]
    return value


def key_text(key: str | float) -> str:
    if isinstance(key, int):
        return str(key)
    key = normal(key)
    return key if isinstance(key, str) else msgspec.json.encode(key).decode()


@settings(max_examples=300, deadline=None)
@given(values)
def test_any_value_has_its_normal_form_or_is_refused(value: Any) -> None:
    """Any JSON-like value comes back in its normal form, or is a Misfit where it has none."""
    try:
        expected = normal(value)
    except ValueError:
        with pytest.raises(Misfit):
            Codec().encode(value)
    else:
        assert Codec().decode(Codec().encode(value)) == expected
