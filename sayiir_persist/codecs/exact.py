"""Whether a value that was written and read again is still the same."""

from __future__ import annotations

import dataclasses
from datetime import datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set

ALWAYS_EXACT = frozenset({type(None), bool, int, str, bytes})


def change(value: Any, back: Any) -> str | None:
    """Say how `back` differs from `value`, without quoting either; `None`: not at all.

    Equal means equal of equal type, all the way down, whatever `__eq__` of a class says. Three
    things are wider or narrower than `==`: an int is at home where a class declares a float, a
    datetime stands for an instant and so may come back in another zone, and it must have one.
    """
    kind, back_kind = cast("tuple[type[object], type[object]]", (type(value), type(back)))
    if kind is not back_kind:
        if kind is int and back_kind is float and value == back:
            return None

        return f"{kind.__qualname__} would come back as {back_kind.__qualname__}"

    if kind in ALWAYS_EXACT:
        return None if value == back else _changed(kind)

    if kind is dict:
        return _first_change(value, back) or _first_change(value.values(), back.values())

    if isinstance(value, (list, tuple)):
        return _first_change(cast("Iterable[Any]", value), back)

    if isinstance(value, (set, frozenset)):
        return _change_of_set(cast("Set[Any]", value), back)

    names = _field_names(kind)
    if names is not None:
        return _first_change(
            (getattr(value, name) for name in names), (getattr(back, name) for name in names)
        )

    if kind is datetime and value.utcoffset() is None:
        return "datetime has no time zone"

    return None if _is_same(value, back) else _changed(kind)


def _field_names(kind: type[object]) -> Sequence[str] | None:
    names: Sequence[str] | None = getattr(kind, "__struct_fields__", None)
    if names is not None:
        return names

    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]

    attributes: Iterable[Any] | None = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _changed(kind: type[object]) -> str:
    return f"{kind.__qualname__} would come back changed"


def _is_same(value: Any, back: Any) -> bool:
    match value:
        case float() | Decimal():
            return repr(value) == repr(back)  # tells -0.0 from 0.0, and NaN is NaN
        case datetime():
            # Not ==, which is never true across zones in the hour that clocks repeat (PEP 495).
            return not value - back
        case time():
            return bool(value == back) and (value.tzinfo is None) == (back.tzinfo is None)
        case _:
            return bool(value == back)


def _first_change(values: Iterable[Any], backs: Iterable[Any]) -> str | None:
    missing = object()
    backs = iter(backs)
    for value in values:
        if found := change(value, next(backs, missing)):
            return found

    return None if next(backs, missing) is missing else "a container would come back longer"


def _change_of_set(values: Set[Any], backs: Set[Any]) -> str | None:
    found = {back: back for back in backs}
    if len(values) != len(found) or not all(value in found for value in values):
        return "a set would come back changed"

    return _first_change(values, (found[value] for value in values))
