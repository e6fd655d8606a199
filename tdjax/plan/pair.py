"""Pairs of layers between which fewer numbers pass: what is theirs, and the chains they become.

What producers put out, (..., T), goes through functions of the model's own into one consumer. The
producers compute some of it alone, at the front of each of `splits` equal parts of T, and fill up
with zeros; the consumer reads those places alone. So nothing between the two has to change. Of
query and key, whose outputs are multiplied with each other, both are filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.plan.form import PAIRED, SCORES, Form
from tdjax.plan.layers import LEAF, Layer, Storage
from tdjax.plan.stage import Chain, Kernels, Stage

# Whose thin layers module systems make, each with its rows as they come.
KINDS = ("dense", "dense_general", "einsum")
# The end of the methods of producers, and of consumers.
OUT, IN = "_out", "_in"
# The methods of layers that fill up with zeros what they put out.
PUTTING_OUT = frozenset([*SCORES, *(method for method in PAIRED if method.endswith(OUT))])


class Pair(NamedTuple):
    """Layers that put something out, and the one that alone reads it.

    >>> import tdjax
    >>> print(tdjax.Pair(("gate", "up"), "down"))
    gate + up -> down
    >>> print(tdjax.Pair(("value",), "out", heads=8, repeats=4))
    value -> out, each head 4 times

    Arguments:
        producers: paths, as of up and gate of an MLP, or of the value of an attention.
        consumer: path, as of down, or of the output projection; of the key, with `scores`.
        heads: the number of heads, each of whose outputs may be mixed among themselves, as nothing
            but sums over tokens lies between; None where a function of each single output does, so
            that they are kept or left out. With `scores` those of the key.
        scores: whether the outputs of the only producer, a query, and of the other layer, a key,
            are multiplied with each other, head by head.
        repeats: how many heads of queries share each head, one after the other: so often a consumer
            reads one of values, in sums of its own, and so many heads of a query meet one of a key.
    """

    producers: tuple[str, ...]
    consumer: str
    heads: int | None = None
    scores: bool = False
    repeats: int = 1

    @property
    def parts(self) -> tuple[int, int]:
        """The parts of what producers put out, and of what the consumer reads; of query and key."""
        heads = self.heads or 1
        several = heads * self.repeats
        return (several, heads) if self.scores else (heads, several)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all of its layers, the consumer last."""
        return (*self.producers, self.consumer)

    def __str__(self) -> str:
        """As in "gate + up -> down"."""
        between = "*" if self.scores else "->"
        often = f", each head {self.repeats} times" if self.repeats != 1 else ""
        return f"{' + '.join(self.producers)} {between} {self.consumer}{often}"


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raise TypeError for what is no pair."""
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise TypeError(f"a pair is a tdjax.Pair, got {pair!r}")


def pair_problem(producers: Sequence[Layer], consumer: Layer, pair: Pair) -> str | None:
    """Why layers are no such pair, as far as shapes tell; None where they are."""
    heads, scores, repeats = pair.heads, pair.scores, pair.repeats
    if not producers:
        return "a pair has a layer that puts something out"
    if scores and (heads is None or len(producers) > 1):
        return "scores are those of one query and one key, in so many heads"
    if repeats < 1:
        return f"a head that {repeats} heads share passes nothing"
    if repeats > 1 and heads is None:
        return "of heads alone several share one"
    width = consumer.kernel_shape[-1 if scores else 0]
    for layer in (*producers, consumer):
        problem = layer_problem(layer)
        if problem is None and layer.positions != consumer.positions:
            problem = f"it is not called as often as {consumer.path!r}"
        if problem is None and _stack_of(layer) != _stack_of(consumer):
            problem = f"it lies in another stack of layers than {consumer.path!r}"
        if problem is not None:
            return f"layer {layer.path!r}: {problem}"
    for layer in producers:
        made = layer.kernel_shape[-1]
        own, other = (1, repeats) if scores else (repeats, 1)
        if made * own != width * other:
            first, second = (f" {n} times" if n > 1 else "" for n in (own, other))
            return (
                f"layer {layer.path!r} puts out {made} features{first}, but "
                f"{consumer.path!r} {'puts out' if scores else 'reads'} {width}{second}"
            )
        least = min(made, width)
        if heads is not None and (heads < 1 or least % heads):
            return f"{heads} heads do not divide {least} features"
    return None


def layer_problem(layer: Layer) -> str | None:
    """Why a layer can be in no pair; None where it can."""
    if layer.obstacle is not None:
        return layer.obstacle
    if layer.kind not in KINDS:
        return f"a layer of kind {layer.kind} is in no pair"
    if layer.storage.name == LEAF:
        return "what is added to the product with an array is not known"
    if layer.storage.stack not in (None, 0):
        return f"it is stacked along axis {layer.storage.stack}"
    return None


def paired_obstacle(layer: Layer, form: Form) -> str | None:
    """Why a layer cannot have a form of a pair; None where it can."""
    problem = layer_problem(layer)
    if problem is None:
        width = layer.kernel_shape[-1 if form.method in PUTTING_OUT else 0]
        if width % form.splits:
            problem = f"{form.splits} heads do not divide {width} features"
    return problem


def feeding_problem(form: Form | None, feeds: str | None) -> str | None:
    """Why a layer of such a form cannot feed another, or has to; None where all fits."""
    producer = form is not None and form.method in PAIRED and form.method.endswith(OUT)
    if producer != (feeds is not None):
        return "what a pair's layer puts out is read by one that it names, and that of no other"
    return None


def _stack_of(layer: Layer) -> tuple[object, ...]:
    return layer.copies, layer.storage.stack is None


def pair_layer(producers: Sequence[Layer], consumer: Layer, pair: Pair) -> Layer:
    """A pair to a budget: one layer that reads what passes, and has all of their weights."""
    width, rest = consumer.kernel_shape[:: -1 if pair.scores else 1]
    made = sum(layer.kernel_shape[0] for layer in producers)
    # Where several heads share one, what has the several has as many numbers for each feature.
    if pair.scores:
        columns = pair.repeats * made + rest
    else:
        width, columns = width // pair.repeats, made + pair.repeats * rest
    paths = (layer.path for layer in (*producers, consumer))
    shape = (width, columns)
    return Layer(
        " -> ".join(paths),
        "dense",
        shape,
        positions=consumer.positions,
        stored=Storage(
            "kernel",
            shape,
            (0, 1),
            stack=None if consumer.storage.stack is None else 0,
            copies=consumer.copies,
        ),
    )


def method_of(pair: Pair, end: str) -> str:
    """The method of a pair's layers at one end, `OUT` or `IN`."""
    if pair.scores:
        return f"scores{end}"
    return ("units" if pair.heads is None else "heads") + end


