"""Second moments of a convolution's patches, without making the patches.

A patch holds, for every offset k of the window, the pixel under it: x[tap(k, p)] at position p.
The second moment of offsets k and k' is a sum of x[i] x[j]^T over the pairs of pixels
(i, j) = (tap(k, p), tap(k', p)). Most pairs of offsets with one difference meet the same pairs of
pixels, but for those at the border. So the pairs of pixels are cut into pieces that the same
offsets meet, each piece is one matrix product, and a 3x3 window takes 13 products of the size of
a channel moment in place of 81. Stride, dilation, padding and groups only change the taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.products import HIGHEST
from tdjax.moments.pairs import assembled, forms, moment, pair_sums, pairs_of
from tdjax.moments.pieces import OUTSIDE, Taps
from tdjax.moments.turns import each_in_turns, in_turns
from tdjax.moments.weighing import weighed, weights_of_rows

# Elements of patches that are held at once.
HELD = 2**24


@dataclass(frozen=True)
class Patches:
    """The patches of a convolution's input.

    Arguments:
        taps: of each spatial axis.
        channels: of one feature group.
        groups: feature groups.
    """

    taps: tuple[Taps, ...]
    channels: int
    groups: int = 1

    @property
    def window(self) -> tuple[int, ...]:
        """Sizes of the window."""
        return tuple(map(len, self.taps))

    @property
    def positions(self) -> int:
        """Number of patches of one example."""
        return math.prod(len(axis[0]) for axis in self.taps)

    @property
    def size(self) -> int:
        """Entries of a patch of one group, D."""
        return math.prod(self.window) * self.channels

    def front(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the axes of the patches in an input of this shape, examples first."""
        return (*shape[: -len(self.taps) - 1], *(len(axis[0]) for axis in self.taps))

    def sums(
        self, x: Float[Array, "*_"], weights: Float[Array, "*_"] | None = None
    ) -> tuple[list[Array], Float[Array, "g d"]]:
        """Sums over all patches, to be added over batches and then `assembled`.

        Arguments:
            x: (..., *spatial, groups * channels); all axes in front are examples.
            weights: of the patches, see `tdjax.moments.weighing`; None where all count as one.

        Returns: parts of the sum of x x^T, and the sum of x, (groups, D), D in the order
            (*window, channels).
        """
        axes = len(self.taps)
        lead, front = x.shape[: -axes - 1], self.front(x.shape)
        x = self._examples(x)
        if weights is None:
            return self._sums(x, x.sum(axis=0))
        if len(lead) < weights.ndim and front[: weights.ndim] == weights.shape:
            own = weights_of_rows(weights, front).reshape(len(x), -1)
            return self._by_position(x, own)
        own = weights_of_rows(weights, lead)
        return self._sums(weighed(x, jnp.sqrt(own)), weighed(x, own).sum(axis=0))

    def _sums(
        self, x: Float[Array, "*_"], total: Float[Array, "*_"]
    ) -> tuple[list[Array], Float[Array, "g d"]]:
        """`sums` of examples whose pixels add up to `total`."""
        for axis, taps in enumerate(self.taps):
            counts = np.zeros((len(taps), x.shape[1 + axis]), x.dtype)
            for k, row in enumerate(taps):
                np.add.at(counts[k], [i for i in row if i != OUTSIDE], 1)
            total = jnp.moveaxis(
                jnp.tensordot(counts, total, axes=(1, axis), precision=HIGHEST), 0, axis
            )
        mean = jnp.moveaxis(total, -2, 0).reshape(self.groups, self.size)
        pairs = pairs_of(self.taps)
        return [self._by_patches(x) if pairs is None else pair_sums(x, pairs)], mean

    def forms(self, x: Float[Array, "*_"], matrix: Float[Array, "g d d"]) -> Float[Array, "n g"]:
        """See `tdjax.moments.rows.FullRows.forms`."""

        def of_examples(x: Float[Array, "*_"]) -> Float[Array, "b p g"]:
            rows = self._patches(x).reshape(-1, self.groups, self.size)
            return forms(rows, matrix).reshape(len(x), -1, self.groups)

        found = each_in_turns(of_examples, self._examples(x), HELD // self._held)
        return found.reshape(-1, self.groups)

    def weighed_sums(
        self, x: Float[Array, "*_"], weights: Float[Array, "n g"]
    ) -> tuple[Float[Array, "g d d"], Float[Array, "g d"]]:
        """See `tdjax.moments.rows.FullRows.weighed_sums`."""
        x = self._examples(x)
        (whole,), total = self._by_position(x, weights.reshape(len(x), -1, self.groups))
        return whole, total

    def assembled(self, parts: Sequence[Array]) -> Float[Array, "g d d"]:
        """The sum of x x^T, (groups, D, D), from its parts."""
        (sums,) = parts
        # From patches it is whole.
        return sums if sums.ndim == 3 else assembled(sums, self.taps)

    def pair_sums(
        self, x: Float[Array, "*_"], y: Float[Array, "*_"], weights: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Sums over the patches of two inputs: of x x^T and x y^T, (groups, D, D), of x and y."""
        k, c = math.prod(self.window), self.channels
        both = jnp.concatenate([z.reshape(*z.shape[:-1], self.groups, c) for z in (x, y)], axis=-1)
        joint = Patches(self.taps, 2 * c, self.groups)
        parts, total = joint.sums(both.reshape(*x.shape[:-1], -1), weights)
        blocks = joint.assembled(parts).reshape(self.groups, k, 2, c, k, 2, c)
        own, cross = (
            blocks[:, :, 0, :, :, end].reshape(self.groups, self.size, self.size) for end in (0, 1)
        )
        total = total.reshape(self.groups, k, 2, c)
        first, second = (total[:, :, end].reshape(self.groups, self.size) for end in (0, 1))
        return own, cross, first, second

    def _by_patches(self, x: Float[Array, "*_"]) -> Float[Array, "g d d"]:
        """The whole sum from patches, of a few examples at a time."""

        def sums(x: Float[Array, "*_"]) -> Float[Array, "g d d"]:
            made = self._patches(x).reshape(-1, self.groups, self.size)
            return moment(made, made)

        return in_turns(sums, x, HELD // self._held)

    def _examples(self, x: Float[Array, "*_"]) -> Float[Array, "n ..."]:
        """The input, (n, *spatial, groups, channels)."""
        x = x.reshape(-1, *x.shape[-len(self.taps) - 1 : -1], self.groups, self.channels)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _by_position(
        self, x: Float[Array, "*_"], weights: Float[Array, "n p ..."]
    ) -> tuple[list[Array], Float[Array, "g d"]]:
        """`sums` from patches with a weight each."""

        def sums(both: tuple[Array, Array]) -> tuple[Array, Array]:
            x, weights = both
            made = self._patches(x).reshape(-1, self.groups, self.size)
            own = weights.reshape(len(made), *weights.shape[2:])
            roots = weighed(made, jnp.sqrt(own))
            return moment(roots, roots), weighed(made, own).sum(axis=0)

        whole, total = in_turns(sums, (x, weights), HELD // self._held)
        return [whole], total

    @property
    def _held(self) -> int:
        """Elements of the patches of one example."""
        return self.positions * self.groups * self.size

    def _patches(self, x: Float[Array, "*_"]) -> Float[Array, " n *_"]:
        """The patches, (n, *positions, groups, *window, channels)."""
        axes = len(self.taps)
        # A row of zeros behind the last pixel, which index -1 finds.
        x = jnp.pad(x, [(0, 0), *[(0, 1)] * axes, (0, 0), (0, 0)])
        for axis, taps in enumerate(self.taps):
            x = jnp.take(x, np.array(taps), axis=1 + 2 * axis)
        order = (*range(2, 2 * axes + 1, 2), 2 * axes + 1, *range(1, 2 * axes + 1, 2))
        return x.transpose(0, *order, 2 * axes + 2)
