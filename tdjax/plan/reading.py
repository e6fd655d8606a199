"""A plan read from JSON as strictly as it is written.

Every field is there, of its type and in range, none is unknown, and what follows from other fields
agrees with them: nothing is filled in, rounded or passed over.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from tdjax.decompose.inputs import check_ranks
from tdjax.decompose.tt import clip_ranks
from tdjax.files import one_line
from tdjax.plan import ranks
from tdjax.plan.chain import chain_of
from tdjax.plan.consistent import layer_problems
from tdjax.plan.dtypes import dtype_problem
from tdjax.plan.form import PAIRED, Form
from tdjax.plan.layers import Layer, is_tied
from tdjax.plan.pair import feeding_problem
from tdjax.plan.predicted import Predicted, predicted_problem
from tdjax.plan.shared import form_problem, sharing_problem
from tdjax.plan.timing import Profile
from tdjax.plan.ways import ways_problem
from tdjax.plan.work import Count, Work

# Plans whose products are all in layers stay as the first version wrote them, those without
# conditions, fractions and dilated inputs as the second did, those that name no ways as the third,
# those whose numbers are stored as they are as the fourth, those without shared factors as the
# fifth, those without pairs as the sixth.
FIRST_VERSION, SECOND_VERSION, THIRD_VERSION, FOURTH_VERSION, FIFTH_VERSION = 1, 2, 3, 4, 5
SIXTH_VERSION, PLAN_VERSION = 6, 7
# Fields of an entry that plans of earlier versions lack, all their entries alike.
LATER: tuple[dict[str, Any], ...] = (
    {"splits": Form.splits, "fold": Form.fold},
    {"nonzeros": Form.nonzeros},
)
LARGEST = 2**63 - 1
# An int that may be below 0.
Signed = typing.NewType("Signed", int)


class ReadEntry(NamedTuple):
    """A layer, how its kernel is decomposed, and why it is kept dense."""

    layer: Layer
    form: Form | None
    reason: str | None
    ways: tuple[str, ...]
    dtype: str | None
    shares: str | None
    feeds: str | None


class ReadPlan(NamedTuple):
    """What a plan holds."""

    entries: tuple[ReadEntry, ...]
    other: int
    measured: Profile | None
    other_macs: Count
    work: Work | None
    predicted: Predicted | None


def read_plan(text: str) -> ReadPlan:
    """Read what `Plan.to_json` wrote. Raises ValueError that names the field that is wrong."""
    try:
        raw = parsed(text)
        if not isinstance(raw, dict):
            raise ValueError(f"it must hold fields, got {_shown(raw)}")
        version = _value(int, raw.get("version"), "version")
        if version not in _PLANS:
            raise ValueError(
                f"version {version}, this library reads {FIRST_VERSION} to {PLAN_VERSION}"
            )
        measured = _profile(raw.pop("measured")) if "measured" in raw else None
        predicted = _predicted(raw.pop("predicted")) if "predicted" in raw else None
        plain = read_fields(
            _PLANS[version], raw | {"layers": _completed(raw.get("layers"), version)}, ""
        )
        entries = [_entry(own, f"layers[{k}]") for k, own in enumerate(plain.layers)]
        _check_paths(entries)
        _check_other(entries, plain.other)
        work, other_macs = getattr(plain, "work", None), getattr(plain, "other_macs", 0)
        _check_work(entries, work)
        _check_predicted(entries, predicted)
        least = version_of(entries, other_macs, work)
        # The second wrote what the first could where all other products were none.
        if max(least, SECOND_VERSION) != max(version, SECOND_VERSION):
            raise ValueError(f"it holds what is not written as version {version}")
        return ReadPlan(tuple(entries), plain.other, measured, other_macs, work, predicted)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not a plan: {one_line(error)}") from error


def parsed(text: str) -> Any:
    """JSON without names that are there twice, NaN and infinities. Raises ValueError for such."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)


def _check_other(entries: Iterable[ReadEntry], other: int) -> None:
    # An array of several modules is listed with each, and counted once.
    low = -sum(entry.layer.size for entry in entries if is_tied(entry.layer))
    if other < low:
        raise ValueError(f"field 'other' must be from {low} to {LARGEST}, got {_shown(other)}")


@dataclass(frozen=True)
class _Entry:
    """An entry as it is written: its form is spread among its other fields."""

    layer: Layer
    method: str | None
    ranks: tuple[int, ...]
    spatial: str
    reason: str | None
    splits: int
    fold: str
    nonzeros: int
    ways: tuple[str, ...]
    dtype: str | None
    shares: str | None
    feeds: str | None


@dataclass(frozen=True)
class _FirstPlan:
    version: int
    other: Signed
    layers: tuple[_Entry, ...]


@dataclass(frozen=True)
class _SecondPlan(_FirstPlan):
    other_macs: Count


@dataclass(frozen=True)
class _Plan(_SecondPlan):
    work: Work | None


