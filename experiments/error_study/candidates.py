"""The decompositions of one layer that a study measures, and the networks that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.error_study.protocol import Choice, DecomposeSettings, Run
from experiments.network.arrays import array_of, with_array
from experiments.network.expanded import Expanded
from experiments.network.forward import Apply, Variables
from experiments.network.train_on import named_key
from tdjax.decompose import cp_als
from tdjax.decompose.formats import CP, Format
from tdjax.decompose.padding import cut
from tdjax.params.kernels import decompose_kernel
from tdjax.params.options import Options
from tdjax.plan.chain import chain_of
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import format_chain

Factors = list[Format]
"""The decompositions of a layer's feature groups."""


@dataclass(frozen=True)
class CompressedNetwork(Expanded):
    """A network in which one layer's kernel is multiplied out from factors; an `Apply`.

    Its parameters are {"dense": all but that kernel, "factors": one format a feature group}. It
    computes what the chain of thin layers computes, but at the cost of the dense layer whatever
    the ranks: on small networks the chain is slower, and one program serves all ranks.
    """

    layer: Layer
    form: Form

    @classmethod
    def of(cls, apply: Apply, plan: PlannedLayer) -> CompressedNetwork:
        """With a layer in the form of a plan, at whatever ranks."""
        assert plan.form is not None
        return cls(apply, plan.layer, replace(plan.form, ranks=()))

    def whole(self, params: Any) -> Any:
        """The parameters with the kernel in place of its factors."""
        kernel = format_chain(chain_of(self.layer, self.form)).dense(params["factors"])
        array = self.layer.storage.from_kernel(kernel)
        return with_array(params["dense"], self.layer, array)


def decompose_runs(
    kernel: Float[Array, "*_"],
    plans: Mapping[Choice, PlannedLayer],
    runs_of: Callable[[str], int],
    settings: DecomposeSettings,
    key: Array,
) -> dict[Run, Factors]:
    """Decompose one layer's kernel in every choice and run.

    CP starts anew in each run; the other methods are deterministic, their runs share one result.

    Arguments:
        kernel: of the layer that all `plans` are about.
        plans: the choices of one layer.
        runs_of: method -> number of runs.
        key: of the whole study; each choice and run derives its own.
    """
    found: dict[Run, Factors] = {}
    # Zero columns stay zero under ALS: starts filled up with them share one compiled program.
    widest = max((p.ranks[0] for p in plans.values() if p.method == "cp"), default=0)
    for choice, plan in plans.items():
        runs = range(runs_of(choice.method))
        if plan.method == "cp":
            for run in runs:
                own = choice_key(key, choice, run)
                found[choice, run] = _cp_factors(kernel, plan, widest, settings, own)
        else:
            options = Options(max_iters=settings.tucker_iters, tol=settings.tol)
            shared = decompose_kernel(kernel, plan, options)
            found |= {(choice, run): shared for run in runs}
    return found


def choice_key(key: Array, choice: Choice, run: int) -> Array:
    """A key that depends on nothing but the study's key, the choice and the run."""
    return named_key(key, f"{choice}, run {run}")


def widened(factors: Factors, others: Sequence[Factors]) -> Factors:
    """The same factors filled up with zeros to the largest ranks among others of their kind.

    Filled up, all ranks of a method share one training program. The zeros stay zero: the gradient
    of each has another of them as a factor.
    """

    # By NumPy: of JAX, each pair of shapes would be a program.
    def fill(leaf: Array, *leaves: Array) -> np.ndarray:
        target = [max(sizes) for sizes in zip(*(x.shape for x in leaves), strict=True)]
        pads = [(0, t - n) for n, t in zip(leaf.shape, target, strict=True)]
        return np.pad(np.asarray(leaf), pads)

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
    (rank,) = plan.ranks
    factors: Factors = []
    chain = format_chain(plan.chain)
    for group, part in enumerate(chain.split_groups(kernel)):
        tensor = chain.tensor_view(part)
        start = _cp_start(
            jax.random.fold_in(key, group), rank,
            shape=tensor.shape, widest=widest, init=settings.cp_init,
        )  # fmt: skip
        cp, _ = cp_als(tensor, widest, init=start, max_iters=settings.max_iters, tol=settings.tol)
        factors.append(CP(cut(cp.factors, ((None, rank),) * tensor.ndim)))
    return factors


@partial(jax.jit, static_argnames=("shape", "widest", "init"))
def _cp_start(key: Array, rank: int, *, shape: tuple[int, ...], widest: int, init: str) -> CP:
    """Random factors of a rank, and zero columns up to the widest."""
    draw = jax.random.uniform if init == "random" else jax.random.normal
    columns = jnp.arange(widest)

    def factor(key: Array, size: int) -> Array:
        # The numbers are those of an array (size, rank), of which each depends on its place alone:
        # one program draws them for all ranks.
        drawn = draw(key, (size * widest,))
        places = jnp.arange(size)[:, None] * rank + columns
        return jnp.where(columns < rank, drawn[places], 0.0)

    keys = jax.random.split(key, len(shape))
    return CP(tuple(factor(own, size) for own, size in zip(keys, shape, strict=True)))
