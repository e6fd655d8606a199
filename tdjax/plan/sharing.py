"""Which layers of a plan share input factors: groups put in, and found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tdjax.decompose.inputs import check_ranks
from tdjax.plan.form import Form
from tdjax.plan.planned import PlannedLayer
from tdjax.plan.shared import form_problem, group_problem, joined

# Paths of layers that share one input factor.
Group = Sequence[str]


def with_shared(
    entries: Mapping[str, PlannedLayer], groups: Sequence[Group], rank: int | None
) -> dict[str, PlannedLayer]:
    """The layers of groups, by path, as they share; see `Plan.with_shared`."""
    made: dict[str, PlannedLayer] = {}
    for paths in groups:
        if isinstance(paths, str):
            raise TypeError(f"a group of layers is a sequence of paths, got {paths!r}")
        # The lender is called first.
        members = [entries[path] for path in entries if path in set(paths)]
        problem = group_problem([entry.layer for entry in members])
        for entry in members:
            wrong = form_problem(entry.form, entry.dtype)
            if entry.layer.path in made or entry.shares is not None:
                wrong = "it is in two groups"
            if problem is None and wrong is not None:
                problem = f"layer {entry.layer.path!r}: {wrong}"
        if problem is not None:
            raise ValueError(f"shared input factor of {', '.join(map(str, paths))}: {problem}")
        found = _same_size(members) if rank is None else rank
        full = min(joined([entry.layer for entry in members]).kernel_shape)
        own = check_ranks((found,), (full,), f"shared input factor of {', '.join(paths)}")
        made |= {entry.layer.path: entry for entry in shared(members, own[0])}
    return made


def shared(members: Sequence[PlannedLayer], rank: int) -> list[PlannedLayer]:
    """Layers with one input factor, which the first has."""
    form, lender = Form("svd", (rank,)), members[0].layer.path
    own = [replace(entry, form=form, reason=None, shares=lender) for entry in members]
    return [replace(own[0], shares=None), *own[1:]]


def _same_size(members: Sequence[PlannedLayer]) -> int:
    """The largest rank at which layers that share hold no more than with factors of their own."""
    whole = joined([entry.layer for entry in members])
    held = sum(entry.size for entry in members) // whole.copies
    return min(max(held // sum(whole.kernel_shape), 1), *whole.kernel_shape)


def units_of(entries: Sequence[PlannedLayer]) -> list[tuple[PlannedLayer, ...]]:
    """Factorised layers as they are decomposed: alone, or all that share one input factor.

    The lender stands in front of the others.
    """
    units = {entry.layer.path: [entry] for entry in entries if entry.shares is None}
    for entry in entries:
        if entry.shares is not None:
            units[entry.shares].append(entry)
    return list(map(tuple, units.values()))


def sharing_problems(entries: Sequence[PlannedLayer]) -> dict[str, str]:
    """What is wrong with the layers of a plan that share, by path."""
    by_path = {entry.layer.path: entry for entry in entries}
    found: dict[str, str] = {}
    for number, entry in enumerate(entries):
        lender = by_path.get(entry.shares or "")
        if entry.shares is None:
            continue
        if lender is None or lender not in entries[:number]:
            found[entry.layer.path] = f"{entry.shares!r} is no layer in front of it"
        elif lender.shares is not None or lender.form != entry.form:
            found[entry.layer.path] = f"{entry.shares!r} has no such input factor"
        else:
            wrong = group_problem([lender.layer, entry.layer])
            wrong = wrong or form_problem(lender.form, lender.dtype)
            if wrong is not None:
                found[entry.layer.path] = wrong
    return found


def refuse_shared(what: str, entries: Sequence[PlannedLayer]) -> None:
    """Raise ValueError where layers share input factors, for what does not know that."""
    for entry in entries:
        if entry.shares is not None:
            raise ValueError(
                f"{what}: layer {entry.layer.path!r} shares the input factor of {entry.shares!r}, "
                f"which {what} does not know: give it a plan without shared factors"
            )
