"""Which forms and ranks of a layer are measured: few, and such that others lie between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from tdjax.plan.chain import chain_of
from tdjax.plan.form import Form, spatial_of
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ranks import feasible_tt_ranks, full_ranks, ranks_for, tt_order

Ranks = tuple[int, ...]

# Of the rank at which low rank computes as much as the dense layer.
RANK_SHARES = (0.08, 0.17, 0.33, 0.6, 1.0)
# The same where there are more ways than for that, or seconds are straighter in the rank.
FEW_SHARES = (0.12, 0.45, 1.0)
# Of each mode, for Tucker.
MODE_SHARES = (0.15, 0.4, 0.8)
# Modes of fewer channels, as those of an image, are kept whole.
NARROW = 5
# Channels of a group, at least: what is narrower is slower than the dense layer everywhere.
LEAST_INPUTS = 4


def forms_of(layer: Layer, methods: Collection[str], splits: Sequence[int]) -> list[Form]:
    """The forms of a layer that are measured, without ranks.

    Arguments:
        methods: formats, of `tdjax.plan.form.METHODS`. Between matrices all but TT are low rank.
        splits: numbers of groups of input channels that low rank may have.
    """
    *window, channels, _ = layer.group_shape
    spatial = math.prod(window) > 1
    found = []
    if "svd" in methods or (not spatial and set(methods) - {"tt"}):
        found.append(Form("svd"))
    if "svd" in methods:
        if len(window) == 2 and min(window) > 1:
            found.append(Form("svd", fold="rows"))
        takes = layer.groups == 1 and layer.kind != "embed"
        found += [
            Form("svd", splits=k)
            for k in splits
            if takes and k > 1 and channels % k == 0 and channels // k >= LEAST_INPUTS
        ]
    found += [
        Form(method, spatial=own)
        for method in ("tucker", "cp")
        if spatial and method in methods
        for own in spatial_of(window, method)
    ]
    if "tt" in methods and (spatial or (layer.is_matrix and _has_train(layer))):
        found.append(Form("tt"))
    return found


def ranks_of(layer: Layer, form: Form) -> tuple[Ranks, ...]:
    """The ranks of a form at which a layer is measured, up to where it computes as much as dense.

    Multiples of 8 or 16 where they are that large: processors compute in such.
    """
    if form.method == "tucker":
        modes = layer.group_shape[-2:]
        full = full_ranks(form.method, layer.group_shape)
        return tuple(itertools.product(*map(_of_mode, modes, full)))
    if form.method == "tt":
        return _of_train(layer, form)
    (most,) = full_ranks(form.method, chain_of(layer, replace(form, ranks=(1,))).rank_shape)
    one = PlannedLayer(layer, replace(form, ranks=(1,)))
    cost = (layer.size / one.size) if layer.is_matrix else float(layer.macs / one.macs)
    top = max(1, min(most, round(cost)))
    plain = form == Form("svd") or form.fold != "channel"
    shares = RANK_SHARES if plain else FEW_SHARES
    return tuple((rank,) for rank in sorted({_rounded(share * top, most) for share in shares}))


def middle_of(ranks: Sequence[Ranks]) -> Ranks:
    """Those that lie in the middle of a grid, in all modes."""
    modes = [sorted(set(own)) for own in zip(*ranks, strict=True)]
    if len(ranks) == math.prod(map(len, modes)):
        return tuple(own[len(own) // 2] for own in modes)
    return ranks[len(ranks) // 2]


def _of_mode(size: int, most: int) -> tuple[int, ...]:
    if size < NARROW:
        return (min(size, most),)
    return tuple(sorted({_rounded(share * size, most) for share in MODE_SHARES}))


def _of_train(layer: Layer, form: Form) -> tuple[Ranks, ...]:
    shape, found = layer.group_shape, []
    dims = tt_order(shape)
    for share in FEW_SHARES:
        wanted = ranks_for(form.method, shape, share)
        full = full_ranks(form.method, shape)
        near = [_rounded(float(rank), most) for rank, most in zip(wanted, full, strict=True)]
        found.append(feasible_tt_ranks(dims, near))
    return tuple(dict.fromkeys(found))


def _has_train(layer: Layer) -> bool:
    return len(tt_order(layer.group_shape)) > 1


def _rounded(rank: float, most: int) -> int:
    """A rank to a multiple of what a processor computes at once, where it is that large."""
    step = 16 if rank >= 32 else 8 if rank >= 12 else 1
    return min(most, max(1, step * round(rank / step)))