_PLANS: Mapping[int, type[_FirstPlan]] = {
    FIRST_VERSION: _FirstPlan,
    SECOND_VERSION: _SecondPlan,
    THIRD_VERSION: _Plan,
    FOURTH_VERSION: _Plan,
    FIFTH_VERSION: _Plan,
    SIXTH_VERSION: _Plan,
    PLAN_VERSION: _Plan,
}


def version_of(entries: Sequence[Any], other_macs: Count, work: Work | None) -> int:
    """The first version that can write a plan of such entries."""
    if any(entry.form is not None and entry.form.method in PAIRED for entry in entries):
        return PLAN_VERSION
    if any(entry.shares is not None for entry in entries):
        return SIXTH_VERSION
    if any(entry.dtype for entry in entries):
        return FIFTH_VERSION
    if any(entry.ways for entry in entries):
        return FOURTH_VERSION
    if work is not None or _is_later(other_macs, [entry.layer for entry in entries]):
        return THIRD_VERSION
    return SECOND_VERSION if other_macs else FIRST_VERSION


def _is_later(other_macs: Count, layers: Sequence[Layer]) -> bool:
    """Whether layers, or other products, are such as version 3 brought."""
    counts = [other_macs, *(count for own in layers for count in (own.positions, own.lookups))]
    return any(isinstance(count, Fraction) for count in counts) or any(
        layer.dilated for layer in layers
    )


def _completed(layers: Any, version: int) -> Any:
    """The entries with the fields that came after the version that wrote them."""
    if not isinstance(layers, list) or not all(isinstance(entry, dict) for entry in layers):
        return layers
    for absent in LATER:
        if all(absent.keys().isdisjoint(entry) for entry in layers):
            layers = [{**absent, **entry} for entry in layers]
    for first, absent in (
        (FOURTH_VERSION, {"ways": []}),
        (FIFTH_VERSION, {"dtype": None}),
        (SIXTH_VERSION, {"shares": None}),
        (PLAN_VERSION, {"feeds": None}),
    ):
        if version < first:
            for name in absent:
                if any(name in entry for entry in layers):
                    raise ValueError(f"field {name!r} is none of version {version}")
            layers = [{**entry, **absent} for entry in layers]
    if version >= THIRD_VERSION or not all(_lacks_dilated(entry.get("layer")) for entry in layers):
        return layers
    return [{**entry, "layer": {**entry["layer"], "dilated": Layer.dilated}} for entry in layers]


def _lacks_dilated(layer: Any) -> bool:
    return isinstance(layer, dict) and "dilated" not in layer


