"""How layers are decomposed: the options that every function that makes factors takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
from jaxtyping import Array, Float

from tdjax.moments.collect import LayerMoments
from tdjax.progress import SILENT, Steps


@dataclass(frozen=True, kw_only=True)
class Options:
    """How layers are decomposed; what each means says `tdjax.factorize_params`.

    Arguments:
        key: PRNG key for the random starts of CP.
        init: where CP starts.
        max_iters: sweeps at most.
        tol: least change of the error between two sweeps.
        moments: of the layers, by path.
        norm: with moments, "covariance" or "kronecker".
        correct_bias: whether biases take on what the mean outputs lose.
        steps: is told how many layers are done.
    """

    key: Array | None = None
    init: str = "normal"
    max_iters: int = 100
    tol: float | Float[Array, ""] = 1e-6
    moments: Mapping[str, LayerMoments] | None = None
    norm: str | None = None
    correct_bias: bool = False
    steps: Steps = SILENT

    def of_part(self, number: int) -> Options:
        """The same with a key of its own for one of several layers or feature groups."""
        return self if self.key is None else replace(self, key=jax.random.fold_in(self.key, number))


DEFAULTS = Options()
