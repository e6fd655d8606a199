"""What is known of each layer: its indices, how far it can be pruned, how loose the bound is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from experiments.compressibility.settings import Compressibility
from experiments.data import Inputs
from experiments.network.forward import Forward, Variables
from experiments.network.judge import ScoresOf
from experiments.network.network import Network
from tdjax.dispatch import evaluate_candidates
from tdjax.dispatch.models import room_of
from tdjax.plan.layers import Layer
from tdjax.pruning.bounds import pruning_error_bound
from tdjax.pruning.indices import effective_number, pq_index, sparsity_index
from tdjax.pruning.magnitude import adaptive_prune, magnitude_prune
from tdjax.pruning.masks import apply_mask
from tdjax.pruning.prunable import Leaf, prunable

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, eq=False)
class Layers:
    """A trained network's layers, and images that go through them.

    Arguments:
        table: its layers.
        leaves: the arrays that can be pruned.
        images: calibration images, in batches.
        bounds: by path, the largest absolute value of a layer's inputs on them.
        scales: by path, the root mean square of its outputs.
    """

    network: Network
    model: Variables
    table: Sequence[Layer]
    leaves: Sequence[Leaf]
    images: Sequence[Inputs]
    bounds: Mapping[str, float]
    scales: Mapping[str, float]

    @property
    def relative_bounds(self) -> dict[str, float]:
        """The bounds in units of the layers' outputs; 1 where one of them is 0."""
        pairs = {path: (limit, self.scales[path]) for path, limit in self.bounds.items()}
        return {path: a / b if a and b else 1.0 for path, (a, b) in pairs.items()}

    def units(self, params: Any, leaf: Leaf) -> Shaped[Array, "d n"]:
        """The weights of a layer, or its mask, one neuron in each column."""
        return leaf.to_units(jax.tree.leaves(params)[leaf.place], "neuron")


def kernels(params: Any, layers: Sequence[Layer] | None = None) -> dict[str, np.ndarray]:
    """The arrays that can be pruned, by path of their layer; without a layer table, by name."""
    leaves = jax.tree.leaves(params)
    return {leaf.path: np.asarray(leaves[leaf.place]) for leaf in prunable(params, layers, ".*")}


def leaves_of(network: Network, model: Variables) -> Sequence[Leaf]:
    """The arrays of a network that can be pruned, in forward order."""
    return prunable(model.params, [entry.layer for entry in network.dense.layers], ".*")


def layers_of(network: Network, model: Variables, images: Sequence[Inputs]) -> Layers:
    """A network's layers, with the ranges of their inputs and outputs."""
    table = [entry.layer for entry in network.dense.layers]
    leaves = leaves_of(network, model)
    paths = tuple(leaf.path for leaf in leaves)
    batches = [_ranges(network.apply, paths, model, one) for one in images]
    bounds, scales = {}, {}
    for path in paths:
        limits, squares, counts = zip(*(batch[path] for batch in batches), strict=True)
        bounds[path] = float(max(limits))
        scales[path] = float(np.sqrt(sum(squares) / sum(counts)))
    return Layers(network, model, table, leaves, images, bounds, scales)


