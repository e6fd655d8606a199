"""How good outputs are: a loss and a metric of each example, ours by name or of your own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.network.own import is_own, own_function
from experiments.workdir.fields import FieldError
from tdjax.files import one_line

# (outputs, labels) of a batch -> a number for each example.
OfExamples = Callable[[Any, Any], Any]


def example_scores(
    logits: Float[Array, "b k"], labels: Int[Array, " b"] | Float[Array, " b"]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """For each example whether it is classified right (1 or 0), and its loss.

    Labels that are integers are classes, and the loss is the cross-entropy; the first of the
    highest logits decides, logits that are not finite are wrong. Labels that are floats are
    numbers that the one output predicts, and the loss is the squared error; what is right is NaN.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        loss = jnp.square(logits[:, 0] - labels)
        return jnp.full_like(loss, jnp.nan), loss
    right = (jnp.argmax(logits, axis=-1) == labels) & jnp.isfinite(logits).all(axis=-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return right.astype(jnp.float32), loss


def _accuracy(outputs: Any, labels: Any) -> Any:
    return example_scores(outputs, labels)[0]


def _cross_entropy(outputs: Any, labels: Any) -> Any:
    return example_scores(outputs, labels)[1]


def _of_labels(outputs: Any, labels: Any) -> Any:
    """The outputs, where there is one for each label."""
    if math.prod(outputs.shape) != math.prod(labels.shape):
        raise ValueError(
            f"outputs of shape {outputs.shape} for labels of shape {labels.shape}: one for each "
            "label is needed"
        )
    return outputs.reshape(labels.shape)


def _mean(values: Any) -> Any:
    return values.reshape(len(values), -1).mean(axis=1)


def _squared_error(outputs: Any, labels: Any) -> Any:
    return _mean(jnp.square(_of_labels(outputs, labels) - labels))


def _binary_cross_entropy(outputs: Any, labels: Any) -> Any:
    logits = _of_labels(outputs, labels)
    return _mean(optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype)))


def _binary_accuracy(outputs: Any, labels: Any) -> Any:
    logits = _of_labels(outputs, labels)
    return _mean(((logits > 0) == (labels > 0)) & jnp.isfinite(logits))


@dataclass(frozen=True)
class ExplainedVariance:
    """1 less the squared error over the variance of the labels that were trained on."""

    variance: float

    def __call__(self, outputs: Any, labels: Any) -> Any:
        """Of each example; what is not finite explains nothing."""
        error = _squared_error(outputs, labels)
        return jnp.where(jnp.isfinite(error), 1 - error / self.variance, -jnp.inf)


LOSSES: dict[str, OfExamples] = {
    "cross_entropy": _cross_entropy,
    "squared_error": _squared_error,
    "binary_cross_entropy": _binary_cross_entropy,
}
METRICS: dict[str, Any] = {
    "accuracy": _accuracy,
    "explained_variance": ExplainedVariance,
    "binary_accuracy": _binary_accuracy,
}
# The metric of a loss that names none.
OF_LOSS = dict(zip(LOSSES, METRICS, strict=True))


@dataclass(frozen=True)
class Judge:
    """A loss and a metric; by default those of `example_scores`.

    Arguments:
        metric: the share of each example that is right, see `bounded`.
    """

    loss: OfExamples | None = None
    metric: OfExamples | None = None

    def __call__(self, outputs: Any, labels: Any) -> tuple[Array, Array]:
        """Metric and loss of each example."""
        if self.loss is None and self.metric is None:
            return example_scores(outputs, labels)
        metric, loss = self.metric or _accuracy, self.loss or _cross_entropy
        return metric(outputs, labels), loss(outputs, labels)

    def chance(self, labels: np.ndarray) -> float | None:
        """What is no better than chance on so many labels; None where that is not known.

        Of classes the share of the most frequent one and two standard errors.
        """
        if isinstance(self.metric, ExplainedVariance):
            return 0.0
        classes = np.ndim(labels) == 1 and np.issubdtype(labels.dtype, np.integer)
        if self.metric not in (None, _accuracy) or not classes:
            return None
        share = float(np.bincount(labels).max() / len(labels))
        return share + 2 * math.sqrt(share * (1 - share) / len(labels))

    def bounded(self, means: Float[np.ndarray, " runs"]) -> Float[np.ndarray, " runs"]:
        """Means of the metric: what explains less than nothing, or is not finite, explains nothing.

        Raises ValueError for a metric of your own that is no share.
        """
        if self.metric is None:
            return means
        if not isinstance(self.metric, ExplainedVariance) and ((means < 0) | (means > 1)).any():
            raise ValueError(f"the metric is {means.max()}; a share from 0 to 1 is needed")
        return np.clip(np.nan_to_num(means, nan=0.0, neginf=0.0), 0.0, 1.0)


# What labels that are classes have, if nothing else is asked for.
BY_CLASS = Judge()


@dataclass(frozen=True)
class ScoresOf:
    """Metric and loss of the examples of a batch, whose second entry is the labels."""

    judge: Judge

    def __call__(self, outputs: Any, batch: Any) -> tuple[Array, Array]:
        """As of `Judge`."""
        return self.judge(outputs, batch[1])


@dataclass(frozen=True)
class LossOf:
    """The loss of the examples of a batch, whose second entry is the labels."""

    judge: Judge

    def __call__(self, outputs: Any, batch: Any) -> Array:
        """As of `Judge`."""
        return self.judge(outputs, batch[1])[1]


def judge_of(loss: str | None, metric: str | None, labels: np.ndarray) -> Judge:
    """The loss and metric that settings name.

    Arguments:
        labels: those that are trained on.

    Raises FieldError for a function that is not there, and a loss of your own without a metric.
    """
    if loss is None and metric is None:
        return BY_CLASS
    if metric is None:
        if loss not in OF_LOSS:
            raise FieldError("metric", f"is None: a loss of your own, {loss!r}, needs one")
        metric = OF_LOSS[loss]
    made = _named("metric", metric, METRICS)
    if made is ExplainedVariance:
        variance = float(np.var(labels, axis=0, dtype=np.float64).mean())
        if not variance > 0:
            raise FieldError("metric", f"is {metric!r}: the labels that are trained on are equal")
        made = ExplainedVariance(variance)
    return Judge(_named("loss", loss or "cross_entropy", LOSSES), made)


def check_judge(judge: Judge, outputs: Any, labels: Any) -> None:
    """Trace loss and metric with shapes.

    Raises FieldError where one fails, or does not give a number for each example.
    """
    for field, function in (("loss", judge.loss), ("metric", judge.metric)):
        if function is None:
            continue
        try:
            found = jax.eval_shape(function, outputs, labels)
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise FieldError(field, f"fails: {kind}{one_line(error)}") from error
        shape = getattr(found, "shape", None)
        if shape != labels.shape[:1]:
            what = type(found).__name__ if shape is None else f"shape {shape}"
            raise FieldError(
                field, f"gives {what} for {labels.shape[0]} examples: a number for each is needed"
            )


def _named(field: str, name: str, known: dict[str, Any]) -> Any:
    return own_function(field, name) if is_own(name) else known[name]
