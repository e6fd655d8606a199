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
    def pair(self) -> Pair:
        """The pair that they are."""
        put_out, read = self.producers[0].form, self.consumer.form
        assert put_out is not None
        assert read is not None
        heads, several = sorted((put_out.splits, read.splits))
        return Pair(
            tuple(own.layer.path for own in self.producers),
            self.consumer.layer.path,
            None if read.method in UNITS else heads,
            scores=read.method in SCORES,
            repeats=several // heads,
        )


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
        problem = pair_problem(layers, consumer.layer, pair)
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
        whole = pair_layer(layers, consumer.layer, pair)
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
    out, read = (
        Form(method_of(pair, end), (rank,), splits=splits)
        for end, splits in zip((OUT, IN), pair.parts, strict=True)
    )
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
        path, forms = pair.consumer.layer.path, {own.form for own in pair.producers}
        if pair.consumer.method in SCORES and len(pair.producers) > 1:
            found[path] = "it is multiplied with what two layers put out"
        elif len(forms) > 1:
            found.setdefault(path, "what layers put out for it has other heads")
    return found


def _problem_with(entry: PlannedLayer, consumer: PlannedLayer | None) -> str | None:
    """What is wrong with a producer, and with its consumer."""
    form = entry.form
    assert form is not None
    if consumer is None:
        return f"it feeds {entry.feeds!r}, which is no layer"
    wanted = replace(form, method=other_end(form.method))
    if consumer.form is not None and _may_share(form, consumer.form):
        wanted = replace(wanted, splits=consumer.form.splits)
    if consumer.form != wanted:
        own = "dense" if consumer.form is None else consumer.format
        return (
            f"it feeds {entry.feeds!r}, which is {own} of rank {ranks_text(consumer.ranks)}, not "
            f"{wanted} of rank {ranks_text(entry.ranks)}"
        )
    pair = Paired((entry,), consumer).pair
    problem = pair_problem([entry.layer], consumer.layer, pair)
    return problem or mixed_problem(dtypes_of([entry, consumer]))


def _may_share(put_out: Form, read: Form) -> bool:
    """Whether several heads of what reads share one of what puts out; of scores the other way."""
    several, heads = read.splits, put_out.splits
    if read.method in SCORES:
        several, heads = heads, several
    return read.method not in UNITS and several % heads == 0
