"""Settings as dataclasses, read strictly from nested mappings and written back.

A field's type says what it may hold, with the ranges of `experiments.workdir.ranges`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, cast

from experiments.workdir.ranges import shown
from tdjax.hints import known_are

T = TypeVar("T")

BEFORE = "before"
# Metadata of a field that changes no measurement, such as one that only the report reads: another
# value is no other experiment.
FOR_REPORT: Mapping[str, Any] = types.MappingProxyType({"for_report": True})


class FieldError(ValueError):
    """A config field that cannot be as it is.

    Arguments:
        path: of the field, joined by dots.
        problem: what is wrong with it, the rest of a sentence that begins with the field.
    """

    def __init__(self, path: str, problem: str) -> None:
        """Keep both, so that the path can be made longer."""
        super().__init__(f"config field {path!r} {problem}")
        self.path, self.problem = path, problem

    def inside(self, where: str) -> FieldError:
        """The same of a field that is inside another."""
        return FieldError(f"{where}.{self.path}", self.problem)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A dataclass whose fields are what their types say, however it was made."""

    def __post_init__(self) -> None:
        """Convert lists and whole numbers where fields want them; FieldError for what is wrong."""
        hints = type_hints(cast(Any, type(self)))
        for field in dataclasses.fields(self):
            read = read_value(hints[field.name], getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, read)


def read_fields(cls: type[T], raw: Any) -> T:
    """A dataclass of settings from nested mappings, such as `ConfigDict.to_dict()`.

    Raises FieldError, a ValueError in one line that names the field, for one that is of a wrong
    type or out of its range; ValueError for those that are unknown or missing.
    """
    return cast(T, _fields(cls, raw, ""))


def read_value(hint: Any, value: Any, path: str, verb: str = "is") -> Any:
    """The value of a field, lists and whole numbers converted where its type wants others.

    Arguments:
        hint: the type, with ranges or without.
        path: of the field.
        verb: "is", or "has" for an entry of a list.

    Raises as `read_fields` does.
    """
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, cast(type, hint)) else _fields(hint, value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = read_value(arguments[0], value, path, verb)
        for check in arguments[1:]:
            if problem := check.problem(found, verb):
                raise FieldError(path, problem)
        return found
    if origin in (typing.Union, types.UnionType):
        kind = next(kind for kind in arguments if kind is not type(None))
        return None if value is None else read_value(kind, value, path, verb)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise FieldError(path, f"must be a sequence, got {shown(value)}")
        return tuple(read_value(arguments[0], entry, path, "has") for entry in value)
    if origin is not None:
        if not isinstance(value, Mapping):
            raise FieldError(path, f"must be a mapping, got {shown(value)}")
        return {key: _plain(entry, f"{path}.{key}") for key, entry in value.items()}
    return _leaf(hint, value, path)


def before(value: Any) -> Mapping[str, Any]:
    """Metadata of a field that configurations of earlier versions lack: what it was for them."""
    return {BEFORE: value}


def with_earlier(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it was written, with the fields that it lacks, see `before`."""
    found, hints = dict(raw), type_hints(cls)
    for field in dataclasses.fields(cast(Any, cls)):
        hint, own = hints[field.name], found.get(field.name)
        if dataclasses.is_dataclass(hint) and isinstance(own, Mapping):
            found[field.name] = with_earlier(cast(type, hint), own)
        elif BEFORE in field.metadata:
            found.setdefault(field.name, field.metadata[BEFORE])
    return found


def plain_fields(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as plain JSON values, all defaults written out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return cast(dict[str, Any], plain(settings))


def report_fields(cls: type, where: str = "") -> Iterator[str]:
    """The paths of the fields that change no measurement."""
    for field in dataclasses.fields(cast(Any, cls)):
        hint = type_hints(cls)[field.name]
        if dataclasses.is_dataclass(hint):
            yield from report_fields(cast(type, hint), f"{where}{field.name}.")
        elif field.metadata == FOR_REPORT:
            yield where + field.name


@functools.cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    return typing.get_type_hints(cls, include_extras=True)


def _fields(cls: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise FieldError(where, f"must hold fields, got {shown(raw)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for name in raw:
        if name not in fields:
            raise ValueError(
                f"unknown config field {f'{prefix}{name}'!r}; {known_are(name, fields)}"
            )
    hints = type_hints(cls)
    values = {name: read_value(hints[name], value, prefix + name) for name, value in raw.items()}
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
    except FieldError as error:
        raise error.inside(where) if where else error from None


def _leaf(kind: type, value: Any, path: str) -> Any:
    """A value without parts, of exactly this type."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        if kind is float and is_number:
            return float(value)
        if kind is int and is_number and isinstance(value, numbers.Integral):
            return int(value)
        if kind is str and type(value) is str:
            value.encode("utf-8")
    except (OverflowError, UnicodeError) as error:
        raise FieldError(path, f"is {shown(value)}: {error}") from None
    if type(value) is not kind:
        raise FieldError(path, f"must be of type {kind.__name__}, got {shown(value)}")
    return value


def _plain(value: Any, path: str) -> Any:
    """A value that JSON can hold and read back, lists as tuples."""
    if isinstance(value, tuple | list):
        return tuple(_plain(entry, path) for entry in value)
    if isinstance(value, Mapping):
        return {key: _plain(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(path, f"is {value}: a finite number is needed")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise FieldError(path, f"is {shown(value)}: numbers, text, and lists of them can be written")
