"""The formats and ranks that one layer may get, and what each of them costs: shapes alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from tdjax.allocation.clock import Clock, faster
from tdjax.plan.chain import chain_of
from tdjax.plan.costs import COSTS, COUNTED, MACS, PARAMS, TIME
from tdjax.plan.decide import plan_layer
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.form import Form, spatial_of
from tdjax.plan.layers import Layer
from tdjax.plan.low_rank import folds_of
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ranks import feasible_tt_ranks, full_ranks, tt_order
from tdjax.plan.rules import Rule

# Those that do not depend on how numbers are stored, nor on the machine.
EXACT = (PARAMS, MACS)
# All formats, the first of them first where a strategy takes the first that will do.
PREFERRED = ("svd", "tucker", "cp", "tt")
# The formats that each strategy knows.
KNOWN = {
    "uniform": PREFERRED,
    "energy": PREFERRED,
    "alds": ("svd",),
    "alds+": ("svd",),
    "loss": PREFERRED,
}
# Those over low rank with the channels in groups.
GROUPED = frozenset(["alds", "alds+"])
# Formats that are tried at some shares of the weights, as the ranks are too many.
AT_SHARES = frozenset(["cp", "tt"])
# Ranks of a mode that are tried: all of them up to this many, then a geometric choice.
MOST_RANKS = 64
# Shares of a layer's weights at which formats are tried whose losses must be computed one by one.
SHARES = tuple(k / 100 for k in range(1, 100))
# Where the steps between those are too large for a budget.
FINE_SHARES = tuple(k / 1000 for k in range(1, 1000))
# Shares at which CP and TT are decomposed; between them their loss is interpolated.
SAMPLED = (0.05, 0.15, 0.35, 0.6, 0.9)


class RankBounds(NamedTuple):
    """Which ranks a layer may have; a mode that is kept whole may always be.

    Arguments:
        least: of all ranks, as far as the modes have so many.
        multiple_of: what divides them.
    """

    least: int = 1
    multiple_of: int = 1

    def admit(
        self, ranks: Int[np.ndarray, " n"], full: int | Sequence[int]
    ) -> Bool[np.ndarray, " n"]:
        """Whether ranks are admitted, `full` being the highest of each."""
        inside = (ranks >= self.least) & (ranks % self.multiple_of == 0)
        return inside | (ranks == np.asarray(full))

    def nearest(self, ranks: Sequence[int], full: Sequence[int]) -> tuple[int, ...]:
        """The admitted ranks nearest to some."""
        m = self.multiple_of
        least = -(-self.least // m) * m
        rounded = (max(least, m * round(rank / m)) for rank in ranks)
        return tuple(min(pair) for pair in zip(rounded, full, strict=True))


class ChoiceOptions(NamedTuple):
    """Which choices a layer has.

    Arguments:
        costs: what is limited, of `COSTS`; the first tells what makes a layer smaller.
        methods: of `tdjax.plan.form.METHODS`.
        splits: groups of channels that low rank may have under ALDS; None for all that divide them.
        bounds: of the ranks.
        objective: of ALDS, "bound", or "released" for that of its authors' code.
        key: for the random starts of CP.
        fine: whether formats that are tried at some shares of the weights are tried at many.
        clock: of the network's layers; None where no cost is time. Without timings no choice.
        dtypes: numbers that layers may be stored in, of `tdjax.plan.dtypes.DTYPES`.
    """

    costs: tuple[str, ...]
    methods: tuple[str, ...]
    splits: tuple[int, ...] | None = None
    bounds: RankBounds = RankBounds()
    objective: str = "bound"
    key: Array | None = None
    fine: bool = False
    clock: Clock | None = None
    dtypes: tuple[str, ...] = (FLOAT32,)

    @property
    def known(self) -> tuple[str, ...]:
        """The costs that arrays of them have columns for."""
        return COUNTED if self.clock is None else COSTS

    @property
    def column(self) -> int:
        """Of the first cost, in arrays of costs."""
        return self.known.index(self.costs[0])

    @property
    def size_column(self) -> int:
        """Of the first cost that grows with the ranks whatever the numbers: time need not."""
        return self.known.index(next((cost for cost in self.costs if cost in EXACT), PARAMS))

    def costs_of(self, entry: PlannedLayer) -> Int[np.ndarray, " k"]:
        """All that a layer costs."""
        counted = costs_of(entry)
        return counted if self.clock is None else np.append(counted, self.clock.spent(entry))

    def spared(self, layer: Layer, own: Choices, costs: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Which choices spare some of what is named.

        What multiplies no less is no faster, whatever was measured.
        """
        dense = self.costs_of(PlannedLayer(layer))
        found = np.zeros(len(own.costs), bool)
        for column in map(self.known.index, costs):
            if self.known[column] == TIME:
                fewer = own.costs[:, COUNTED.index(MACS)] < dense[COUNTED.index(MACS)]
                found |= (own.costs[:, column] <= faster(int(dense[column]))) & fewer
            else:
                found |= own.costs[:, column] < dense[column]
        return found


