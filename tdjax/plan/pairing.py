"""Which layers of a plan are pairs: put in, and found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tdjax.decompose.inputs import check_ranks
from tdjax.plan.dtypes import mixed_problem
from tdjax.plan.form import PAIRED, SCORES, UNITS, Form
from tdjax.plan.layers import Layer
from tdjax.plan.listing import ranks_text
from tdjax.plan.pair import IN, OUT, Pair, method_of, other_end, pair_layer, pair_problem
from tdjax.plan.planned import PlannedLayer
from tdjax.plan.sharing import dtypes_of


class Paired(NamedTuple):
    """The layers of a pair as a plan has them."""

    producers: tuple[PlannedLayer, ...]
    consumer: PlannedLayer

    @property
    def heads(self) -> int | None:
        """See `Pair`."""
        form = self.consumer.form
        assert form is not None
        return None if form.method in UNITS else form.splits

    @property
    def scores(self) -> bool:
        """See `Pair`."""
        return self.consumer.method in SCORES


def with_pairs(
    entries: Mapping[str, PlannedLayer], pairs: Sequence[Pair], rank: int | None
) -> dict[str, PlannedLayer]:
    """The layers of pairs, by path; see `Plan.with_pairs`."""
    made: dict[str, PlannedLayer] = {}
    lenders = {entry.shares for entry in entries.values()}
    for pair in pairs:
        paths, what = pair.paths, f"pair {pair}"
        producers, consumer = [entries[path] for path in pair.producers], entries[pair.consumer]
        layers = [entry.layer for entry in producers]
        problem = pair_problem(layers, consumer.layer, pair.heads, pair.scores)
        for path in paths:
            entry = entries[path]
            wrong = None
            if path in made or paths.count(path) > 1 or entry.method in PAIRED:
                wrong = "it is in two pairs"
            elif path in lenders or entry.shares is not None:
                wrong = "it shares an input factor"
            problem = problem or (wrong and f"layer {path!r}: {wrong}")
        problem = problem or mixed_problem(dtypes_of([*producers, consumer]))
        if problem is not None:
            raise ValueError(f"{what}: {problem}")
        splits = pair.heads or 1
        whole = pair_layer(layers, consumer.layer, pair.scores)
        if rank is None:
            held = sum(entry.size for entry in (*producers, consumer)) // whole.copies
            found = max(held // (splits * whole.kernel_shape[1]), 1)
            found = min(found, whole.kernel_shape[0] // splits)
        else:
            found = rank
        ranks = check_ranks((found,), (whole.kernel_shape[0] // splits,), what)
        members = paired(layers, consumer.layer, pair, ranks[0], dtype=consumer.dtype)
        made |= {entry.layer.path: entry for entry in members}
    return made


def paired(
    producers: Sequence[Layer], consumer: Layer, pair: Pair, rank: int, *, dtype: str | None = None
) -> list[PlannedLayer]:
    """The layers of a pair that keep so many units, or so many numbers of each head."""
    out, read = (Form(method_of(pair, end), (rank,), splits=pair.heads or 1) for end in (OUT, IN))
    return [
        *(PlannedLayer(own, out, dtype=dtype, feeds=consumer.path) for own in producers),
        PlannedLayer(consumer, read, dtype=dtype),
    ]


def pairs_in(entries: Sequence[PlannedLayer]) -> list[Paired]:
    """The pairs among the layers of a plan."""
    producers: dict[str, list[PlannedLayer]] = {}
    for entry in entries:
        if entry.feeds is not None:
            producers.setdefault(entry.feeds, []).append(entry)
    consumers = [entry for entry in entries if entry.layer.path in producers]
    return [Paired(tuple(producers[own.layer.path]), own) for own in consumers]


def pairing_problems(entries: Sequence[PlannedLayer]) -> dict[str, str]:
    """What is wrong with the pairs of a plan, by path of a layer."""
    by_path = {entry.layer.path: entry for entry in entries}
    fed = {entry.feeds for entry in entries}
    found: dict[str, str] = {}
    for entry in entries:
        path = entry.layer.path
        if entry.method is None or entry.method not in PAIRED:
            continue
        wrong = None
        if entry.feeds is not None:
            wrong = _problem_with(entry, by_path.get(entry.feeds))
        elif path not in fed:
            wrong = f"it reads {entry.format} of rank {ranks_text(entry.ranks)}, which none feeds"
        if wrong is not None:
            found[path] = wrong
    for pair in pairs_in(entries):
        if pair.consumer.method in SCORES and len(pair.producers) > 1:
            found[pair.consumer.layer.path] = "it is multiplied with what two layers put out"
    return found


def _problem_with(entry: PlannedLayer, consumer: PlannedLayer | None) -> str | None:
    """What is wrong with a producer, and with its consumer."""
    form = entry.form
    assert form is not None
    if consumer is None:
        return f"it feeds {entry.feeds!r}, which is no layer"
    if consumer.form != replace(form, method=other_end(form.method)):
        own = "dense" if consumer.form is None else consumer.format
        return (
            f"it feeds {entry.feeds!r}, which is {own} of rank {ranks_text(consumer.ranks)}, not "
            f"{replace(form, method=other_end(form.method))} of rank {ranks_text(entry.ranks)}"
        )
    pair = Paired((entry,), consumer)
    problem = pair_problem([entry.layer], consumer.layer, pair.heads, pair.scores)
    return problem or mixed_problem(dtypes_of([entry, consumer]))
