"""The decompositions of one layer that a study measures, and the networks that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.data import Inputs
from experiments.error_study.protocol import Choice, DecomposeSettings, Key
from experiments.network.arrays import array_of, with_array
from experiments.network.forward import Apply, Variables
from experiments.network.train_on import named_key
from tdjax.decompose import cp_als
from tdjax.decompose.formats import CP, Format
from tdjax.params.kernels import decompose_kernel
from tdjax.params.options import Options
from tdjax.plan.chain import chain_of
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer

Factors = list[Format]
"""The decompositions of a layer's feature groups."""


@dataclass(frozen=True)
class CompressedNetwork:
    """A network in which one layer's kernel is multiplied out from factors; an `Apply`.

    Its parameters are {"dense": all but that kernel, "factors": one format a feature group}. It
    computes what the chain of thin layers computes, but at the cost of the dense layer whatever
    the ranks: on small networks the chain is slower, and one program serves all ranks.
    """

    apply: Apply
    layer: Layer
    form: Form

    @classmethod
    def of(cls, apply: Apply, plan: PlannedLayer) -> CompressedNetwork:
        """With a layer in the form of a plan, at whatever ranks."""
        assert plan.form is not None
        return cls(apply, plan.layer, replace(plan.form, ranks=()))

    def __call__(
        self, params: Any, state: Any, images: Inputs, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the collections after it."""
        kernel = chain_of(self.layer, self.form).dense(params["factors"])
        array = self.layer.storage.from_kernel(kernel)
        return self.apply(with_array(params["dense"], self.layer, array), state, images, key)


def decompose_runs(
    kernel: Float[Array, "*_"],
    plans: Mapping[Choice, PlannedLayer],
    runs: int,
    settings: DecomposeSettings,
    key: Array,
) -> dict[Key, Factors]:
    """Decompose one layer's kernel in every choice and run.

    CP starts anew in each run; the other methods are deterministic, their runs share one result.

    Arguments:
        kernel: of the layer that all `plans` are about.
        plans: the choices of one layer.
        key: of the whole study; each choice and run derives its own.
    """
    found: dict[Key, Factors] = {}
    # Zero columns stay zero under ALS: starts filled up with them share one compiled program.
    widest = max((p.ranks[0] for p in plans.values() if p.method == "cp"), default=0)
    for choice, plan in plans.items():
        if plan.method == "cp":
            for run in range(runs):
                own = choice_key(key, choice, run)
                found[choice, run] = _cp_factors(kernel, plan, widest, settings, own)
        else:
            options = Options(max_iters=settings.tucker_iters, tol=settings.tol)
            shared = decompose_kernel(kernel, plan, options)
            found |= {(choice, run): shared for run in range(runs)}
    return found


def choice_key(key: Array, choice: Choice, run: int) -> Array:
    """A key that depends on nothing but the study's key, the choice and the run."""
    return named_key(key, f"{choice}, run {run}")


def widened(factors: Factors, others: Sequence[Factors]) -> Factors:
    """The same factors filled up with zeros to the largest ranks among others of their kind.

    Filled up, all ranks of a method share one training program. The zeros stay zero: the gradient
    of each has another of them as a factor.
    """

    def fill(leaf: Array, *leaves: Array) -> Array:
        target = [max(sizes) for sizes in zip(*(x.shape for x in leaves), strict=True)]
        return jnp.pad(leaf, [(0, t - n) for n, t in zip(leaf.shape, target, strict=True)])

    return jax.tree.map(fill, factors, *others)


def kernel_of(model: Variables, layer: Layer) -> Float[Array, "*_"]:
    """The kernel of a layer, whatever the array that holds it looks like."""
    return layer.storage.to_kernel(array_of(model.params, layer), layer.kernel_shape)


def without_kernel(params: Any, layer: Layer) -> Any:
    """The parameters of a network with None in place of the kernel of one layer."""
    return with_array(params, layer, None)


def _cp_factors(
    kernel: Float[Array, "*_"],
    plan: PlannedLayer,
    widest: int,
    settings: DecomposeSettings,
    key: Array,
) -> Factors:
    draw = jax.random.uniform if settings.cp_init == "random" else jax.random.normal
    (rank,) = plan.ranks
    factors: Factors = []
    for group, part in enumerate(plan.chain.split_groups(kernel)):
        tensor = plan.chain.tensor_view(part)
        keys = jax.random.split(jax.random.fold_in(key, group), tensor.ndim)
        start = [draw(k, (n, rank)) for k, n in zip(keys, tensor.shape, strict=True)]
        cp, _ = cp_als(
            tensor,
            widest,
            init=CP(tuple(jnp.pad(factor, ((0, 0), (0, widest - rank))) for factor in start)),
            max_iters=settings.max_iters,
            tol=settings.tol,
        )
        factors.append(CP(tuple(factor[:, :rank] for factor in cp.factors)))
    return factors
