"""Outputs of a layer with its own kernel and with another, from inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from tdjax.params.factorize import weight_name
from tdjax.params.tree import layer_params, split_path
from tdjax.trace.call import call_arguments

# A variable collection that carries other kernels into a model and pairs of outputs out of it.
COMPARED = "tdjax_compared"


def layer_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    kernels: Mapping[str, Float[Array, "*_"]],
    inputs: Any,
) -> dict[str, list[tuple[Array, Array]]]:
    """Outputs of some layers with their own kernel and with another, on the same layer input.

    The model itself runs unchanged, so each layer is judged alone. A layer called several times
    gives several pairs.

    Arguments:
        kernels: for each path the other kernel.
        inputs: one batch, see `make_plan`.
    """

    def compare(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        output = next_fun(*args, **kwargs)
        # Variables reach a layer, and leave it, through `nn.jit` and `nn.remat` too.
        name = weight_name(module.variables.get(COMPARED, {}))
        if context.method_name in ("__call__", "attend") and name is not None:
            own = {**module.variables["params"], name: module.get_variable(COMPARED, name)}
            other = module.clone(parent=None, name=None).apply(
                {"params": own}, *args, **kwargs, method=context.method_name
            )
            module.sow(COMPARED, "pairs", (output, other))
        return output

    params = variables["params"]
    names = {path: weight_name(layer_params(params, path)) or "kernel" for path in kernels}
    others = unflatten_dict({(*split_path(path), names[path]): k for path, k in kernels.items()})
    args, kwargs = call_arguments(inputs)
    with nn.intercept_methods(compare):
        _, found = model.apply({**variables, COMPARED: others}, *args, **kwargs, mutable=[COMPARED])
    return {path: list(layer_params(found[COMPARED], path).get("pairs", ())) for path in kernels}
