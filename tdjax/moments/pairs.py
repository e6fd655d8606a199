"""Sums of x[i] x[j]^T over the pairs of pixels that the offsets of a window meet, and back.

Pairs with one difference j - i that different offsets meet differ at the border alone. So where the
pairs of every difference are all that lie inside, as they are where the stride is 1, one product
takes all of them, and small ones those at the border, of which each block of the whole has some.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.decompose.products import HIGHEST
from tdjax.moments.pieces import Piece, Taps, pieces_of
from tdjax.moments.turns import in_turns

# More products than this cost more than patches of so small channels.
MOST_PIECES = 64
# Products of so few channels are slow, and made together.
NARROW = 128
# Elements of shifted inputs side by side that are held at once: what a core keeps near by.
HELD_BESIDE = 2**18


class Pairs(NamedTuple):
    """What is summed for a window: first the pairs of each difference, then single products.

    Arguments:
        shifts: the differences, by axis.
        products: pairs of pixels, a piece of each axis; without shifts all there are, else those
            at the border.
        blocks: for each of these sums how often each block of the whole has it, (K, K, sums), the
            K offsets flattened.
        turned: how often it has it transposed.
    """

    shifts: tuple[tuple[int, ...], ...]
    products: tuple[tuple[Piece, ...], ...]
    blocks: Float[np.ndarray, "k k s"]
    turned: Float[np.ndarray, "k k s"]


def pair_sums(x: Float[Array, "*_"], pairs: Pairs) -> Float[Array, "s g c c"]:
    """The sums.

    Arguments:
        x: (n, *spatial, groups, channels).
    """
    groups, channels = x.shape[-2:]
    if not pairs.shifts:
        return jnp.stack([_product(x, pieces) for pieces in pairs.products])
    if groups == 1 and channels <= NARROW:
        whole = _beside(x, pairs.shifts)
    else:
        whole = jnp.stack([_shifted_product(x, shift) for shift in pairs.shifts])
    return jnp.concatenate([whole, _border(x, pairs.products)]) if pairs.products else whole


@partial(jax.jit, static_argnames=("taps",))
def assembled(sums: Float[Array, "s g c c"], taps: tuple[Taps, ...]) -> Float[Array, "g d d"]:
    """The sum of x x^T over the patches, from the sums of their pairs."""
    pairs = pairs_of(taps)
    assert pairs is not None
    blocks = jnp.tensordot(pairs.blocks.astype(sums.dtype), sums, axes=1, precision=HIGHEST)
    other = sums.swapaxes(-1, -2)
    blocks += jnp.tensordot(pairs.turned.astype(sums.dtype), other, axes=1, precision=HIGHEST)
    k, _, g, c, _ = blocks.shape
    return blocks.transpose(2, 0, 3, 1, 4).reshape(g, k * c, k * c)


@cache
def pairs_of(taps: tuple[Taps, ...]) -> Pairs | None:
    """The sums for a window; None where patches are made instead."""
    products = products_of(taps)
    if not products:
        return None
    blocks, turned = _blocks(products, tuple(map(len, taps)))
    shifts = _shifts(products, taps)
    if not shifts:
        return Pairs((), products, blocks, turned)
    # Of the sum over a difference the blocks have the most pixels, and lack those at the border.
    order, lack = [], np.eye(len(products))
    for numbers in shifts.values():
        main = max(numbers, key=lambda number: _pixels(products[number]))
        lack[main, [number for number in numbers if number != main]] = -1
        order.append(main)
    order += [number for number in range(len(products)) if number not in order]
    border = tuple(products[number] for number in order[len(shifts) :])
    return Pairs(tuple(shifts), border, (blocks @ lack)[..., order], (turned @ lack)[..., order])


@cache
def products_of(taps: tuple[Taps, ...]) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of all axes in all combinations, one of each and its turned one.

    Empty where there are too many.
    """
    by_axis = [pieces_of(axis) for axis in taps]
    if math.prod(map(len, by_axis)) > 2 * MOST_PIECES:
        return ()
    found: dict[tuple[Piece, ...], None] = {}
    for pieces in itertools.product(*by_axis):
        if tuple(piece.turned for piece in pieces) not in found:
            found[pieces] = None
    return tuple(found)