def layer_records(
    settings: Compressibility, layers: Layers, run: int, whole: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One record for each layer of a network.

    Arguments:
        whole: performance of the network as it is, see `measure.measured`.
    """
    reached = _reached_shares(settings, layers, whole)
    loose = _looseness(settings, layers)
    return [
        {
            "kind": "layer",
            "run": run,
            "layer": leaf.path,
            "inputs": int(units.shape[0]),
            "neurons": int(units.shape[1]),
            "reached": reached[leaf.path],
            "by_q": [
                {"q": q, **_indices(units, q), "looseness": loose[leaf.path, q]}
                for q in settings.qs
            ],
        }
        for leaf in layers.leaves
        for units in [layers.units(layers.model.params, leaf)]
    ]


def _indices(units: Float[Array, "d n"], q: float) -> dict[str, Any]:
    """Means over the neurons; of the effective number its quantiles too."""
    number = np.asarray(effective_number(units, q))
    return {
        "sparsity_index": float(sparsity_index(units, q).mean()),
        "pq_index": float(pq_index(units, q).mean()),
        "effective_number": float(number.mean()),
        "effective_quantiles": [float(value) for value in np.quantile(number, QUANTILES)],
    }


def _reached_shares(
    settings: Compressibility, layers: Layers, whole: Mapping[str, Any]
) -> dict[str, float]:
    """How much of each layer alone can go, the smallest weights first, within the tolerance.

    The largest of the shares tried up to which no share costs more; 0 where the first does.
    """
    params, test = layers.model.params, layers.network.splits.test
    steps = np.arange(1, settings.layer_steps + 1) / (settings.layer_steps + 1)
    masks = [magnitude_prune(params, float(share), layers=layers.table) for share in steps]
    tried = [kernels(apply_mask(params, mask), layers.table) for mask in masks]
    batches = test.batches(settings.test.batch_size)
    reached = {}
    for leaf in layers.leaves:
        right, loss = layers.network.call(
            evaluate_candidates,
            layers.model,
            leaf.path,
            jnp.stack([one[leaf.path] for one in tried]),
            batches,
            ScoresOf(layers.network.judge),
            progress=False,
        )
        if settings.predicts_numbers:
            within = loss <= (1 + settings.tolerance) * whole["loss"]
        else:
            within = right >= whole["accuracy"] - settings.tolerance - 1e-9
        count = len(steps) if within.all() else int(np.argmin(within))
        reached[leaf.path] = float(steps[count - 1]) if count else 0.0
    return reached


def _looseness(
    settings: Compressibility, layers: Layers
) -> dict[tuple[str, float], dict[str, Any]]:
    """By layer and q, the error bound of "abp-m" with eta 0 over the worst error measured.

    Beside it the sum of the absolute weights that went, times the inputs' bound, over the same.
    Neurons without an error are left out.
    """
    params, apply = layers.model.params, layers.network.apply
    found = {}
    for q in settings.qs:
        mask = adaptive_prune(params, q, layers=layers.table)
        others = kernels(apply_mask(params, mask), layers.table)
        batches = [_worst_errors(apply, layers.model, others, one) for one in layers.images]
        for leaf in layers.leaves:
            worst = np.max([batch[leaf.path] for batch in batches], axis=0)
            whole, kept = layers.units(params, leaf), layers.units(mask, leaf)
            limit, wrong = layers.bounds[leaf.path], worst > 0
            bound = pruning_error_bound(whole, kept.sum(axis=0), q, limit) if limit else worst
            tail = limit * jnp.where(kept, 0, jnp.abs(whole)).sum(axis=0)
            found[leaf.path, q] = {
                "neurons": int(wrong.sum()),
                "bound": _range(np.asarray(bound)[wrong] / worst[wrong]),
                "tail": _range(np.asarray(tail)[wrong] / worst[wrong]),
            }
    return found


def _range(values: np.ndarray) -> list[float] | None:
    """Median, least, most."""
    return [float(f(values)) for f in (np.median, np.min, np.max)] if len(values) else None


@partial(jax.jit, static_argnames="apply")
def _worst_errors(
    apply: Forward, model: Variables, others: Mapping[str, Array], images: Inputs
) -> dict[str, Float[Array, " n"]]:
    """The largest change of each neuron's output when its layer has another kernel."""
    subject = apply.subject(model)
    network, arrays = room_of(subject[0]).network_of(*subject)
    pairs = network.layer_outputs(arrays, others, images)
    return {
        path: jnp.stack([jnp.abs(a - b).reshape(-1, a.shape[-1]).max(axis=0) for a, b in own]).max(
            axis=0
        )
        for path, own in pairs.items()
    }


@partial(jax.jit, static_argnames=("apply", "paths"))
def _ranges(
    apply: Forward, paths: tuple[str, ...], model: Variables, images: Inputs
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]]:
    """Of each layer the largest absolute input, the sum of the outputs' squares, their number."""
    found = dict.fromkeys(paths, (jnp.zeros(()),) * 3)

    def keep(path: str, inputs: Array, outputs: Array) -> None:
        if path in found:
            limit, squares, count = found[path]
            found[path] = (
                jnp.maximum(limit, jnp.abs(inputs).max()),
                squares + jnp.square(outputs).sum(),
                count + outputs.size,
            )

    apply.watched(model, images, keep)
    return found
