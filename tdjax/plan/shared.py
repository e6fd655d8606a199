"""Layers that read the same input and share one input factor.

Of the matrices [K_1 | K_2 | ...], side by side, one decomposition A [B_1 | B_2 | ...] is made: the
layers compute y_i = (x A) B_i. A lies with the first of them, the lender; the others have B_i
alone, and read A where it lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from tdjax.plan.form import Form
from tdjax.plan.layers import Layer, Storage

# Whose thin layers module systems make, each with its rows as they come.
KINDS = ("dense", "dense_general", "einsum")
UP = ".."


def sharing_problem(layer: Layer) -> str | None:
    """Why a layer can share no input factor; None where it can."""
    if layer.obstacle is not None:
        return layer.obstacle
    if layer.kind not in KINDS:
        return f"a layer of kind {layer.kind} shares no input factor"
    stored = layer.storage
    if stored.shape[stored.order[0]] != layer.kernel_shape[0]:
        return "its input has more than one axis, which others may merge in another order"
    return None


def form_problem(form: Form | None) -> str | None:
    """Why factors of such a form cannot be shared; None where they can."""
    if form is None or (form.method, form.splits) != ("svd", 1):
        return "only the factors of a plain svd are shared"
    if form.nonzeros:
        return "shared factors take no sparse correction"
    return None


def group_problem(layers: Sequence[Layer]) -> str | None:
    """Why layers cannot share one input factor, as far as shapes tell; None where they can."""
    if len(layers) < 2:
        return "an input factor is shared by two layers or more"
    for layer in layers:
        problem = sharing_problem(layer)
        if problem is not None:
            return f"layer {layer.path!r}: {problem}"
    first, *others = layers
    for other in others:
        if _input_of(other) != _input_of(first):
            return f"layers {first.path!r} and {other.path!r} do not read the same input"
    return None


def _input_of(layer: Layer) -> tuple[object, ...]:
    """What layers that read the same input have in common."""
    return layer.kernel_shape[0], layer.positions, layer.copies, layer.storage.stack is None


def joined(layers: Sequence[Layer]) -> Layer:
    """The matrices of layers side by side as one layer, (D, T_1 + T_2 + ...).

    The layers of a stack lie along its first axis.
    """
    first = layers[0]
    shape = (first.kernel_shape[0], sum(layer.kernel_shape[-1] for layer in layers))
    stack = None if first.storage.stack is None else 0
    return Layer(
        " + ".join(layer.path for layer in layers),
        "dense",
        shape,
        positions=first.positions,
        stored=Storage("kernel", shape, (0, 1), stack=stack, copies=first.copies),
    )


class Steps(NamedTuple):
    """The way from a layer to another.

    Arguments:
        up: how many modules up.
        down: the names from there.
    """

    up: int
    down: tuple[str, ...]


def steps(path: str, other: str) -> Steps:
    """The way from a layer to another, by their paths, the second of which may begin with '..'."""
    own, names = path.split("/") if path else [], other.split("/")
    if names[0] == UP:
        up = names.count(UP)
        return Steps(up, tuple(names[up:]))
    pairs = zip(own, names, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Steps(len(own) - common, tuple(names[common:]))


def relative(path: str, other: str) -> str:
    """The path of a layer as seen from another, which begins with '..'."""
    way = steps(path, other)
    return "/".join([UP] * way.up + list(way.down))