def _blocks(
    products: Sequence[tuple[Piece, ...]], window: tuple[int, ...]
) -> tuple[Float[np.ndarray, "k k s"], Float[np.ndarray, "k k s"]]:
    """How often each block of the whole has a product, and how often transposed."""
    offsets = math.prod(window)
    blocks = np.zeros((offsets, offsets, len(products)))
    turned = np.zeros_like(blocks)
    for number, pieces in enumerate(products):
        # Each piece stands for its turned one too, which holds the blocks below the diagonal.
        alone = tuple(piece.turned for piece in pieces) == pieces
        for meeting in itertools.product(*(piece.offsets for piece in pieces)):
            first, second = zip(*(pair for pair, _ in meeting), strict=True)
            k, m = _flat(first, window), _flat(second, window)
            times = math.prod(number for _, number in meeting)
            blocks[k, m, number] += times
            if not alone:
                turned[m, k, number] += times
    return blocks, turned


def _flat(places: Sequence[int], sizes: Sequence[int]) -> int:
    return reduce(lambda flat, k: flat * k[1] + k[0], zip(places, sizes, strict=True), 0)


def _shifts(
    products: Sequence[tuple[Piece, ...]], taps: tuple[Taps, ...]
) -> dict[tuple[int, ...], list[int]]:
    """The products by the difference of their pixels; empty where it does not pay to join them.

    Of each difference the products must cover every pair of pixels inside, as they do where the
    stride is 1.
    """
    sizes = [1 + max(itertools.chain(*axis)) for axis in taps]
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, pieces in enumerate(products):
        found[tuple(p.second[0] - p.first[0] for p in pieces)].append(number)
    for shift, numbers in found.items():
        inside = math.prod(n - abs(d) for n, d in zip(sizes, shift, strict=True))
        if sum(_pixels(products[number]) for number in numbers) != inside:
            return {}
    return dict(found) if len(found) > 1 else {}


def _pixels(pieces: Sequence[Piece]) -> int:
    return math.prod(len(piece.first) for piece in pieces)


