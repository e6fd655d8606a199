"""Which layers of a plan share input factors: groups put in, and found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tdjax.decompose.inputs import check_ranks
from tdjax.plan.dtypes import mixed_problem
from tdjax.plan.form import Form
from tdjax.plan.listing import ranks_text
from tdjax.plan.planned import PlannedLayer
from tdjax.plan.shared import form_problem, group_problem, joined

# Paths of layers that share one input factor.
Group = Sequence[str]


def with_shared(
    entries: Mapping[str, PlannedLayer], groups: Sequence[Group], rank: int | None
) -> dict[str, PlannedLayer]:
    """The layers of groups, by path, as they share; see `Plan.with_shared`."""
    made: dict[str, PlannedLayer] = {}
    lenders = {entry.shares for entry in entries.values()}
    for paths in groups:
        if isinstance(paths, str):
            raise TypeError(f"a group of layers is a sequence of paths, got {paths!r}")
        # The lender is called first.
        members = [entries[path] for path in entries if path in set(paths)]
        problem = group_problem([entry.layer for entry in members])
        for entry in members:
            wrong = form_problem(entry.form)
            path = entry.layer.path
            if path in made or path in lenders or entry.shares is not None:
                wrong = "it is in two groups"
            if problem is None and wrong is not None:
                problem = f"layer {entry.layer.path!r}: {wrong}"
        problem = problem or mixed_problem(dtypes_of(members))
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
    before: dict[str, PlannedLayer] = {}
    found: dict[str, str] = {}
    for entry in entries:
        path = entry.layer.path
        wrong = None if entry.shares is None else _problem_with(entry, before.get(entry.shares))
        if wrong is not None:
            found[path] = wrong
        before[path] = entry
    return found


def _problem_with(entry: PlannedLayer, lender: PlannedLayer | None) -> str | None:
    """What is wrong with a layer that shares, and with its lender."""
    if lender is None:
        return f"its input factor is that of {entry.shares!r}, which is no layer in front of it"
    if lender.form is None:
        return f"its input factor is that of {entry.shares!r}, which is kept dense"
    if lender.shares is not None:
        return f"{entry.shares!r} has no input factor of its own, but that of {lender.shares!r}"
    if lender.form != entry.form:
        return (
            f"{entry.shares!r} has no such input factor: it is {lender.form} of rank "
            f"{ranks_text(lender.ranks)}, not {entry.form} of rank {ranks_text(entry.ranks)}"
        )
    problem = group_problem([lender.layer, entry.layer]) or form_problem(lender.form)
    return problem or mixed_problem(dtypes_of([lender, entry]))


def dtypes_of(entries: Sequence[PlannedLayer]) -> dict[str, str | None]:
    """How layers are stored, by path."""
    return {entry.layer.path: entry.dtype for entry in entries}
