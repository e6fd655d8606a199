"""Axes of a view of an array that together are whole axes of the array, as one axis.

Whatever order a program has them in, merged or split: as one they run through the array's axes in
the array's own order, so that products that differ in nothing else are products with one kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from tdjax.trace.views import Axis, Part


@dataclass(frozen=True)
class Side:
    """Some axes of a view; see the module.

    Arguments:
        view: what each is of the array.
    """

    view: tuple[Axis, ...]

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The axes of the array, in order."""
        return tuple(sorted({part.axis for part in self._parts}))

    @property
    def size(self) -> int:
        """Entries along all of them."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the view's axes."""
        return tuple(math.prod(part.size for part in own) for own in self.view)

    @property
    def whole(self) -> bool:
        """Whether none of the array's axes lies in part elsewhere."""
        held = dict.fromkeys(self.axes, 1)
        for part in self._parts:
            held[part.axis] *= part.size
        return all(held[part.axis] == part.length for part in self._parts)

    def merged(self, x: Shaped[Array, "*_"]) -> Shaped[Array, "*b n"]:
        """An array whose last axes are those of the view, with one in their place."""
        front = x.shape[: x.ndim - len(self.view)]
        x = x.reshape(*front, *(part.size for part in self._parts))
        order = (len(front) + k for k in self._order)
        return x.transpose(*range(len(front)), *order).reshape(*front, self.size)

    def spread(self, x: Shaped[Array, "*b n"]) -> Shaped[Array, "*_"]:
        """The inverse of `merged`."""
        front, parts = x.shape[:-1], self._parts
        x = x.reshape(*front, *(parts[k].size for k in self._order))
        back = sorted(range(len(parts)), key=self._order.__getitem__)
        x = x.transpose(*range(len(front)), *(len(front) + k for k in back))
        return jnp.reshape(x, (*front, *self.sizes))

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        return tuple(part for own in self.view for part in own)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """Places of the parts, those of the array's first axis first, the slowest first."""
        parts = self._parts
        return tuple(sorted(range(len(parts)), key=lambda k: (parts[k].axis, -parts[k].stride)))
