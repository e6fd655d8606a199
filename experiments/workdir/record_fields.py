"""What records are: their kinds, and what each field must be, checked as it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.workdir.files import parse_json

# Kind of the records that say with which versions the others were measured.
ENVIRONMENT = "environment"
# When a record was appended: no part of what it says.
AT = "at"
Record = Mapping[str, Any]
# Kind of a record, and the values of the fields that identify it.
Identity = tuple[Any, ...]
Fields = Mapping[str, Any]
"""What each field of a JSON object must be.

A type, where a float may be written as a whole number; a mapping of the fields of an object; a list
of one such mapping; a pair of any of these and what is read where it is missing or null, such as
None, which leaves it so; or a function
(name, value) -> value that raises ValueError.
"""


@dataclass(frozen=True)
class Kind:
    """One kind of records.

    Arguments:
        names: the fields that identify a record of this kind.
        holds: further fields that are checked; a record may hold more.
    """

    names: Fields
    holds: Fields


Schema = Mapping[str, Kind]


def identity_of(kind: str, fields: Record, schema: Schema) -> Identity:
    """What identifies a record of such fields."""
    return (kind, *(fields.get(name) for name in schema[kind].names))


def checked(record: Any, fields: Fields) -> dict[str, Any]:
    """A JSON object with its fields as they must be.

    Raises ValueError that names the field which is missing or of another kind.
    """
    if not isinstance(record, dict):
        raise ValueError("a record must be a JSON object")
    found = dict(record)
    for name, kind in fields.items():
        if not (isinstance(kind, tuple) and record.get(name) is None):
            found[name] = _field(record, name, kind)
        elif kind[1] is not None:
            found[name] = kind[1]
    return found


def required(record: Record, name: str, kind: type) -> Any:
    """The field of a JSON object; raises ValueError if it is missing or not of that type."""
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    value = record[name]
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"field {name!r} is a number of more than 64 bits")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"field {name!r} is {value!r}, not of type {kind.__name__}")
    return value


def share(name: str, value: Any) -> float:
    """A number from 0 to 1. Raises ValueError for anything else."""
    number = float(required({name: value}, name, float))
    # NaN fails too.
    if not 0 <= number <= 1:
        raise ValueError(f"{name} {number} is not in [0, 1]")
    return number


def natural(name: str, value: Any) -> int:
    """A whole number of at least 1. Raises ValueError for anything else."""
    number = int(required({name: value}, name, int))
    if number < 1:
        raise ValueError(f"{name} is {number}, not at least 1")
    return number


def numbers(name: str, value: Any) -> list[float]:
    """A list of numbers. Raises ValueError for anything else."""
    return [required({name: one}, name, float) for one in required({name: value}, name, list)]


# How a network does on a set of examples.
SCORES: Fields = {"accuracy": share, "cross_entropy": float, "count": (natural, None)}


def read_record(line: bytes, schema: Schema) -> dict[str, Any]:
    """A line of a journal. Raises ValueError that says what is wrong with it."""
    record = checked(parse_json(line), {})
    kind = required(record, "kind", str)
    if kind == ENVIRONMENT:
        return checked(record, dict.fromkeys(record, str))
    if kind not in schema:
        raise ValueError(f"kind {kind!r} is unknown; kinds are: {', '.join(schema)}")
    names, holds = schema[kind].names, schema[kind].holds
    try:
        read = checked(record, {**names, **holds})
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # Of a field's own function, for which the value was too odd.
        raise ValueError(f"a field is of a wrong type ({error})") from error
    for name in names:
        # What is not equal to itself identifies nothing.
        if isinstance(read.get(name), float) and not math.isfinite(read[name]):
            raise ValueError(f"field {name!r} is {read[name]}, not a finite number")
    return read


def named(identity: Identity) -> str:
    """A record in the words of messages."""
    return f"the {identity[0]} {', '.join(map(str, identity[1:]))}".rstrip()


def text_of(record: Record) -> str:
    """All that a record says, the same for equal ones."""
    # In which NaN equals NaN; a schema may make other objects of its fields.
    return json.dumps(record, sort_keys=True, default=repr)


def _field(record: Record, name: str, kind: Any) -> Any:
    if isinstance(kind, tuple):
        return _field(record, name, kind[0])
    if isinstance(kind, type):
        return required(record, name, kind)
    if isinstance(kind, Mapping):
        return checked(required(record, name, dict), kind)
    if isinstance(kind, list):
        return [checked(one, kind[0]) for one in required(record, name, list)]
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    return kind(name, record[name])
