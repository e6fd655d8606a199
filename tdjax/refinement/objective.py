"""How far the small network's answers are from those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.arguments.described import described, is_array
from tdjax.decompose.scale import at_least_single
from tdjax.moments.weighing import weighed, weights_of_rows
from tdjax.trace.mixed import Replacement


@runtime_checkable
class Network(Protocol):
    """A model as a static argument, its variables apart: what an adapter makes of one."""

    def outputs(self, variables: Any, inputs: Any) -> Any:
        """What the model returns for one batch."""


@runtime_checkable
class Modular(Network, Protocol):
    """One whose modules can be looked into."""

    def module_outputs(
        self, variables: Any, paths: Sequence[str], inputs: Any, replaced: Replacement | None = None
    ) -> tuple[Any, dict[str, list[Any]]]:
        """What `outputs` does, and for each path what the module there made, call by call."""


class Answers(NamedTuple):
    """What a network makes of a batch.

    Arguments:
        outputs: what it returns; None where that is not compared.
        features: what the modules that are compared return, by path and call.
    """

    outputs: Any
    features: dict[str, list[Any]]


class Sums(NamedTuple):
    """Of each term of a loss, over weighed rows; the term is the quotient of the two.

    Arguments:
        errors: (terms,).
        scales: (terms,), sums of weights, or of the squares of what the dense network answers.
    """

    errors: Float[Array, " n"]
    scales: Float[Array, " n"]


@dataclass(frozen=True)
class Objective:
    """What is compared, and how; hashable.

    Arguments:
        loss: of the outputs: "mse", relative to their own mean square, "kl" of softmax, or a
            function of both outputs; None where features alone are compared.
        temperature: of the softmax.
        features: paths of modules, and what each counts.
    """

    loss: str | Callable[[Any, Any], Any] | None
    temperature: float = 1.0
    features: tuple[tuple[str, float], ...] = ()

    def ask(
        self, network: Network, variables: Any, inputs: Any, replaced: Replacement | None = None
    ) -> Answers:
        """What is compared of a network's answers. Raises ValueError for a module without.

        Arguments:
            replaced: what some modules return in place of what they made.
        """
        paths = [path for path, _ in self.features]
        if not paths:
            return Answers(self._asked(network.outputs(variables, inputs)), {})
        outputs, found = called_modules(network, variables, paths, inputs, replaced)
        return Answers(self._asked(outputs), {path: _numbers(found[path]) for path in paths})

    def _asked(self, outputs: Any) -> Any:
        """Of outputs what the loss is of."""
        return _numbers(outputs) if isinstance(self.loss, str) else outputs if self.loss else None

    def sums(self, small: Answers, dense: Answers, weights: Float[Array, " b *_"]) -> Sums:
        """The sums of all terms, of the outputs first."""
        found = [*self._of_outputs(small.outputs, dense.outputs, weights)]
        for path, _ in self.features:
            pairs = zip(small.features[path], dense.features[path], strict=True)
            found += [_squares(*pair, weights) for pair in pairs]
        errors, scales = zip(*found, strict=True)
        return Sums(jnp.stack(errors), jnp.stack(scales))

    def value(self, sums: Sums, dense: Answers) -> Float[Array, ""]:
        """The loss.

        Arguments:
            dense: answers that the sums are of, or their shapes.
        """
        scales = jnp.maximum(sums.scales, jnp.finfo(sums.scales.dtype).tiny)
        counts = jnp.asarray(self._counts(dense), sums.errors.dtype)
        return jnp.vdot(counts, sums.errors / scales)

    def _counts(self, dense: Answers) -> list[float]:
        """What each term counts."""
        counts = [1.0] if callable(self.loss) else []
        if isinstance(self.loss, str):
            counts = [1 / len(dense.outputs)] * len(dense.outputs)
        for path, count in self.features:
            number = len(dense.features[path])
            counts += [count / number] * number
        return counts

    def _of_outputs(self, small: Any, dense: Any, weights: Array) -> Iterator[tuple[Array, Array]]:
        if callable(self.loss):
            rows = _checked(self.loss(small, dense), len(weights))
            yield _sums(rows, jnp.ones_like(rows), weights)
        elif self.loss is not None:
            for own, wanted in zip(small, dense, strict=True):
                if self.loss == "mse":
                    yield _squares(own, wanted, weights)
                else:
                    rows = _divergence(own, wanted, self.temperature)
                    yield _sums(rows, jnp.ones_like(rows), weights)


def called_modules(
    network: Network,
    variables: Any,
    paths: Sequence[str],
    inputs: Any,
    replaced: Replacement | None = None,
) -> tuple[Any, dict[str, list[Any]]]:
    """See `Modular.module_outputs`. Raises ValueError for a module that is not called."""
    assert isinstance(network, Modular)
    outputs, found = network.module_outputs(variables, paths, inputs, replaced)
    for path in paths:
        if not found[path]:
            raise ValueError(
                f"refine: the model does not call {path!r}, or only inside a loop: match the "
                "outputs of another module"
            )
    return outputs, found


def _numbers(outputs: Any) -> list[Any]:
    """The arrays of numbers among outputs. Raises ValueError where there are none."""
    leaves = [leaf for leaf in jax.tree.leaves(outputs) if is_array(leaf) and leaf.shape]
    found = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not found:
        raise ValueError(
            "refine: the model puts out no numbers for each example: pass a loss, or loss=None "
            "and features"
        )
    return found


def _squares(small: Array, dense: Array, weights: Array) -> tuple[Array, Array]:
    """Sums of squares of the change, and of what the dense network answers."""
    small, dense = at_least_single(small), at_least_single(dense)
    axis = -1 if dense.ndim > 1 else ()
    rows = jnp.sum((small - dense) ** 2, axis=axis)
    return _sums(rows, jnp.sum(dense**2, axis=axis), weights)


def _divergence(small: Array, dense: Array, temperature: float) -> Float[Array, "*_"]:
    """KL of the softmax of both, times the temperature's square, which the gradient lacks."""
    if dense.ndim < 2:
        raise ValueError(
            f'refine: loss "kl" takes logits (batch, ..., classes), the model puts out '
            f'{described(dense)}: pass loss="mse"'
        )
    wanted = jax.nn.log_softmax(at_least_single(dense) / temperature)
    own = jax.nn.log_softmax(at_least_single(small) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - own), axis=-1)


def _sums(rows: Array, scales: Array, weights: Array) -> tuple[Array, Array]:
    own = weights_of_rows(weights, rows.shape).astype(rows.dtype)
    return jnp.sum(weighed(rows.reshape(-1), own)), jnp.sum(weighed(scales.reshape(-1), own))


def _checked(values: Any, number: int) -> Array:
    wanted = f"return the losses of the examples, floats of shape ({number},)"
    if not is_array(values) or not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"refine: loss returned {described(values)}: {wanted}")
    if values.shape[:1] != (number,):
        raise ValueError(f"refine: loss returned {described(values)}: {wanted}")
    return at_least_single(values)