def other_end(method: str) -> str:
    """The method of a consumer, from that of its producers."""
    return method.removesuffix(OUT) + IN


class PairChain(Chain):
    """One thin layer, which puts out or reads the front of each part alone."""

    STAGE: ClassVar[str] = "kept"

    @property
    def puts_out(self) -> bool:
        """Whether it fills up with zeros what it puts out."""
        return self.form.method in PUTTING_OUT

    @property
    def rank_shape(self) -> tuple[int, ...]:
        """(features of a part,)."""
        width = self.layer.kernel_shape[-1 if self.puts_out else 0]
        return (width // self.form.splits,)

    def rows_in(self, rows: Any) -> Any:
        """Of what a consumer is given, what it reads."""
        return rows if self.puts_out else self._front(rows)

    def rows_out(self, rows: Any) -> Any:
        """What a producer computes, with zeros in the other places."""
        return self._filled(rows) if self.puts_out else rows

    def reconstruct(self, kernels: Kernels) -> Float[Array, "*_"]:
        """The dense kernel, with zeros for what is not put out, or not read."""
        kernel = kernels[self.STAGE]
        return self._filled(kernel) if self.puts_out else self._filled(kernel.T).T

    def _front(self, rows: Any) -> Any:
        (rank,) = self.form.ranks
        parts = rows.reshape(*rows.shape[:-1], self.form.splits, -1)[..., :rank]
        return parts.reshape(*rows.shape[:-1], -1)

    def _filled(self, rows: Any) -> Any:
        (rank,), (size,) = self.form.ranks, self.rank_shape
        parts = rows.reshape(*rows.shape[:-1], self.form.splits, rank)
        ends = [(0, 0)] * (parts.ndim - 1)
        return jnp.pad(parts, [*ends, (0, size - rank)]).reshape(*rows.shape[:-1], -1)

    def _stages(self) -> tuple[Stage, ...]:
        inputs, outputs = self.layer.kernel_shape
        kept = self.form.splits * self.form.ranks[0]
        shape = (inputs, kept) if self.puts_out else (kept, outputs)
        return (Stage(self.STAGE, shape, 1, ()),)