class Choices(NamedTuple):
    """Entries for one layer in one format, as arrays.

    Arguments:
        form: the format, without its ranks; None for the dense layer in other numbers.
        ranks: (n, number of ranks).
        costs: (n, k), parameters, MACs, bytes and, where it is known, time of the layer.
        dtype: in which it is stored; None for its own.
    """

    form: Form | None
    ranks: Int[np.ndarray, "n r"]
    costs: Int[np.ndarray, "n k"]
    dtype: str | None = None

    @property
    def method(self) -> str | None:
        """Of the format."""
        return None if self.form is None else self.form.method

    def entry(self, layer: Layer, number: int) -> PlannedLayer:
        """What a plan says of the layer for one of the entries."""
        ranks = tuple(self.ranks[number].tolist())
        form = None if self.form is None else replace(self.form, ranks=ranks)
        return PlannedLayer(layer, form, dtype=self.dtype)

    def where(self, kept: Any) -> Choices:
        """Some of the entries, by a mask (n,)."""
        return self._replace(ranks=self.ranks[kept], costs=self.costs[kept])


def check_known(what: str, strategy: str, methods: Sequence[str]) -> None:
    """Refuse methods that a strategy does not know, with those that it knows."""
    for method in methods:
        if method not in KNOWN[strategy]:
            raise ValueError(
                f"allocate: {what} {method!r}: strategy {strategy!r} does not know it; it knows "
                f"{', '.join(KNOWN[strategy])}"
            )


def costs_of(entry: PlannedLayer) -> Int[np.ndarray, " k"]:
    """Parameters, multiply-accumulates (rounded up) and bytes of a layer's weights."""
    return np.array([entry.size, math.ceil(entry.macs), entry.bytes], np.int64)


def choices_of(layer: Layer, strategy: str, options: ChoiceOptions) -> list[Choices]:
    """All that a strategy chooses from for a layer, beside leaving it dense.

    "uniform" takes the first format that makes the layer smaller.
    """
    if strategy == "uniform":
        forms = map(Form, options.methods)
        found = (_timed(layer, _at_shares(layer, options, own), options) for own in forms)
        first = options.costs[:1]
        return next(([own] for own in found if options.spared(layer, own, first).any()), [])
    every = _counted(layer, strategy, options)
    return [own for own in (_timed(layer, own, options) for own in every) if len(own.costs)]


def _counted(layer: Layer, strategy: str, options: ChoiceOptions) -> list[Choices]:
    """The choices of strategies with an error, without their times."""
    if strategy in GROUPED:
        *window, _, _ = layer.group_shape
        folds = folds_of(window) if strategy == "alds+" else (Form.fold,)
        pairs = itertools.product(folds, _splits(layer, options))
        return [low_rank_choices(layer, options.bounds, k, fold) for fold, k in pairs]
    every = []
    matrix = layer.is_matrix or math.prod(layer.group_shape[:-2]) == 1
    if "svd" in options.methods:
        every.append(low_rank_choices(layer, options.bounds))
    if "tucker" in options.methods and not matrix:
        every.append(tucker_choices(layer, options.bounds))
    for method in ("cp", "tt"):
        if method in options.methods and not matrix:
            spatial = spatial_of(layer.group_shape[:-2], method)
            forms = (Form(method, spatial=own) for own in spatial)
            every += [_between_samples(layer, options, form) for form in forms]
    return every


def _timed(layer: Layer, own: Choices, options: ChoiceOptions) -> Choices:
    """Choices with the column of their times; none in a form that was not timed."""
    if options.clock is None:
        return own
    assert own.form is not None
    if not len(own.costs) or not options.clock.knows(layer.path, own.form):
        return own._replace(ranks=own.ranks[:0], costs=np.zeros((0, len(COSTS)), np.int64))
    times = options.clock.parts(layer.path, own.form, own.ranks)
    return own._replace(costs=np.concatenate([own.costs, times[:, None]], axis=1))


