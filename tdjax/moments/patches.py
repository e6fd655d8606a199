"""Second moments of a convolution's patches, without making the patches.

A patch holds, for every offset k of the window, the pixel under it: x[tap(k, p)] at position p.
The second moment of offsets k and k' is a sum of x[i] x[j]^T over the pairs of pixels
(i, j) = (tap(k, p), tap(k', p)). Most pairs of offsets with one difference meet the same pairs of
pixels, but for those at the border. So the pairs of pixels are cut into pieces that the same
offsets meet, each piece is one matrix product, and a 3x3 window takes 13 products of the size of
a channel moment in place of 81. Stride, dilation, padding and groups only change the taps.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.products import HIGHEST
from tdjax.moments.pieces import OUTSIDE, Piece, Taps, pieces_of
from tdjax.moments.turns import in_turns
from tdjax.moments.weighing import weighed, weights_of_rows

# More products than this cost more than patches of so small channels.
MOST_PIECES = 64
# Products of so few channels are slow, and made together.
NARROW = 128
# Elements that are held at once, of patches and of shifted inputs side by side.
HELD, HELD_BESIDE = 2**24, 2**21


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
        x = x.reshape(-1, *x.shape[-axes - 1 : -1], self.groups, self.channels)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
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
        if not self.products:
            return [self._by_patches(x)], mean
        if not self._shifts:
            return [self._product(x, pieces) for pieces in self.products], mean
        return self._by_shifts(x), mean

    def assembled(self, parts: Sequence[Array]) -> Float[Array, "g d d"]:
        """The sum of x x^T, (groups, D, D), from its parts."""
        if not self.products or parts[0].shape[-1] != self.channels:
            return parts[0]
        offsets, c = math.prod(self.window), self.channels
        blocks: dict[tuple[int, int], Array] = {}
        for pieces, part in zip(self.products, parts, strict=True):
            # Each piece stands for its turned one too, which holds the blocks below the diagonal.
            turned = jnp.swapaxes(part, 1, 2)
            own = tuple(piece.turned for piece in pieces) == pieces
            for meeting in itertools.product(*(piece.offsets for piece in pieces)):
                times = math.prod(number for _, number in meeting)
                first, second = zip(*(pair for pair, _ in meeting), strict=True)
                k, m = self._flat(first), self._flat(second)
                blocks[k, m] = blocks.get((k, m), 0) + times * part
                if not own:
                    blocks[m, k] = blocks.get((m, k), 0) + times * turned
        zero = jnp.zeros((self.groups, c, c), parts[0].dtype)
        rows = [
            jnp.concatenate([blocks.get((k, m), zero) for m in range(offsets)], axis=2)
            for k in range(offsets)
        ]
        return jnp.concatenate(rows, axis=1)

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

    @cached_property
    def products(self) -> tuple[tuple[Piece, ...], ...]:
        """The pieces of all axes in all combinations, one of each and its turned one.

        Empty where patches are made instead.
        """
        by_axis = [pieces_of(taps) for taps in self.taps]
        if math.prod(map(len, by_axis)) > 2 * MOST_PIECES:
            return ()
        found: dict[tuple[Piece, ...], None] = {}
        for pieces in itertools.product(*by_axis):
            if tuple(piece.turned for piece in pieces) not in found:
                found[pieces] = None
        return tuple(found)

    @cached_property
    def _shifts(self) -> dict[tuple[int, ...], list[int]]:
        """The products by the difference of their pixels; empty where shifts do not pay.

        Of each difference the products must cover every pair of pixels inside, as they do where
        the stride is 1.
        """
        sizes = [1 + max(itertools.chain(*taps)) for taps in self.taps]
        found: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, pieces in enumerate(self.products):
            found[tuple(p.second[0] - p.first[0] for p in pieces)].append(number)
        for shift, numbers in found.items():
            inside = math.prod(n - abs(d) for n, d in zip(sizes, shift, strict=True))
            if sum(self._pixels(number) for number in numbers) != inside:
                return {}
        narrow = self.groups == 1 and self.channels <= NARROW
        return dict(found) if narrow and len(found) > 1 else {}

    def _pixels(self, number: int) -> int:
        return math.prod(len(piece.first) for piece in self.products[number])

    def _by_shifts(self, x: Float[Array, "*_"]) -> list[Array]:
        """The products, those of the most pixels of every difference in one wide product.

        Products of few channels are far from the machine's rate. Side by side, shifted inputs
        with zeros around make a wide one; the border pieces, which it also holds, go off again.
        """
        shifts, axes = list(self._shifts), len(self.taps)
        spatial = x.shape[1:-2]

        reach = [max(abs(shift[axis]) for shift in shifts) for axis in range(axes)]

        def shifted(padded: Float[Array, "*_"], shift: Sequence[int]) -> Float[Array, "*_"]:
            for axis, size in enumerate(spatial):
                start = reach[axis] + shift[axis]
                padded = jax.lax.slice_in_dim(padded, start, start + size, axis=1 + axis)
            return padded

        def wide(x: Float[Array, "*_"]) -> Float[Array, "c m"]:
            padded = jnp.pad(x, [(0, 0), *((r, r) for r in reach), (0, 0)])
            beside = jnp.concatenate([shifted(padded, shift) for shift in shifts], axis=-1)
            rows, columns = (y.reshape(-1, y.shape[-1]) for y in (x, beside))
            return jnp.matmul(rows.T, columns, precision=HIGHEST)

        held = math.prod(spatial) * self.channels * len(shifts)
        flat = x.reshape(*x.shape[: axes + 1], self.channels)
        whole = jnp.split(in_turns(wide, flat, HELD_BESIDE // held), len(shifts), axis=1)
        parts: list[Array] = [jnp.zeros(())] * len(self.products)
        for total, numbers in zip(whole, self._shifts.values(), strict=True):
            main = max(numbers, key=self._pixels)
            border = [number for number in numbers if number != main]
            for number in border:
                parts[number] = self._product(x, self.products[number])
            parts[main] = total[None] - sum((parts[number] for number in border), jnp.zeros(()))
        return parts

    def _flat(self, offset: Sequence[int]) -> int:
        return reduce(lambda flat, k: flat * k[1] + k[0], zip(offset, self.window, strict=True), 0)

    def _product(self, x: Float[Array, "*_"], pieces: Sequence[Piece]) -> Float[Array, "g c c"]:
        first = _selected(x, [piece.first for piece in pieces])
        second = _selected(x, [piece.second for piece in pieces])
        return moment(first, second)

    def _by_patches(self, x: Float[Array, "*_"]) -> Float[Array, "g d d"]:
        """The whole sum from patches, of a few examples at a time."""

        def sums(x: Float[Array, "*_"]) -> Float[Array, "g d d"]:
            made = self._patches(x).reshape(-1, self.groups, self.size)
            return moment(made, made)

        return in_turns(sums, x, HELD // self._held)

    def _by_position(
        self, x: Float[Array, "*_"], weights: Float[Array, "n p"]
    ) -> tuple[list[Array], Float[Array, "g d"]]:
        """`sums` from patches with a weight each."""

        def sums(both: tuple[Array, Array]) -> tuple[Array, Array]:
            x, weights = both
            made, own = self._patches(x).reshape(-1, self.groups, self.size), weights.reshape(-1)
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


def moment(first: Float[Array, "*n g c"], second: Float[Array, "*n g c"]) -> Float[Array, "g c c"]:
    """Sum of x y^T over all rows, by group."""
    groups, channels = first.shape[-2:]
    first, second = (x.reshape(-1, groups, channels) for x in (first, second))
    if groups == 1:
        return jnp.matmul(first[:, 0].T, second[:, 0], precision=HIGHEST)[None]
    return jnp.einsum("ngc,ngd->gcd", first, second, precision=HIGHEST)


def _selected(x: Float[Array, "*_"], places: Sequence[Sequence[int]]) -> Float[Array, "*_"]:
    """The pixels at these places of the spatial axes, by slices where they are evenly spaced."""
    for axis, chosen in enumerate(places, start=1):
        steps = set(np.diff(chosen).tolist()) or {1}
        if len(steps) == 1 and (step := steps.pop()) > 0:
            x = jax.lax.slice_in_dim(x, chosen[0], chosen[-1] + 1, step, axis)
        else:
            x = jnp.take(x, np.array(chosen), axis=axis)
    return x
