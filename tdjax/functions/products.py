"""The products that a view of an array may go into, by the name of their equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax.extend.core import JaxprEqn

from tdjax.functions.convolutions import convolution
from tdjax.functions.lookups import lookup
from tdjax.functions.matrices import matrix_product
from tdjax.functions.place import Place, Product, Unreadable

READERS: Mapping[str, Callable[[Any, Place], Product]] = {
    "dot_general": matrix_product,
    "conv_general_dilated": convolution,
    "gather": lookup,
}


def product_of(eqn: JaxprEqn, place: Place) -> Product:
    """The product that an equation is. Raises `Unreadable` where it is none, or no plain one."""
    read = READERS.get(eqn.primitive.name)
    if read is None:
        raise Unreadable("")
    return read(eqn, place)
