"""Settings as dataclasses, read strictly from nested mappings and written back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def read_fields(cls: type[T], raw: Any) -> T:
    """A dataclass of settings from nested mappings, such as `ConfigDict.to_dict()`.

    Raises ValueError that names the field for one that is unknown, missing or of a wrong type.
    """
    return _fields(cls, raw, "")


def plain_fields(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as plain JSON values, all defaults written out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return plain(settings)


def check_choices(name: str, values: Sequence[Any], known: Collection[Any] = ()) -> None:
    """Refuse an empty list of choices, one that is in it twice, and one that is not among `known`.

    An empty `known` takes any choice.

    Raises ValueError that names the field.
    """
    if not values or len(set(values)) != len(values):
        raise ValueError(f"config field {name!r} must list at least one, and none twice")
    unknown = [value for value in values if known and value not in known]
    if unknown:
        raise ValueError(f"config field {name!r} has {unknown[0]!r}: known are {', '.join(known)}")


def check_least(*fields: tuple[str, int, int]) -> None:
    """Refuse values below their least: (name, value, least) each.

    Raises ValueError that names the first such field.
    """
    for name, value, least in fields:
        if value < least:
            raise ValueError(f"config field {name!r} is {value}: at least {least} is needed")


def _fields(cls: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ValueError(f"config field {where!r} must hold fields, got {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for name in raw:
        if name not in fields:
            raise ValueError(
                f"unknown config field {prefix + name!r}; known are {', '.join(fields)}"
            )
    values = {name: _value(hints[name], value, prefix + name) for name, value in raw.items()}
    missing = [
        prefix + name
        for name, f in fields.items()
        if name not in raw
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"missing config fields: {', '.join(missing)}")
    try:
        return cls(**values)
    except ValueError as error:
        if not where:
            raise
        raise ValueError(f"config field {where!r}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _fields(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise ValueError(f"config field {where!r} must be a sequence, got {value!r}")
        return tuple(_value(arguments[0], item, where) for item in value)
    if origin is not None:
        if not isinstance(value, Mapping):
            raise ValueError(f"config field {where!r} must be a mapping, got {value!r}")
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"config field {where!r} must be of type {hint.__name__}, got {value!r}")
    return value