def read_fields(cls: Any, raw: Any, where: str) -> Any:
    """A dataclass from a JSON object with exactly its fields."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"field {where!r} must hold fields, got {_shown(raw)}")
    hints, prefix = _hints(cls), f"{where}." if where else ""
    for name in raw:
        if name not in hints:
            raise ValueError(f"unknown field {prefix + name!r}; known are {', '.join(hints)}")
    missing = [repr(prefix + name) for name in hints if name not in raw]
    if missing:
        raise ValueError(f"missing fields: {', '.join(missing)}")
    return cls(**{name: _value(hints[name], raw[name], prefix + name) for name in hints})


@lru_cache
def _hints(cls: Any) -> dict[str, Any]:
    types_of = typing.get_type_hints(cls)
    return {field.name: types_of[field.name] for field in fields(cls)}


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint == Count:
        return _count(value, where)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"field {where!r} must be a list, got {_shown(value)}")
        return tuple(_value(arguments[0], item, f"{where}[{k}]") for k, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return read_fields(hint, value, where)
    low, hint = (-LARGEST, int) if hint is Signed else (0, hint)
    # True is an int to Python, and 1.0 equals 1.
    if type(value) is not hint:
        raise ValueError(f"field {where!r} must be of type {hint.__name__}, got {_shown(value)}")
    if hint is int and not low <= value <= LARGEST:
        raise ValueError(f"field {where!r} must be from {low} to {LARGEST}, got {_shown(value)}")
    return value


def _count(value: Any, where: str) -> Count:
    """An int, or the text of a fraction that is none."""
    if not isinstance(value, str):
        found: int = _value(int, value, where)
        return found
    parts = re.fullmatch(r"([1-9]\d{0,18})/([1-9]\d{0,18})", value)
    share = Fraction(*map(int, parts.groups())) if parts else Fraction(0)
    if share.denominator == 1 or str(share) != value:
        raise ValueError(f"field {where!r} must be a number or a fraction, got {_shown(value)}")
    return share


def _profile(raw: Any) -> Profile:
    kinds = typing.get_type_hints(Profile)
    if not isinstance(raw, list) or len(raw) != len(kinds):
        raise ValueError(f"field 'measured' must list {', '.join(kinds)}, got {_shown(raw)}")
    found = Profile(*(
        _value(kind, own, f"measured.{name}")
        for (name, kind), own in zip(kinds.items(), raw, strict=True)
    ))  # fmt: skip
    *seconds, rounds = found
    if not all(0 < number < math.inf for number in seconds) or rounds < 1:
        raise ValueError(f"field 'measured' holds what no clock shows: {_shown(raw)}")
    if not found.least <= found.speedup <= found.most:
        raise ValueError("field 'measured.speedup' does not lie between the least and the most")
    return found


def _predicted(raw: Any) -> Predicted:
    found: Predicted = read_fields(Predicted, raw, "predicted")
    return found


def _check_predicted(entries: Iterable[ReadEntry], found: Predicted | None) -> None:
    paths = {entry.layer.path for entry in entries}
    wrong = None if found is None else predicted_problem(found, paths)
    if wrong is not None:
        raise ValueError(f"field 'predicted.{wrong[0]}': {wrong[1]}")


def _entry(own: _Entry, where: str) -> ReadEntry:
    """An entry whose fields agree. Raises ValueError that names the one that does not."""
    for name, problem in layer_problems(own.layer):
        raise ValueError(f"field '{where}.layer.{name}': {problem}")
    form = (own.ranks, own.spatial, own.splits, own.fold, own.nonzeros)
    _check_nonzeros(own)
    if own.method is None:
        if form != ((), Form.spatial, Form.splits, Form.fold, Form.nonzeros):
            raise ValueError(f"field '{where}.method' is null, but the layer has a form")
        if own.reason is not None and own.layer.obstacle not in (None, own.reason):
            raise ValueError(f"field '{where}.reason' is not the obstacle of its layer")
        if own.ways:
            raise ValueError(f"field '{where}.method' is null, but the layer has ways")
        _check_dtype(own, where)
        _check_shares(own, None, where)
        _check_feeds(own, None, where)
        return ReadEntry(own.layer, None, own.reason, (), own.dtype, None, None)
    if own.reason is not None or own.layer.obstacle is not None:
        raise ValueError(f"field '{where}.method': {own.method!r}, but the layer is kept dense")
    if 0 in own.layer.kernel_shape:
        raise ValueError(f"field '{where}.method': {own.method!r}, but the kernel has no entries")
    try:
        read = Form(own.method, *form)
        _check_form(own.layer, read)
    except ValueError as error:
        raise ValueError(f"field {where!r}: {error}") from error
    _check_shares(own, read, where)
    _check_feeds(own, read, where)
    wrong = ways_problem(own.layer, chain_of(own.layer, read).stages, own.ways)
    if wrong is not None:
        raise ValueError(f"field '{where}.ways': {wrong}")
    _check_dtype(own, where)
    return ReadEntry(own.layer, read, None, own.ways, own.dtype, own.shares, own.feeds)


def _check_shares(own: _Entry, form: Form | None, where: str) -> None:
    if own.shares is not None:
        wrong = sharing_problem(own.layer) or form_problem(form)
        if wrong is not None:
            raise ValueError(f"field '{where}.shares': {wrong}")


def _check_feeds(own: _Entry, form: Form | None, where: str) -> None:
    wrong = feeding_problem(form, own.feeds)
    if wrong is not None:
        raise ValueError(f"field '{where}.feeds': {wrong}")


def _check_dtype(own: _Entry, where: str) -> None:
    if own.dtype is not None:
        dense = own.method is None
        wrong = dtype_problem(own.layer, own.dtype, dense=dense, nonzeros=own.nonzeros)
        if wrong is not None:
            raise ValueError(f"field '{where}.dtype': {wrong}")


def _check_nonzeros(own: _Entry) -> None:
    most = math.prod(own.layer.kernel_shape) if own.method is not None else 0
    if own.nonzeros > most:
        raise ValueError(f"layer {own.layer.path!r}: nonzeros {own.nonzeros} not in 0..{most}")


def _check_form(layer: Layer, form: Form) -> None:
    """Refuse, with a ValueError, a form that the layer cannot have."""
    chain = chain_of(layer, form)
    shape = chain.rank_shape
    full = ranks.full_ranks(form.method, shape)
    check_ranks(form.ranks, full, "ranks")
    if form.method == "tt" and clip_ranks(ranks.tt_order(shape), form.ranks) != form.ranks:
        raise ValueError(f"ranks {form.ranks}: one is above what its neighbours let it reach")


def _check_paths(entries: list[ReadEntry]) -> None:
    seen = set()
    for number, entry in enumerate(entries):
        if entry.layer.path in seen:
            raise ValueError(f"field 'layers[{number}].layer.path': {entry.layer.path!r} twice")
        seen.add(entry.layer.path)


def _check_work(entries: list[ReadEntry], work: Work | None) -> None:
    known = {entry.layer.path for entry in entries}
    for part in () if work is None else work.parts:
        for use in part.uses:
            if use.path not in known:
                raise ValueError(f"field 'work': {use.path!r} is no layer of the plan")
        if any(len(branches) < 2 for branches in part.conditions):
            raise ValueError("field 'work.conditions': a condition has branches")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that is there twice, Python would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is there twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no value of a field")


def _shown(value: Any) -> str:
    return reprlib.repr(value)