def low_rank_choices(
    layer: Layer, bounds: RankBounds, splits: int = 1, fold: str = Form.fold
) -> Choices:
    """Low rank at every rank, with the channels in k groups.

    Arguments:
        splits: k.
        fold: of `tdjax.plan.form.FOLDS`.
    """
    form = Form("svd", splits=splits, fold=fold)
    full = min(chain_of(layer, form).rank_shape)
    ranks = np.arange(1, full + 1)
    ranks = ranks[bounds.admit(ranks, full)][:, None]
    # Both stages are linear in the rank.
    return Choices(form, ranks, ranks * costs_of(PlannedLayer(layer, replace(form, ranks=(1,)))))


def tucker_choices(layer: Layer, bounds: RankBounds) -> Choices:
    """Tucker of the channels at pairs of ranks, (r_C, r_T) in the order of their grid."""
    form = Form("tucker")
    *_, c, t = layer.group_shape
    ranks = np.arange(1, t + 1)
    pairs = [(a, b) for a in rank_grid(c, bounds) for b in ranks[bounds.admit(ranks, t)].tolist()]
    grid = np.array(pairs)
    # The stages' costs are in proportion to r_C, r_C r_T and r_T.
    one, wide, high, both = (
        costs_of(PlannedLayer(layer, replace(form, ranks=pair)))
        for pair in ((1, 1), (2, 1), (1, 2), (2, 2))
    )
    core = both - wide - high + one
    a, b = grid.T[..., None]
    costs = (wide - one - core) * a + core * a * b + (high - one - core) * b
    return Choices(form, grid, costs)


def share_choices(layer: Layer, form: Form, shares: Sequence[float], bounds: RankBounds) -> Choices:
    """A form at the ranks that its rule gives for shares of the layer's weights."""
    rule = Rule(path=".*", method=form.method, spatial=form.spatial, compression=0.5)
    planned = dict.fromkeys(
        plan_layer(layer, replace(rule, compression=1 - share)) for share in shares
    )
    if bounds != RankBounds():
        planned = dict.fromkeys(own for entry in planned for own in _admitted(entry, bounds))
    entries = {entry.ranks: entry for entry in planned if entry.size < layer.size}
    ranks = np.array(list(entries), int).reshape(len(entries), -1 if entries else 1)
    costs = np.array([costs_of(entry) for entry in entries.values()], int)
    costs = costs.reshape(-1, len(COUNTED))
    form = next((entry.form for entry in entries.values()), None) or form
    return Choices(replace(form, ranks=()), ranks, costs)


def rank_grid(size: int, bounds: RankBounds) -> tuple[int, ...]:
    """The ranks of a mode that are tried."""
    every = np.arange(1, size + 1)
    every = every[bounds.admit(every, size)]
    if len(every) > MOST_RANKS:
        wanted = np.rint(np.geomspace(every[0], size, MOST_RANKS)).astype(int)
        every = every[np.unique(np.searchsorted(every, wanted))]
    return tuple(every.tolist())


def _admitted(entry: PlannedLayer, bounds: RankBounds) -> list[PlannedLayer]:
    """An entry at the nearest ranks within bounds; none where a tensor train has no such."""
    assert entry.form is not None
    shape = entry.chain.rank_shape
    full = full_ranks(entry.form.method, shape)
    ranks = bounds.nearest(entry.ranks, full)
    if entry.form.method == "tt":
        ranks = feasible_tt_ranks(tt_order(shape), ranks)
    if not bounds.admit(np.array(ranks), full).all():
        return []
    return [replace(entry, form=replace(entry.form, ranks=ranks))]


def _at_shares(layer: Layer, options: ChoiceOptions, form: Form) -> Choices:
    """A form at the ranks of whole percents of the layer, or nearer to each other than those."""
    if not options.fine:
        return share_choices(layer, form, SHARES, options.bounds)
    if form.method == "svd":
        return low_rank_choices(layer, options.bounds)
    return share_choices(layer, form, FINE_SHARES, options.bounds)


def _between_samples(layer: Layer, options: ChoiceOptions, form: Form) -> Choices:
    """A form whose loss is interpolated, no smaller and no larger than where it is computed."""
    many = _at_shares(layer, options, form)
    few = share_choices(layer, form, SAMPLED, RankBounds()).costs[:, options.size_column]
    if len(few) == 0:
        return many.where(np.zeros(len(many.costs), bool))
    cost = many.costs[:, options.size_column]
    return many.where((cost >= few[0]) & (cost <= few[-1]))


def _splits(layer: Layer, options: ChoiceOptions) -> Sequence[int]:
    if layer.groups > 1 or layer.kind == "embed":
        return (1,)
    channels = layer.kernel_shape[-2]
    wanted = range(1, channels + 1) if options.splits is None else options.splits
    return [k for k in wanted if channels % k == 0]