def _beside(x: Float[Array, "*_"], shifts: Sequence[Sequence[int]]) -> Float[Array, "s 1 c c"]:
    """The sums over all pairs of each difference, in one product.

    Products of few channels are far from the machine's rate. Inputs side by side, shifted along
    the first axis on the left and along the others on the right, make a large one.
    """
    *spatial, _, channels = x.shape[1:]
    along = sorted({-shift[0] for shift in shifts})
    across = sorted({tuple(shift[1:]) for shift in shifts})
    reach = [max(abs(shift[axis]) for shift in shifts) for axis in range(len(spatial))]

    def shifted(padded: Float[Array, "*_"], shift: Sequence[int]) -> Float[Array, "*_"]:
        """x[i + shift] at every pixel i, zeros where there is none."""
        for axis, (size, d) in enumerate(zip(spatial, shift, strict=True)):
            start = reach[axis] + d
            padded = jax.lax.slice_in_dim(padded, start, start + size, axis=1 + axis)
        return padded.reshape(-1, channels)

    def product(x: Float[Array, "*_"]) -> Float[Array, "l r"]:
        padded = jnp.pad(x, [(0, 0), *((r, r) for r in reach), (0, 0)])
        still = (0,) * (len(spatial) - 1)
        left = jnp.concatenate([shifted(padded, (d, *still)) for d in along], axis=-1)
        right = jnp.concatenate([shifted(padded, (0, *d)) for d in across], axis=-1)
        return jnp.matmul(left.T, right, precision=HIGHEST)

    held = math.prod(spatial) * channels * (len(along) + len(across))
    whole = in_turns(product, x[..., 0, :], HELD_BESIDE // held)
    blocks = whole.reshape(len(along), channels, len(across), channels).swapaxes(1, 2)
    rows = np.array([along.index(-shift[0]) for shift in shifts])
    columns = np.array([across.index(tuple(shift[1:])) for shift in shifts])
    return blocks[rows, columns][:, None]


def _shifted_product(x: Float[Array, "*_"], shift: Sequence[int]) -> Float[Array, "g c c"]:
    """The sum over all pairs of one difference."""
    first = second = x
    for axis, (size, d) in enumerate(zip(x.shape[1:-2], shift, strict=True), start=1):
        first = jax.lax.slice_in_dim(first, max(0, -d), size - max(0, d), axis=axis)
        second = jax.lax.slice_in_dim(second, max(0, d), size - max(0, -d), axis=axis)
    return moment(first, second)


def _border(x: Float[Array, "*_"], products: Sequence[tuple[Piece, ...]]) -> Array:
    """Small products, (m, groups, channels, channels), all in one."""
    n, *spatial, groups, channels = x.shape
    flat = jnp.moveaxis(x.reshape(n, math.prod(spatial), groups, channels), 1, 0)
    # A pixel of zeros behind the last one, for products of fewer pairs.
    flat = jnp.pad(flat, [(0, 1), (0, 0), (0, 0), (0, 0)])
    first, second = (
        flat[places].reshape(len(products), -1, groups, channels)
        for places in _places(products, spatial)
    )
    return jnp.einsum("mpgc,mpgd->mgcd", first, second, precision=HIGHEST)


def _places(
    products: Sequence[tuple[Piece, ...]], spatial: Sequence[int]
) -> tuple[Int[np.ndarray, "m p"], Int[np.ndarray, "m p"]]:
    """The pixels of the pairs of each product, numbered in order, then that of zeros."""
    most, zero = max(map(_pixels, products)), math.prod(spatial)
    first, second = (np.full((len(products), most), zero) for _ in range(2))
    for row, pieces in enumerate(products):
        for rows, ends in (
            (first, [p.first for p in pieces]),
            (second, [p.second for p in pieces]),
        ):
            own = [_flat(pixel, spatial) for pixel in itertools.product(*ends)]
            rows[row, : len(own)] = own
    return first, second


def _product(x: Float[Array, "*_"], pieces: Sequence[Piece]) -> Float[Array, "g c c"]:
    first = _selected(x, [piece.first for piece in pieces])
    second = _selected(x, [piece.second for piece in pieces])
    return moment(first, second)


def moment(first: Float[Array, "*n g c"], second: Float[Array, "*n g c"]) -> Float[Array, "g c c"]:
    """Sum of x y^T over all rows, by group."""
    groups, channels = first.shape[-2:]
    first, second = (x.reshape(-1, groups, channels) for x in (first, second))
    if groups == 1:
        return jnp.matmul(first[:, 0].T, second[:, 0], precision=HIGHEST)[None]
    return jnp.einsum("ngc,ngd->gcd", first, second, precision=HIGHEST)


def forms(rows: Float[Array, "n g d"], matrix: Float[Array, "g d d"]) -> Float[Array, "n g"]:
    """x^T M x of every row and group."""
    turned = jnp.einsum("ngd,gde->nge", rows, matrix, precision=HIGHEST)
    return jnp.sum(turned * rows, axis=-1)


def _selected(x: Float[Array, "*_"], places: Sequence[Sequence[int]]) -> Float[Array, "*_"]:
    """The pixels at these places of the spatial axes, by slices where they are evenly spaced."""
    for axis, chosen in enumerate(places, start=1):
        steps = set(np.diff(chosen).tolist()) or {1}
        if len(steps) == 1 and (step := steps.pop()) > 0:
            x = jax.lax.slice_in_dim(x, chosen[0], chosen[-1] + 1, step, axis)
        else:
            x = jnp.take(x, np.array(chosen), axis=axis)
    return x
