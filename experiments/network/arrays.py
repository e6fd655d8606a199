"""The arrays of single layers, of parameters of any kind."""

from __future__ import annotations

from typing import Any

import jax

from tdjax.params.leaves import array_names
from tdjax.params.tree import split_path
from tdjax.plan.layers import Layer
from tdjax.trace.names import names_of


def array_of(params: Any, layer: Layer) -> Any:
    """The array that holds a layer's weights, of parameters of any kind."""
    wanted = array_names(layer)
    return next(
        leaf for path, leaf in jax.tree.leaves_with_path(params) if names_of(path) == wanted
    )


def with_array(params: Any, layer: Layer, array: Any) -> Any:
    """The same parameters with another array of a layer, or with None in its place."""
    wanted = array_names(layer)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: array if names_of(path) == wanted else leaf,
        params,
        is_leaf=lambda leaf: leaf is None,
    )


def with_layer(params: Any, others: Any, layer: Layer) -> Any:
    """Parameters with all arrays of one layer, a bias too, from others like them."""
    path = split_path(layer.path)

    def chosen(names: Any, own: Any, other: Any) -> Any:
        return other if names_of(names)[: len(path)] == path else own

    return jax.tree_util.tree_map_with_path(chosen, params, others)
