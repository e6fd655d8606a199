"""What the choices for layers lose: by their weights and moments, as far as a strategy asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from tdjax.allocation import measures
from tdjax.allocation.choices import AT_SHARES, GROUPED, ChoiceOptions
from tdjax.allocation.free import FreeLayer
from tdjax.decompose.dealing import dealt, on_one_device, shared_devices
from tdjax.decompose.inputs import as_numpy, is_finite
from tdjax.moments.collect import LayerMoments
from tdjax.params.kernels import are_few
from tdjax.plan.layers import Layer
from tdjax.plan.planned import PlannedLayer
from tdjax.progress import Done, Progress, Steps

Errors = Float[np.ndarray, " _"]


class Known(NamedTuple):
    """A free layer, and what its choices are measured by, as far as the strategy asks for it."""

    free: FreeLayer
    array: Any
    moments: LayerMoments | None
    key: Array | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of the layers of a network.

    Arguments:
        strategy, options, moments: see `tdjax.allocation.problem.Problem`.
        array_of: see `tdjax.plan.layers.Inventory`.
    """

    strategy: str
    options: ChoiceOptions
    array_of: Callable[[Layer], Any]
    moments: Mapping[str, LayerMoments] | None

    def without_gradient(self, layer: Layer) -> bool:
        """Whether no example's loss depends on what a layer puts out, as nothing tells ranks then.

        So it is with an embedding at positions that no example decides on.
        """
        return self.strategy == "loss" and self.moments_of(layer).outputs is None

    def moments_of(self, layer: Layer) -> LayerMoments:
        """Of one layer. Raises ValueError where there are none, or none of the gradient."""
        moments = self.moments
        if moments is None or all(found.outputs is None for found in moments.values()):
            raise ValueError(
                "allocate: strategy 'loss' needs moments of the gradient; collect_moments gives "
                "them with a loss_fn"
            )
        if layer.path not in moments:
            raise ValueError(f"allocate: strategy 'loss' needs the moments of layer {layer.path!r}")
        return moments[layer.path]

    def weights_of(self, layer: Layer) -> Any:
        """The array that holds a layer's kernel. Raises ValueError for a shape, and NaN or Inf."""
        array = self.array_of(layer)
        if isinstance(array, jax.ShapeDtypeStruct):
            raise ValueError(
                f"allocate: layer {layer.path!r}: strategy {self.strategy!r} needs its weights"
            )
        if not is_finite(array):
            raise ValueError(f"allocate: layer {layer.path!r}: its weights hold NaN or Inf")
        return array

    def lost(self, layers: Sequence[FreeLayer], progress: Progress) -> list[Errors]:
        """What the choices for some layers lose, 0 for a dense one; measured side by side."""

        def by_numpy(own: Known) -> bool:
            large = (
                choices.method in AT_SHARES
                and not are_few(own.free.layer, choices.ranks.max(axis=0).tolist())
                for choices in own.free.choices
            )
            return self.strategy == "energy" or (self.strategy != "uniform" and not any(large))

        known = [self._known(own) for own in layers]
        _check_gradients([own.moments.outputs for own in known if own.moments is not None])
        devices = shared_devices(known)
        with Steps("allocate", progress).lasting("what formats lose", "layer", len(known)) as tick:
            done = Done(tick)

            def lost(own: Known) -> Errors:
                found = self._errors(own)
                done()
                return found

            return dealt(lost, known, devices, by_numpy, lambda own: own.free.layer.size)

    def rise(self, entry: PlannedLayer) -> float:
        """The predicted rise of the loss by what is decided for a layer."""
        if self.without_gradient(entry.layer):
            return 0.0
        known = self.weights_of(entry.layer), self._finite_moments(entry.layer), self.options.key
        array, moments, key = on_one_device(known)
        return measures.loss_rise(array, entry, key, moments)

    def _finite_moments(self, layer: Layer) -> LayerMoments:
        found = self.moments_of(layer)
        if not all(is_finite(leaf) for leaf in jax.tree.leaves(found)):
            raise ValueError(f"allocate: the moments of layer {layer.path!r} hold NaN or Inf")
        return found

    def _known(self, free: FreeLayer) -> Known:
        if self.strategy == "uniform":
            return Known(free, None, None, None)
        array, key = self.weights_of(free.layer), self.options.key
        of_data = self.strategy not in GROUPED and self.strategy != "energy"
        return Known(free, array, self._finite_moments(free.layer) if of_data else None, key)

    def _errors(self, known: Known) -> Errors:
        (layer, choices), array = (known.free.layer, known.free.choices), known.array
        options = self.options._replace(key=known.key)
        if self.strategy == "uniform":
            found = [measures.uniform(layer, own, options) for own in choices]
        elif self.strategy in GROUPED:
            found = measures.alds(layer, array, choices, options.objective)
        elif self.strategy == "energy":
            found = measures.energy(layer, array, choices, options)
        else:
            assert known.moments is not None
            found = measures.loss(layer, array, choices, options, known.moments)
        return np.concatenate([*found, np.zeros(int(known.free.dense is not None))])


def _check_gradients(moments: Sequence[Array | None]) -> None:
    """Refuse, with a ValueError, gradients that tell no layer from another."""
    outputs = [moment for moment in moments if moment is not None]
    # Mostly the first says enough.
    if outputs and not any(as_numpy(moment).any() for moment in outputs):
        raise ValueError(
            "allocate: strategy 'loss': the gradient of the loss is zero at the outputs of all "
            "layers: a loss has to be differentiable, which accuracy, argmax and rounding are not"
        )
